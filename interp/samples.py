"""What an experiment looks at: frozen, hashable inputs that hold bytes or text, never tensors."""

from __future__ import annotations

import hashlib
import io
import json
import re
import struct
import threading
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from interp import Missing, Unsuitable, settings, store

GALLERY = Path(__file__).parent.parent / "assets" / "gallery"
TEXTS = GALLERY.parent / "texts.json"
MAX_SIDE, MIN_SIDE, MAX_ASPECT = 1536, 8, 20
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
PIL.Image.init()  # or Pillow loads some of them only after the others have failed


@dataclass(frozen=True)
class Target:
    """What the model is asked about: a class or token by name or number, or None for its own first guess."""

    name: str | int | None = None


@dataclass(frozen=True)
class Image:
    """An upright RGB photo, as the bytes of a lossless PNG. Equal pixels make equal images. `name` is for people."""

    data: bytes = field(repr=False)
    name: str = field(default="", compare=False)
    mask: bytes | None = field(default=None, repr=False, compare=False)

    @staticmethod
    def open(source: str | Path | bytes, name: str = "") -> Image:
        """Read an image from a path or bytes, upright, on white where transparent, first frame, at most 1536 px a side.

        Raises:
            Unsuitable: not an image, damaged, far too large or too narrow; the text says what to do.
        """
        if not isinstance(source, bytes):
            path = Path(source)
            name = name or path.name
            try:
                source = path.read_bytes()
            except OSError as problem:
                raise Unsuitable(f"{path.name} can't be read: {problem.strerror}.") from None
        elif len(source) > (most := settings.SETTINGS.upload_bytes):
            raise Unsuitable(f"This file has {len(source) / 2**20:.0f} MB, over {most / 2**20:.3g}; scale it down.")
        return Image.of(_decode(source), name)

    @staticmethod
    def of(picture: PIL.Image.Image | np.ndarray, name: str = "", mask: np.ndarray | None = None) -> Image:
        """Make an image from an RGB Pillow picture or a uint8 array [height, width, 3], with the mask of its object."""
        if isinstance(picture, np.ndarray):
            picture = PIL.Image.fromarray(picture)
        picture = picture.convert("RGB")
        picture.thumbnail((MAX_SIDE, MAX_SIDE), PIL.Image.Resampling.LANCZOS)
        return Image(
            _png(picture), name, None if mask is None else _png(PIL.Image.fromarray(mask.astype(np.uint8) * 255))
        )

    @staticmethod
    def gallery(name: str) -> Image:
        """Take a sample image of the embedded gallery by its name.

        Raises:
            Missing: no such image.
        """
        entry = gallery().get(name)
        if entry is None:
            raise Missing(f"The gallery has no image called {name[:60]!r}; choose another or upload yours.")
        return _from_gallery(name, entry["file"], entry.get("mask"))

    @cached_property
    def sha256(self) -> str:
        """The hash that names this image in links and in the store."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def picture(self) -> PIL.Image.Image:
        """The upright original as a Pillow image."""
        return PIL.Image.open(io.BytesIO(self.data)).convert("RGB")

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, from the header alone: decoding a photo takes longer than most methods."""
        return PIL.Image.open(io.BytesIO(self.data)).size

    @property
    def object_mask(self) -> np.ndarray | None:
        """Where the object is, bool [height, width], for images that come with an exact mask."""
        return None if self.mask is None else np.asarray(PIL.Image.open(io.BytesIO(self.mask)).convert("L")) > 127

    @property
    def reference(self) -> str:
        """How a link names it: its gallery name, or `sha256:...` for an upload."""
        return self.name if self.name in gallery() and Image.gallery(self.name) == self else f"sha256:{self.sha256}"

    @staticmethod
    def refer(reference: str) -> Image:
        """Find the image that a reference names: in the gallery, or among the uploads kept for links.

        Raises:
            Missing: it is not here.
        """
        if not reference.startswith("sha256:"):
            return Image.gallery(reference)
        digest = reference.removeprefix("sha256:")
        data = store.blob(digest)
        if data is None or not data.startswith(b"\x89PNG"):
            raise Missing("This link is about an uploaded image that is not kept here; upload the same file to see it.")
        return Image(data)

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __str__(self) -> str:
        return self.name or self.sha256[:8]


