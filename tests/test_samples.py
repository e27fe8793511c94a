"""Images as people have them: shown right, or refused with one sentence."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from PIL import ImageCms

from interp import Missing, Unsuitable, samples, store
from interp.samples import Contrast, Image, ImageSet, Prompt, PromptPair, Target, TextSet

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)
"""height 24, width 40"""


def saved(picture: PIL.Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = PIL.Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(data).picture)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, raw: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", raw) + chunk(b"IEND", b"")


# --------------------------------------------------------------------------------------------------------- shown right


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_lossless_files_keep_their_pixels(kind: str) -> None:
    pixels = PIXELS // 64 * 64 if kind == "GIF" else PIXELS
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(pixels if kind != "GIF" else PIL.Image.fromarray(pixels).quantize(64), kind, **options)
    assert np.array_equal(opened(data), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_photos_stand_upright(kind: str, orientation: int) -> None:
    upright = np.zeros((24, 40, 3), np.uint8)
    upright[:12, :20, 0] = 250  # red upper left
    upright[12:, 20:, 2] = 250  # blue lower right
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],  # as a camera held upright stores it: turn clockwise to see it right
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    seen = opened(
        saved(np.ascontiguousarray(turned), kind, exif=exif.tobytes(), **({"quality": 95} if kind == "JPEG" else {}))
    )
    assert seen.shape == upright.shape
    assert (
        np.abs(seen.astype(int) - upright)[2:10, 2:18].max() < 30
        and np.abs(seen.astype(int) - upright)[14:-2, 22:-2].max() < 30
    )


@pytest.mark.filterwarnings("ignore")  # Pillow warns of it
def test_unknown_and_damaged_orientations_leave_the_photo_as_it_is() -> None:
    for orientation in (0, 9, 65535):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        assert np.array_equal(opened(saved(PIXELS, exif=exif.tobytes())), PIXELS)
    for junk in (b"Exif\x00\x00MM\x00*\x00\x00\xff\xff", b"Exif\x00\x00", b"Exif\x00\x00garbage" * 9):
        data = saved(PIL.Image.fromarray(PIXELS), "JPEG", exif=junk, quality=95, subsampling=0)
        assert opened(data).shape == PIXELS.shape


def test_sixteen_bits_are_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    expected = np.round(ramp / 65535 * 255)
    for data in (saved(ramp, "PNG"), saved(ramp, "TIFF")):
        seen = opened(data)
        assert np.abs(seen - expected[..., None]).max() <= 1 and (seen[..., 0] == seen[..., 2]).all()
    colour = np.stack([ramp, ramp[::-1], ramp.T.reshape(24, 40)], -1)
    big_endian = colour.astype(">u2").tobytes()
    raw = b"".join(b"\0" + big_endian[row * 240 : (row + 1) * 240] for row in range(24))
    assert np.abs(opened(png(40, 24, 16, 2, zlib.compress(raw))) - np.round(colour / 65535 * 255)).max() <= 1
    # with an alpha of its own, opaque
    wide = np.concatenate([colour, np.full((24, 40, 1), 65535, np.uint16)], -1).astype(">u2").tobytes()
    raw = b"".join(b"\0" + wide[row * 320 : (row + 1) * 320] for row in range(24))
    assert np.abs(opened(png(40, 24, 16, 6, zlib.compress(raw))) - np.round(colour / 65535 * 255)).max() <= 1


def test_floats_and_large_integers_take_their_own_range() -> None:
    ramp = np.linspace(-3, 5, 24 * 40).reshape(24, 40).astype(np.float32)
    expected = np.round((ramp + 3) / 8 * 255)
    assert np.abs(opened(saved(ramp, "TIFF"))[..., 0] - expected).max() <= 1
    assert np.abs(opened(saved((ramp * 1e6).astype(np.int32), "TIFF"))[..., 0] - expected).max() <= 1
    holes = ramp.copy()
    holes[3, 4], holes[5, 6], holes[7, 8] = np.nan, np.inf, -np.inf
    seen = opened(saved(holes, "TIFF"))
    assert seen[3, 4, 0] == 0 and seen[5, 6, 0] == 255 and seen[7, 8, 0] == 0
    assert np.abs(seen[10:, :, 0] - expected[10:]).max() <= 1
    assert (opened(saved(np.full((24, 40), np.nan, np.float32), "TIFF")) == 0).all()
    assert opened(saved(np.full((24, 40), 7, np.float32), "TIFF")).shape == (24, 40, 3)


def test_cmyk_photos_have_their_colours() -> None:
    picture = PIL.Image.new("CMYK", (40, 24), (0, 255, 255, 0))  # red
    for data in (saved(picture, "JPEG", quality=95), saved(picture, "TIFF")):
        assert (np.abs(opened(data).astype(int) - [255, 0, 0]) < 12).all()


def test_grey_and_one_bit() -> None:
    assert np.array_equal(opened(saved(PIXELS[..., 0])), np.repeat(PIXELS[..., :1], 3, -1))
    checks = (np.indices((24, 40)).sum(0) % 2 * 255).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(opened(saved(PIL.Image.fromarray(checks).convert("1"), kind))[..., 1], checks)


def test_transparency_is_shown_on_white() -> None:
    alpha = np.zeros((24, 40, 1), np.uint8)
    alpha[:, 20:], alpha[:12, :20] = 255, 128
    rgba = np.concatenate([PIXELS, alpha], -1)
    expected = PIXELS * (alpha / 255) + 255 * (1 - alpha / 255)
    for data in (saved(rgba), saved(rgba, "WEBP", lossless=True, exact=True), saved(rgba, "TIFF")):
        assert np.abs(opened(data) - expected).max() <= 1
    grey = PIL.Image.merge("LA", [PIL.Image.fromarray(each) for each in (PIXELS[..., 0], alpha[..., 0])])
    expected = PIXELS[..., :1] * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(opened(saved(grey)) - np.repeat(expected, 3, -1)).max() <= 1


def test_palettes_with_a_transparent_colour() -> None:
    picture = PIL.Image.new("P", (40, 24), 0)
    picture.putpalette([10, 20, 30, 200, 100, 50, 0, 0, 255])
    picture.paste(1, (20, 0, 40, 12))
    picture.paste(2, (20, 12, 40, 24))
    for data in (saved(picture, transparency=0), saved(picture, "GIF", transparency=0)):
        seen = opened(data)
        assert (
            (seen[:, :20] == 255).all()
            and (seen[:12, 20:] == [200, 100, 50]).all()
            and (seen[12:, 20:] == [0, 0, 255]).all()
        )
    graded = opened(saved(picture, transparency=bytes([0, 128, 255])))
    assert (graded[:, :20] == 255).all() and np.abs(graded[0, 30].astype(int) - [227, 177, 152]).max() <= 1
    keyed = saved(PIL.Image.fromarray(PIXELS), transparency=tuple(int(each) for each in PIXELS[3, 4]))
    seen = opened(keyed)
    assert (seen[3, 4] == 255).all() and (seen[5:] == PIXELS[5:]).all()
    grey = saved(PIL.Image.fromarray(PIXELS[..., 0]), transparency=int(PIXELS[3, 4, 0]))
    assert (opened(grey)[3, 4] == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [PIL.Image.new("RGB", (40, 24), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    if kind == "WEBP":
        options["lossless"] = True
    assert np.abs(opened(saved(frames[0], kind, **options)) - np.array([255, 0, 0])).max() <= (
        1 if kind == "MPO" else 0
    )


def test_large_photos_are_made_smaller_and_keep_their_colours() -> None:
    wide = np.zeros((1000, 6400, 3), np.uint8)
    wide[:, :3200], wide[500:, 3200:] = [200, 30, 60], [10, 220, 90]
    for data in (
        saved(wide),
        saved(wide, "JPEG", quality=90),
        saved(np.dstack([wide, np.full(wide.shape[:2], 255, np.uint8)])),
    ):
        picture = opened(data)
        assert picture.shape == (240, 1536, 3)
        assert np.abs(picture[100, 300].astype(int) - [200, 30, 60]).max() <= 3
        assert np.abs(picture[200, 1200].astype(int) - [10, 220, 90]).max() <= 3
    # strips are put together without a seam
    slope = np.tile(np.linspace(0, 255, 5000).astype(np.uint8)[:, None, None], (1, 4800, 3))
    seen = opened(saved(slope, compress_level=1)).astype(int)
    assert (
        seen.shape == (1536, 1475, 3) and (np.diff(seen[:, 700, 0]) >= 0).all() and np.diff(seen[:, 700, 0]).max() <= 2
    )


# -------------------------------------------------------------------------------------------------------------- refused


def refused(data: Any) -> str:
    with pytest.raises(Unsuitable) as reason:
        Image.open(data)
    text = str(reason.value)
    assert text.endswith(".") and "\n" not in text and 20 < len(text) < 200, text
    return text


def test_what_is_no_image() -> None:
    for data in (
        b"",
        b"\0",
        b"hello, world",
        b"%PDF-1.7 ...",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"PK\x03\x04" * 9,
        bytes(10_000),
    ):
        assert "not an image" in refused(data)
    assert "can't be read" in refused("/no/such/file.png")
    assert "can't be read" in refused(Path("/"))
    for picture in (PIXELS, np.zeros((24, 40, 3), np.uint8)):
        refused(saved(PIL.Image.fromarray(picture), "PPM"))  # a format that no phone or browser makes


def test_sizes_out_of_bounds() -> None:
    assert "1 x 1" in refused(saved(np.zeros((1, 1, 3), np.uint8)))
    assert "10000 x 3" in refused(saved(np.zeros((3, 10000, 3), np.uint8)))
    assert "at most" in refused(saved(np.zeros((10, 201, 3), np.uint8)))
    assert opened(saved(np.zeros((8, 160, 3), np.uint8))).shape == (8, 160, 3)


def small_files() -> dict[str, bytes]:
    photo = PIL.Image.fromarray(PIXELS[:12, :16])
    frames = {"save_all": True, "append_images": [PIL.Image.new("RGB", (16, 12), "red")]}
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return {
        "png": saved(photo),
        "palette": saved(photo.quantize(16), transparency=0),
        "apng": saved(photo, "PNG", **frames),
        "jpeg": saved(photo, "JPEG", exif=exif.tobytes()),
        "progressive": saved(photo, "JPEG", progressive=True),
        "cmyk": saved(photo.convert("CMYK"), "JPEG"),
        "gif": saved(photo, "GIF", **frames),
        "webp": saved(photo, "WEBP"),
        "animated": saved(photo, "WEBP", **frames),
        "bmp": saved(photo, "BMP"),
        "tiff": saved(photo, "TIFF"),
        "lzw": saved(photo, "TIFF", compression="tiff_lzw"),
        "float": saved(PIXELS[:12, :16, 0].astype(np.float32), "TIFF"),
        "sixteen": saved(PIXELS[:12, :16, 0].astype(np.uint16) * 257),
    }


# Pillow warns of odd files before it fails; the app lets it
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", small_files())
def test_truncated_files_are_refused_or_still_complete(name: str) -> None:
    data = small_files()[name]
    whole = Image.open(data)
    good = 0
    for end in range(0, len(data), 7):
        try:
            image = Image.open(data[:end])
        except Unsuitable as reason:
            assert str(reason).endswith(".")
        else:  # only what follows the pixels is missing
            good += 1
            assert image.picture.size == whole.picture.size, end
            assert image == whole or end > len(data) // 2, end
    assert good * 7 <= max(len(data) * 0.45, 60), "many a cut off file passed as whole"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", small_files())
def test_damaged_files_raise_nothing_but_a_sentence(name: str) -> None:
    data = small_files()[name]
    generator = np.random.default_rng(1)
    start = time.monotonic()
    for position in range(0, len(data), 7):
        for value in (0, 0x7F, 0xFF, int(generator.integers(256))):
            bad = bytearray(data)
            bad[position : position + int(generator.integers(1, 5))] = bytes([value]) * int(generator.integers(1, 5))
            try:
                picture = Image.open(bytes(bad)).picture
            except Unsuitable as reason:
                assert str(reason).endswith(".") and "\n" not in str(reason)
            else:
                assert picture.mode == "RGB" and max(picture.size) <= 1536
    assert time.monotonic() - start < 60


BOMB = """
import resource, sys, time, zlib
from tests.test_samples import png, refused
side = 9000
compressor = zlib.compressobj(9)
raw = b"".join(compressor.compress(bytes(side * 3 + 1)) for _ in range(side)) + compressor.flush()
data = png(side, side, 8, 2, raw)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
print(refused(data), file=sys.stderr)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(data), after - before, time.monotonic() - start)
"""


def _measured(script: str) -> list[float]:
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return [float(each) for each in result.stdout.split()]


def test_a_bomb_of_81_megapixels_is_refused_before_it_is_unpacked() -> None:
    size, kilobytes, seconds = _measured(BOMB)
    assert size < 300_000 and kilobytes < 20_000 and seconds < 2


LARGE = """
import resource, time, zlib
from tests.test_samples import png, Image
width, height = 8000, 6200
compressor = zlib.compressobj(1)
raw = b"".join(compressor.compress(bytes(width * 4 + 1)) for _ in range(height)) + compressor.flush()
data = png(width, height, 8, 6, raw)
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
assert max(Image.open(data).picture.size) == 1536
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) / 1024, time.monotonic() - start)
"""


def test_the_largest_image_that_is_read_takes_little_more_than_its_own_pixels() -> None:
    megabytes, _ = _measured(LARGE)
    assert megabytes < 1.4 * 8000 * 6200 * 4 / 2**20


def test_text_and_profile_bombs_in_a_png() -> None:
    body = saved(PIXELS)
    bomb = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(50_000_000)))
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(50_000_000)))
    for extra in (bomb, profile):
        data = body[:33] + extra + body[33:]
        start = time.monotonic()
        with contextlib.suppress(Unsuitable):
            assert np.array_equal(opened(data), PIXELS)
        assert time.monotonic() - start < 2


# ------------------------------------------------------------------------------------------------------------- identity


def test_equal_pixels_have_equal_hashes_whatever_the_file_says_beside() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = PIL.Image.Exif()
    exif[0x010F] = "a camera"
    files = [
        saved(PIXELS),
        saved(PIXELS, compress_level=9),
        saved(PIXELS, "BMP"),
        saved(PIXELS, "TIFF", icc_profile=profile),
        saved(PIXELS, icc_profile=profile, exif=exif.tobytes(), dpi=(300, 300)),
        saved(PIXELS, "WEBP", lossless=True, exif=exif.tobytes()),
    ]
    images = [Image.open(data, name=str(index)) for index, data in enumerate(files)]
    assert (
        len({each.sha256 for each in images}) == 1
        and len(set(images)) == 1
        and len({hash(each) for each in images}) == 1
    )
    assert all(b"camera" not in each.data and b"iCCP" not in each.data for each in images)
    assert images[0].sha256 == hashlib.sha256(images[0].data).hexdigest()
    assert Image.open(images[0].data) == images[0]
    other = PIXELS.copy()
    other[0, 0, 0] ^= 1
    assert Image.of(other) != images[0]


def test_an_image_from_an_array_and_its_mask() -> None:
    mask = np.zeros((24, 40), bool)
    mask[3:5, 6:9] = True
    image = Image.of(PIXELS, "made", mask)
    assert np.array_equal(np.asarray(image.picture), PIXELS) and image.object_mask is not None
    assert np.array_equal(image.object_mask, mask) and str(image) == "made"
    assert Image.of(PIXELS).object_mask is None
    assert "data" not in repr(image)


def test_paths_give_names(tmp_path: Path) -> None:
    path = tmp_path / "dog.png"
    path.write_bytes(saved(PIXELS))
    assert Image.open(path).name == Image.open(str(path)).name == "dog.png"
    assert Image.open(path) == Image.open(path.read_bytes())


def test_uploads_are_found_again_only_when_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACTISCOPE_STORE", str(tmp_path))
    image = Image.of(PIXELS, "holiday.png")
    assert image.reference == f"sha256:{image.sha256}"
    with pytest.raises(Missing):
        Image.refer(image.reference)
    store.keep_blob(image.data)
    assert Image.refer(image.reference) == image
    other = store.keep_blob(b"not an image")
    for reference in (f"sha256:{other}", "sha256:../../etc", "sha256:", "no such sample", ""):
        with pytest.raises(Missing):
            Image.refer(reference)


def test_the_gallery(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(saved(PIXELS))
    (tmp_path / "cat-mask.png").write_bytes(saved((np.indices((24, 40)).sum(0) < 20).astype(np.uint8) * 255))
    listing = [{"name": "cat", "file": "cat.png", "mask": "cat-mask.png"}]
    (tmp_path / "gallery.json").write_text(json.dumps(listing))
    monkeypatch.setattr(samples, "GALLERY", tmp_path)
    samples.gallery.cache_clear()
    samples._from_gallery.cache_clear()
    try:
        cat = Image.gallery("cat")
        assert cat.reference == "cat" and Image.refer("cat") is cat and cat.object_mask is not None
        assert cat.object_mask[0, 0] and not cat.object_mask[-1, -1]
        impostor = Image.of(255 - PIXELS, "cat")
        assert impostor.reference.startswith("sha256:")
        with pytest.raises(Missing):
            Image.gallery("dog")
    finally:
        samples.gallery.cache_clear()
        samples._from_gallery.cache_clear()


def test_prompts_have_bounds_and_samples_are_hashable() -> None:
    for text in ("", "  \n", "x" * 10_001, "half \ud83e"):
        with pytest.raises(Unsuitable):
            Prompt(text)
    image = Image.of(PIXELS)
    everything = {
        Prompt("a"), PromptPair("a", "b", "c", "d"), Contrast(("a",), ("b",)), ImageSet((image,)), TextSet(("a",)),
        image, Target("a"),
    }  # fmt: skip
    assert len(everything) == 7