@dataclass(frozen=True)
class Prompt:
    """A text for a language model."""

    text: str

    def __post_init__(self) -> None:
        _check(self.text)
        if not self.text.strip():
            raise Unsuitable("The prompt is empty; type a few words.")
        if len(self.text) > (most := settings.SETTINGS.characters):
            raise Unsuitable(f"The prompt has {len(self.text):,} characters; the limit is {most:,}.")


@dataclass(frozen=True)
class PromptPair:
    """A clean and a corrupted prompt of as many tokens, the answer of clean and the foil of corrupted.

    An empty answer or foil stands for the model's first guess after its prompt.
    """

    clean: str
    corrupted: str
    answer: str = ""
    foil: str = ""

    def __post_init__(self) -> None:
        for text in (self.clean, self.corrupted):
            Prompt(text)
        _check(self.answer, self.foil)


@dataclass(frozen=True)
class Contrast:
    """Texts that show a behaviour and texts that do not."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_texts(self.positive)
        _check_texts(self.negative)


@dataclass(frozen=True)
class ImageSet:
    """Several images."""

    images: tuple[Image, ...]


@dataclass(frozen=True)
class TextSet:
    """Several texts."""

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_texts(self.texts)


@lru_cache(1)
def reference_texts() -> TextSet:
    """The embedded texts: what means are taken over and lenses are fitted on where nothing else is given."""
    return TextSet(tuple(json.loads(TEXTS.read_text())["texts"]))


def _check_texts(texts: Any) -> None:
    if not isinstance(texts, tuple):  # a text is a sequence of texts too
        raise Unsuitable("Several texts are given as a list of texts.")
    _check(*texts)


def _check(*texts: Any) -> None:
    for text in texts:
        # lone surrogates, which JSON can carry, have no place in a hash, a file or a tokenizer
        if not isinstance(text, str) or text != text.encode(errors="replace").decode():
            raise Unsuitable("A prompt is a text of whole characters; type it again.")


@lru_cache(1)
def gallery() -> dict[str, dict[str, Any]]:
    """The embedded sample images by name: file, mask, model, title, alt, licence, source, author."""
    listing = GALLERY / "gallery.json"
    return {entry["name"]: entry for entry in json.loads(listing.read_text())} if listing.exists() else {}


@lru_cache(64)
def _from_gallery(name: str, file: str, mask: str | None) -> Image:
    found = None if mask is None else np.asarray(PIL.Image.open(GALLERY / mask).convert("L")) > 127
    return Image.of(_decode((GALLERY / file).read_bytes()), name, found)


def _png(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.info.clear()  # profiles would make equal pixels unequal bytes, and tell where a photo was taken
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


_decoding = threading.Lock()
"""Held while an image is decoded, so that many at once take no more memory than the largest."""


def _decode(data: bytes) -> PIL.Image.Image:
    """Decode untrusted bytes: size checked from the header, then made 8-bit RGB and upright."""
    try:
        data, turn = _pixels_alone(data)
        with _decoding:
            picture: PIL.Image.Image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
            _check_size(picture)
            picture.draft("RGB", (2 * MAX_SIDE, 2 * MAX_SIDE))  # JPEG decodes at a fraction of the size for free
            picture.load()
            picture = _rgb(picture)
        return picture if turn is None else picture.transpose(turn)
    except Unsuitable:
        raise
    except PIL.UnidentifiedImageError:
        raise Unsuitable("This file is not an image that can be read here; use PNG, JPEG or WebP.") from None
    except PIL.Image.DecompressionBombError:
        raise Unsuitable("This image is far too large when unpacked; scale it down.") from None
    except Exception:  # Pillow's plugins raise almost anything on damaged data
        raise Unsuitable("This image is damaged or cut off; save it again as PNG or JPEG.") from None


def _check_size(picture: PIL.Image.Image) -> None:
    """Refuse from the header, before any memory is spent, what is too large, or would take too long."""
    width, height = picture.size
    most = settings.SETTINGS.pixels
    tile = next(iter(getattr(picture, "tile", ())), None)
    codec, args = (tile[0], tile[3]) if tile else ("", "")
    if picture.format in ("TIFF", "WEBP") or "16" in str(args) or picture.mode[0] in "IF":
        most //= 2  # these take twice the time and memory
    if width * height > most:
        raise Unsuitable(f"This image has {width * height / 1e6:.0f} megapixels, over {most / 1e6:.3g}; scale it down.")
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
        raise Unsuitable(
            f"This image is {width} x {height} pixels; it needs at least {MIN_SIDE} a side, "
            f"and one side at most {MAX_ASPECT} times the other."
        )
    if codec == "bmp_rle":  # Pillow unpacks these run by run in Python
        raise Unsuitable("This BMP is packed in runs; save it again as PNG.")


# ------------------------------------------------------------------------------------------- before Pillow sees a file
# Comments, profiles, thumbnails, animations and the like take Pillow any time and memory that a hostile file wants,
# and say nothing about the pixels; so it is given the pixels alone, and orientation is read here.


def _pixels_alone(data: bytes) -> tuple[bytes, PIL.Image.Transpose | None]:
    """The file without what stands beside its pixels, and how EXIF says it has to be turned to stand upright."""
    exif = b""
    if data.startswith(b"\xff\xd8\xff"):
        data, exif = _jpeg(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        data, exif = _png_chunks(data)
    elif data.startswith((b"GIF87a", b"GIF89a")):
        data = _gif(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        exif = _webp_exif(data)
    elif data.startswith((b"II", b"MM")):
        _check_tiff(data)  # Pillow turns these itself
    return data, _orientation(exif.removeprefix(b"Exif\0\0"))


def _orientation(exif: bytes) -> PIL.Image.Transpose | None:
    try:
        kind, count, value = _directory(exif).get(0x0112, (0, 0, b""))
    except (Unsuitable, struct.error):  # damaged EXIF in a good photo
        return None
    return _TURNS.get(int.from_bytes(value[:2], "little")) if kind == 3 and count else None


MANY = 20_000
"""Parts of a file: segments, chunks, blocks. A PNG of 20 MB with pixels in chunks of 8 kB has 2,500."""
SCANS = 64
"""Of a progressive JPEG, each of which goes over the whole picture; cameras and programs write about ten."""
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")


def _jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Without application segments (but Adobe's, which says what the channels are), comments and what follows."""
    kept, exif, at, scans = [b"\xff\xd8"], b"", 2, 0
    for _ in range(MANY):
        found = _NEXT_MARKER.search(data, at)
        if not found:
            kept.append(data[at:])
            break
        marker, start = data[found.start() + 1], found.start()
        if marker in (0xD8, 0xD9):
            kept.append(data[at:start] + b"\xff\xd9")
            break
        end = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        if scans:  # what stands between is of the scan before
            kept.append(data[at:start])
        if marker == 0xE1 and not exif and data[start + 4 : start + 10] == b"Exif\0\0":
            exif = data[start + 4 : end]
        if (not 0xE0 <= marker <= 0xEF and marker != 0xFE) or marker == 0xEE:
            kept.append(data[start:end])
        scans += marker == 0xDA
        if scans > SCANS:
            raise Unsuitable("This JPEG is cut into far too many scans; save it again.")
        at = end
    else:
        raise Unsuitable("This JPEG is in far too many pieces; save it again.")
    return b"".join(kept), exif


def _png_chunks(data: bytes) -> tuple[bytes, bytes]:
    """The chunks that make the picture."""
    kept, exif, at = [data[:8]], b"", 8
    for _ in range(MANY):
        end = at + 12 + int.from_bytes(data[at : at + 4])
        kind = data[at + 4 : at + 8]
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[at:end])
        elif kind == b"eXIf":
            exif = exif or data[at + 8 : end - 4]
        at = end
        if kind == b"IEND" or at >= len(data):
            break
    else:
        raise Unsuitable("This PNG is in far too many pieces; save it again.")
    return b"".join(kept), exif


def _gif(data: bytes) -> bytes:
    """Without comments and the like before the first frame."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    kept = [data[:at]]
    for _ in range(MANY):
        if data[at : at + 1] != b"!":
            break
        start, control = at, data[at + 1] == 0xF9
        at += 2
        for _ in range(MANY):
            if not (length := data[at]):
                break
            at += 1 + length
        else:
            raise Unsuitable("This GIF has far too much beside its picture; save it again.")
        at += 1
        if control:
            kept = [kept[0], data[start:at]]
    if data[at : at + 1] != b",":
        raise Unsuitable("This GIF has no picture where it should be; save it again.")
    return b"".join(kept) + data[at:]


def _webp_exif(data: bytes) -> bytes:
    at = 12
    for _ in range(MANY):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            return data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if at >= len(data):
            return b""
    raise Unsuitable("This WebP is in far too many pieces; save it again.")


TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TAGS = 4096
COMPRESSIONS = (1, 2, 3, 4, 5, 8, 32946, 32773)
"""None, fax, LZW, deflate and PackBits. The others have decoders that few files need and that take any memory."""


def _directory(data: bytes) -> dict[int, tuple[int, int, bytes]]:
    """The first directory of a TIFF, which EXIF is too: type, count and, little endian, the value that stands there."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 16:
        return {}
    big = 43 in (data[2], data[3])
    (at,) = struct.unpack_from(order + "Q", data, 8) if big else struct.unpack_from(order + "I", data, 4)
    entry, width = struct.Struct(order + ("HHQ8s" if big else "HHI4s")), 8 if big else 2
    number = int.from_bytes(data[at : at + width], "little" if order == "<" else "big")
    if number > TAGS:
        raise Unsuitable("This image comes with far too many tags; save it again as PNG.")
    found: dict[int, tuple[int, int, bytes]] = {}
    for start in range(at + width, at + width + number * entry.size, entry.size):
        if start + entry.size > len(data):
            break
        tag, kind, count, value = entry.unpack_from(data, start)
        if order == ">":  # a value stands at the left of its place
            size = TIFF_SIZES.get(kind, 1)
            value = value[:size][::-1] + value[size:]
        found.setdefault(tag, (kind, count, value))
    return found


def _check_tiff(data: bytes) -> None:
    """Refuse what Pillow would spend minutes and gigabytes on before it knows the size."""
    found = _directory(data)
    numbers = (count for tag, (kind, count, _) in found.items() if kind not in (1, 2, 6, 7) or 272 < tag < 326)
    if max(numbers, default=0) > 2**16:
        raise Unsuitable("This TIFF is cut into far too many pieces; save it again as PNG.")
    kind, _, value = found.get(259, (3, 1, b"\1\0\0\0"))
    if int.from_bytes(value[: TIFF_SIZES.get(kind, 1)], "little") not in COMPRESSIONS:
        raise Unsuitable("This TIFF is compressed in a way that is not read here; save it as PNG or JPEG.")


_TURNS: dict[int, PIL.Image.Transpose] = dict(enumerate((PIL.Image.Transpose[name] for name in (
    "FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90",
)), start=2))  # fmt: skip


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """8-bit RGB: 16 and 32 bit scaled to their range, transparency on white; in strips, so that memory stays small."""
    scale = None
    if picture.mode.startswith("I") or picture.mode == "F":
        # 16-bit files use the whole range; other integers and floats have no declared range, so theirs is taken
        scale = (0.0, 65535.0) if picture.mode.startswith("I;16") else _extremes(picture)
        if picture.mode == "I" and scale[0] >= 0 and scale[1] <= 65535:
            scale = 0.0, 65535.0
    width, height = picture.size
    factor = max(1, max(width, height) // (2 * MAX_SIDE))
    step = factor * max(1, 2**20 // (width * factor))
    whole = PIL.Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, step):
        strip = picture.crop((0, top, width, min(top + step, height)))
        strip.info = picture.info  # where a palette keeps its transparent colour
        whole.paste(_strip(strip, scale).reduce(factor), (0, top // factor))
    return whole


def _extremes(picture: PIL.Image.Image) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    step = max(1, 2**20 // picture.width)
    for top in range(0, picture.height, step):
        values = np.asarray(picture.crop((0, top, picture.width, min(top + step, picture.height))))
        if (finite := values[np.isfinite(values)]).size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 1.0)


def _strip(picture: PIL.Image.Image, scale: tuple[float, float] | None) -> PIL.Image.Image:
    if scale is not None:
        low, high = scale
        scaled = (np.asarray(picture, dtype=np.float64) - low) / (high - low if high > low else 1.0) * 255
        return PIL.Image.fromarray(np.nan_to_num(scaled).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")
