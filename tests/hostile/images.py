"""Hostile image files, made when they are asked for: `IMAGES[name]()` gives the bytes.

Bombs are as large as the limit on pixels lets them be, and a few hundred kilobytes as files. Nothing here is random
but what has a seed.
"""

from __future__ import annotations

import io
import itertools
import random
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import PIL.Image

from interp import settings

IMAGES: dict[str, Callable[[], bytes]] = {}
OPENS: set[str] = set()
"""Those that are photos all the same, and have to open."""
SMALL = 24, 16


def hostile(name: str, opens: bool = False) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    def add(make: Callable[[], bytes]) -> Callable[[], bytes]:
        assert name not in IMAGES, name
        IMAGES[name] = make
        if opens:
            OPENS.add(name)
        return make

    return add


def side() -> int:
    """Of the largest square that is read."""
    return int(settings.SETTINGS.pixels**0.5)


# ----------------------------------------------------------------------------------------------------------- writers


def chunk(kind: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int, height: int, depth: int, colour: int, body: bytes, before: bytes = b"", after: bytes = b"",
    interlaced: int = 0,
) -> bytes:  # fmt: skip
    """A PNG of a body that is compressed already; `before`: chunks before the pixels."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    return b"\x89PNG\r\n\x1a\n" + head + before + chunk(b"IDAT", body) + after + chunk(b"IEND")


CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def packed(size: int) -> bytes:
    """So many zero bytes, compressed, without ever having them all."""
    compressor, zeros = zlib.compressobj(9), bytes(2**20)
    parts = [compressor.compress(zeros) for _ in range(size // 2**20)] + [compressor.compress(bytes(size % 2**20))]
    return b"".join(parts) + compressor.flush()


def plane(width: int, height: int, depth: int, colour: int) -> int:
    return height * (1 + (width * depth * CHANNELS[colour] + 7) // 8)


def adam7(width: int, height: int, depth: int, colour: int) -> int:
    """Bytes of an interlaced picture before they are compressed."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    sizes = ((-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in passes)
    return sum(plane(w, h, depth, colour) for w, h in sizes if w > 0 and h > 0)


def tiff(tags: dict[int, tuple[int, int, int | bytes]], data: bytes = b"", big: bool = False, after: int = 0) -> bytes:
    """A TIFF of one directory: {tag: (type, count, value or bytes that lie elsewhere)}; `data` begins at byte 8 (16)."""
    offset, entry, word = (16, "<HHQQ", 8) if big else (8, "<HHII", 4)
    place = offset + len(data)
    extra, entries = b"", b""
    end = place + len(tags) * struct.calcsize(entry) + (8 if big else 2) + word
    for tag, (kind, count, value) in tags.items():
        if isinstance(value, bytes):
            where, extra = end + len(extra), extra + value
            value = where if len(value) > word else int.from_bytes(value, "little")
        entries += struct.pack(entry, tag, kind, count, value)
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, place) if big else struct.pack("<2sHI", b"II", 42, place)
    number = struct.pack("<Q" if big else "<H", len(tags))
    return head + data + number + entries + struct.pack("<Q" if big else "<I", after) + extra


BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, LONG8 = 1, 2, 3, 4, 5, 7, 16


def layout(
    width: int, height: int, bits: tuple[int, ...], photometric: int, compression: int = 1, rows: int = 0, sample: int = 1
) -> dict[int, tuple[int, int, int | bytes]]:  # fmt: skip
    """The tags of a picture in one strip that begins at byte 8."""
    many = len(bits)
    tags: dict[int, tuple[int, int, int | bytes]] = {
        256: (LONG, 1, width), 257: (LONG, 1, height), 258: (SHORT, many, struct.pack(f"<{many}H", *bits)),
        259: (SHORT, 1, compression), 262: (SHORT, 1, photometric), 273: (LONG, 1, 8), 277: (SHORT, 1, many),
        278: (LONG, 1, rows or height), 279: (LONG, 1, 0),
    }  # fmt: skip
    return tags | ({339: (SHORT, many, struct.pack(f"<{many}H", *[sample] * many))} if sample != 1 else {})


def strip(width: int, height: int, bits: tuple[int, ...], photometric: int, **more: int) -> bytes:
    """A picture of zeros in one deflated strip."""
    body = packed(height * ((width * sum(bits) + 7) // 8))
    tags = layout(width, height, bits, photometric, 8, **more)
    return tiff(tags | {279: (LONG, 1, len(body))}, body)


def saved(picture: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def small(mode: str = "RGB") -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SMALL[1], SMALL[0], 3), np.uint8)
    return PIL.Image.fromarray(pixels).convert(mode)


def half() -> int:
    """Of the largest square of a kind that takes twice the time and memory: TIFF, WebP, more than 8 bits."""
    return int((settings.SETTINGS.pixels // 2) ** 0.5)


def blank(mode: str, edge: int = 0) -> PIL.Image.Image:
    return PIL.Image.new(mode, (edge or side(),) * 2)


# ------------------------------------------------------------------------------- as large as is read, in every mode

for _depth, _colour, _name in (
    (1, 0, "1"), (2, 0, "L2"), (4, 0, "L4"), (8, 0, "L"), (16, 0, "I16"), (8, 2, "RGB"), (16, 2, "RGB16"), (1, 3, "P1"),
    (8, 3, "P"), (8, 4, "LA"), (16, 4, "LA16"), (8, 6, "RGBA"), (16, 6, "RGBA16"),
):  # fmt: skip

    def _flat(depth: int = _depth, colour: int = _colour) -> bytes:
        palette = chunk(b"PLTE", bytes(3 * 2**depth)) + chunk(b"tRNS", bytes(2**depth)) if colour == 3 else b""
        edge = half() if depth == 16 else side()
        return png(edge, edge, depth, colour, packed(plane(edge, edge, depth, colour)), palette)

    def _woven(depth: int = _depth, colour: int = _colour) -> bytes:
        palette = chunk(b"PLTE", bytes(3 * 2**depth)) if colour == 3 else b""
        edge = half() if depth == 16 else side()
        return png(edge, edge, depth, colour, packed(adam7(edge, edge, depth, colour)), palette, interlaced=1)

    hostile(f"png/bomb/{_name}", opens=True)(_flat)
    hostile(f"png/bomb/interlaced/{_name}", opens=True)(_woven)

for _bits, _photometric, _more, _name in (
    ((1,), 0, {}, "1"), ((8,), 1, {}, "L"), ((16,), 1, {}, "I16"), ((32,), 1, {"sample": 3}, "F"),
    ((32,), 1, {"sample": 2}, "I"), ((32,), 1, {}, "U32"), ((8, 8, 8), 2, {}, "RGB"), ((16, 16, 16), 2, {}, "RGB16"),
    ((8, 8, 8, 8), 5, {}, "CMYK"), ((16,) * 4, 5, {}, "CMYK16"), ((8, 8, 8), 8, {}, "LAB"), ((8, 8), 1, {}, "LA"),
    ((8, 8, 8), 6, {}, "YCbCr"),
):  # fmt: skip
    hostile(f"tiff/bomb/{_name}")(
        lambda b=_bits, p=_photometric, m=_more: strip(half(), half(), b, p, **m)  # type: ignore[misc]
    )
for _name in ("1", "L", "I16", "F", "I", "RGB", "CMYK"):
    OPENS.add(f"tiff/bomb/{_name}")


@hostile("tiff/bomb/rows of one line", opens=True)
def _lines() -> bytes:
    row = zlib.compress(bytes(half()))
    many = half()
    places = struct.pack(f"<{many}I", *[8] * many)
    tags = layout(half(), half(), (8,), 1, 8, rows=1)
    return tiff(
        tags | {273: (LONG, many, places), 279: (LONG, many, struct.pack(f"<{many}I", *[len(row)] * many))}, row
    )


@hostile("tiff/bomb/tiles", opens=True)
def _tiles() -> bytes:
    tile = zlib.compress(bytes(256 * 256))
    many = (-(-half() // 256)) ** 2
    tags = layout(half(), half(), (8,), 1, 8)
    del tags[273], tags[278], tags[279]
    tags |= {
        322: (SHORT, 1, 256), 323: (SHORT, 1, 256), 324: (LONG, many, struct.pack(f"<{many}I", *[8] * many)),
        325: (LONG, many, struct.pack(f"<{many}I", *[len(tile)] * many)),
    }  # fmt: skip
    return tiff(dict(sorted(tags.items())), tile)


@hostile("tiff/bomb/the smallest tiles")
def _grains() -> bytes:
    many = (-(-half() // 16)) ** 2
    tile = bytes(256)
    tags = layout(half(), half(), (8,), 1, 1)
    del tags[273], tags[278], tags[279]
    tags |= {
        322: (SHORT, 1, 16), 323: (SHORT, 1, 16), 324: (LONG, many, struct.pack(f"<{many}I", *[8] * many)),
        325: (LONG, many, struct.pack(f"<{many}I", *[len(tile)] * many)),
    }  # fmt: skip
    return tiff(dict(sorted(tags.items())), tile)


@hostile("tiff/tiles of one pixel")
def _pixels() -> bytes:
    many = 2_000_000
    tags = layout(2000, 1000, (8,), 1, 1)
    del tags[273], tags[278], tags[279]
    places = bytes([8]) * many
    tags |= {322: (SHORT, 1, 1), 323: (SHORT, 1, 1), 324: (BYTE, many, places), 325: (BYTE, many, places)}
    return tiff(dict(sorted(tags.items())), b"\0")


@hostile("tiff/strips without end")
def _strips() -> bytes:
    many = 2_000_000
    tags = layout(1000, 1000, (8,), 1, 1, rows=1)
    return tiff(tags | {273: (LONG, many, struct.pack("<I", 8) * many), 279: (BYTE, many, bytes([1]) * many)}, bytes(8))


for _kind, _options in (
    ("PNG", {}), ("BMP", {}), ("GIF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "packbits"}),
    ("TIFF", {"compression": "jpeg"}), ("TIFF", {"compression": "zstd"}), ("TIFF", {"compression": "lzma"}),
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"subsampling": 0, "quality": 100}),
):  # fmt: skip
    hostile(f"{_kind.lower()}/bomb/saved{''.join(f' {v}' for v in _options.values())}")(
        lambda k=_kind, o=_options: saved(  # type: ignore[misc]
            blank("L" if k in ("GIF", "BMP") else "RGB", half() if k == "TIFF" else 0), k, **o
        )
    )
for _mode, _kind in (("L", "JPEG"), ("CMYK", "JPEG"), ("YCbCr", "JPEG"), ("RGB", "BMP"), ("1", "BMP"), ("1", "TIFF")):
    hostile(f"{_kind.lower()}/bomb/of {_mode}", opens=True)(
        lambda m=_mode, k=_kind: saved(blank(m, {"TIFF": half(), "BMP": 1800}.get(k, 0)), k)  # type: ignore[misc]
    )
hostile("jpeg/bomb/progressive CMYK", opens=True)(lambda: saved(blank("CMYK"), "JPEG", progressive=True))
hostile("tiff/bomb/fax", opens=True)(lambda: saved(blank("1", half()), "TIFF", compression="group4"))
hostile("webp/bomb/lossy", opens=True)(lambda: saved(blank("RGB", half()), "WEBP", method=0))
hostile("webp/bomb/lossless with alpha", opens=True)(
    lambda: saved(blank("RGBA", half()), "WEBP", lossless=True, method=0)
)


def noise(mode: str, pixels: int) -> PIL.Image.Image:
    """What compresses least and so takes longest to unpack."""
    edge = int(pixels**0.5)
    shape = (edge, edge) if mode == "L" else (edge, edge, len(mode))
    return PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, np.uint8), mode)


for _mode, _kind, _options in (
    ("RGB", "PNG", {"compress_level": 1}), ("RGB", "WEBP", {"lossless": True, "method": 0, "quality": 0}),
    ("RGB", "JPEG", {"quality": 95}), ("RGB", "JPEG", {"quality": 95, "progressive": True}), ("L", "GIF", {}),
    ("RGB", "TIFF", {"compression": "tiff_lzw"}),
):  # fmt: skip
    hostile(f"{_kind.lower()}/noise{''.join(f' {k}' for k in _options)}", opens=True)(
        lambda m=_mode, k=_kind, o=_options: saved(noise(m, 1_500_000), k, **o)  # type: ignore[misc]
    )


# ------------------------------------------------------------------------------------------------- PNG: what stands beside


def beside(before: bytes = b"", after: bytes = b"") -> bytes:
    body = saved(small(), "PNG")
    return body[:33] + before + body[33:-12] + after + body[-12:]


_MEGA = zlib.compress(bytes(50_000_000), 9)
for _kind, _body in (
    (b"zTXt", b"Comment\0\0" + _MEGA), (b"iCCP", b"profile\0\0" + _MEGA), (b"iTXt", b"Comment\0\1\0\0\0" + _MEGA),
    (b"tEXt", b"Comment\0" + bytes(9_000_000)), (b"eXIf", bytes(9_000_000)), (b"sPLT", bytes(9_000_000)),
    (b"abCd", bytes(9_000_000)), (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\n\n" + b"9" * 10_000_000)),
    (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x" * 4_000_000),
):  # fmt: skip
    hostile(f"png/giant {_kind.decode()}, {_body[:7].decode().strip(chr(0)) or 'zeros'} {len(_body)}")(
        partial(beside, chunk(_kind, _body))
    )
for _kind in (
    b"tEXt",
    b"zTXt",
    b"iTXt",
    b"abCd",
    b"IDAT",
    b"PLTE",
    b"gAMA",
    b"pHYs",
    b"fdAT",
    b"acTL",
    b"iCCP",
    b"eXIf",
):
    _body = {b"tEXt": b"a\0b", b"zTXt": b"a\0\0" + zlib.compress(b"b"), b"iTXt": b"a\0\0\0\0\0b", b"pHYs": bytes(9),
             b"gAMA": bytes(4), b"acTL": bytes(8), b"fdAT": bytes(8)}.get(_kind, b"")  # fmt: skip
    hostile(f"png/half a million {_kind.decode()}")(
        lambda one=chunk(_kind, _body): beside(one * min(500_000, 9_000_000 // len(one)))  # type: ignore[misc]
    )
    hostile(f"png/half a million {_kind.decode()} at the end")(
        lambda one=chunk(_kind, _body): beside(after=one * min(500_000, 9_000_000 // len(one)))  # type: ignore[misc]
    )
hostile("png/many texts that are large unpacked")(
    lambda: beside(b"".join(chunk(b"zTXt", b"%d\0\0" % n + zlib.compress(bytes(1_000_000), 9)) for n in range(900)))
)
hostile("png/no end")(lambda: saved(small(), "PNG")[:-12])
hostile("png/no pixels")(lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", *SMALL, 8, 2, 0, 0, 0)))
hostile("png/two headers")(
    lambda: beside(chunk(b"IHDR", struct.pack(">IIBBBBB", side() * 2, side() * 2, 8, 2, 0, 0, 0)))
)
hostile("png/a chunk of 4 GB")(lambda: beside(b"\xff\xff\xff\xfftEXt"))
hostile("png/a negative chunk")(lambda: beside(b"\x80\x00\x00\x00tEXt"))
hostile("png/a wrong sum")(lambda: saved(small(), "PNG")[:29] + bytes(4) + saved(small(), "PNG")[33:])
hostile("png/pixels short of the header")(lambda: png(side(), side(), 8, 6, zlib.compress(bytes(100))))
hostile("png/more pixels than the header", opens=True)(lambda: png(*SMALL, 8, 2, packed(2 * 10**8)))
hostile("png/zlib in itself")(lambda: png(*SMALL, 8, 2, zlib.compress(packed(10**8))))
hostile("png/a palette of one", opens=False)(
    lambda: png(*SMALL, 8, 3, zlib.compress(b"\0" + b"\xff" * 24 * 16), chunk(b"PLTE", bytes(3)))
)
for _depth, _colour in itertools.product((0, 3, 8, 64, 255), (1, 5, 7, 255)):
    hostile(f"png/depth {_depth}, colour {_colour}")(
        lambda d=_depth, c=_colour: png(*SMALL, d, c, zlib.compress(bytes(9999)))  # type: ignore[misc]
    )
for _name, _size in {
    "nothing": (0, 0), "no width": (0, 64), "2^31": (2**31 - 1, 2**31 - 1), "2^32": (2**32 - 1, 2**32 - 1),
    "one row": (2**20, 1), "one column": (1, 2**20), "a ribbon": (30_000, 30), "just over": (10**4, 10**4),
    "over the bomb of Pillow": (14_000, 14_000), "tiny": (1, 1), "seven": (7, 7),
}.items():  # fmt: skip
    hostile(f"png/size {_name}")(lambda s=_size: png(*s, 8, 2, zlib.compress(bytes(1000))))  # type: ignore[misc]
    hostile(f"gif/size {_name}")(
        lambda s=_size: b"GIF89a" + struct.pack("<HH", *(each & 0xFFFF for each in s)) + saved(small(), "GIF")[10:]  # type: ignore[misc]
    )
    hostile(f"bmp/size {_name}")(
        lambda s=_size: saved(small(), "BMP")[:18] + struct.pack("<II", *s) + saved(small(), "BMP")[26:]  # type: ignore[misc]
    )
    hostile(f"tiff/size {_name}")(lambda s=_size: tiff(layout(*s, (8, 8, 8), 2), bytes(64)))  # type: ignore[misc]


def apng(frames: int) -> bytes:
    return saved(small(), "PNG", save_all=True, append_images=[small().rotate(n % 4 * 90) for n in range(1, frames)])


hostile("png/animation of a thousand frames", opens=True)(lambda: apng(1000))
hostile("png/animation that says four billion frames", opens=True)(
    lambda: beside(chunk(b"acTL", struct.pack(">II", 2**32 - 1, 0)))
)
hostile("png/animation with a frame outside")(
    lambda: beside(
        chunk(b"acTL", struct.pack(">II", 2, 0))
        + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 2**31 - 1, 2**31 - 1, 2**31 - 1, 9, 0, 0, 0, 0))
    )
)


# -------------------------------------------------------------------------------------------------------------- JPEG


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def jpeg(before: bytes, **options: object) -> bytes:
    """A photo with segments after its first two bytes."""
    body = saved(small(), "JPEG", **options)
    return body[:2] + before + body[2:]


def scans(picture: PIL.Image.Image, many: int) -> bytes:
    """A progressive photo in which the last scan that refines stands many times over."""
    body = saved(picture, "JPEG", progressive=True)
    starts = [at for at in range(len(body) - 1) if body[at : at + 2] == b"\xff\xda"]
    # the first AC scan of the last component, with the Huffman table before it
    table = body.rfind(b"\xff\xc4", 0, starts[3])
    scan = body[table : body.find(b"\xff\xc4", starts[3])]
    return body[:table] + scan * many + body[-2:]


hostile("jpeg/three thousand scans")(lambda: scans(PIL.Image.new("RGB", (2000, 2000)), 3000))
hostile("jpeg/three hundred scans of the largest")(lambda: scans(blank("RGB"), 300))
hostile("jpeg/sixty scans of the largest")(lambda: scans(blank("RGB"), 57))
hostile("jpeg/twenty scans of the largest")(lambda: scans(blank("RGB"), 17))
hostile("jpeg/a million comments")(lambda: jpeg(segment(0xFE, b"") * 1_000_000))
hostile("jpeg/a million application segments")(lambda: jpeg(segment(0xE5, b"") * 1_000_000))
hostile("jpeg/a million fill bytes")(lambda: jpeg(b"\xff" * 5_000_000))
hostile("jpeg/rubbish between segments")(lambda: jpeg(b"\x00" * 5_000_000))
hostile("jpeg/profile in 255 parts", opens=True)(
    lambda: jpeg(b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 255]) + bytes(35_000)) for n in range(1, 256)))
)
hostile("jpeg/a thousand quantisation tables")(lambda: jpeg(segment(0xDB, bytes(65)) * 100_000))
hostile("jpeg/a thousand Huffman tables")(lambda: jpeg(segment(0xC4, bytes(17)) * 100_000))
hostile("jpeg/photoshop blocks")(lambda: jpeg(segment(0xED, b"Photoshop 3.0\0" + (b"8BIM" + bytes(8)) * 5000) * 100))
hostile("jpeg/comments of 64 kB", opens=True)(lambda: jpeg(segment(0xFE, bytes(65_000)) * 140))
hostile("jpeg/xmp of 9 MB", opens=False)(
    lambda: jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"<tiff:Orientation" * 3500) * 140)
)
hostile("jpeg/twelve bits")(lambda: saved(small(), "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"))
hostile("jpeg/arithmetic coding")(lambda: saved(small(), "JPEG").replace(b"\xff\xc0", b"\xff\xc9"))
hostile("jpeg/lossless")(lambda: saved(small(), "JPEG").replace(b"\xff\xc0", b"\xff\xc3"))
for _name, _size in {
    "nothing": (0, 0),
    "65535": (65535, 65535),
    "height unknown": (0, 64),
    "ribbon": (20, 65000),
}.items():
    hostile(f"jpeg/size {_name}")(
        lambda s=_size: (
            lambda body: (
                body[: body.index(b"\xff\xc0") + 5]  # type: ignore[misc]
                + struct.pack(">HH", *s)
                + body[body.index(b"\xff\xc0") + 9 :]
            )
        )(saved(small(), "JPEG"))
    )


# -------------------------------------------------------------------------------------------------------------- EXIF


def exif(entries: list[tuple[int, int, int, int]], after: int = 0, extra: bytes = b"") -> bytes:
    body = b"".join(struct.pack("<HHII", *each) for each in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + struct.pack("<I", after) + extra


EXIF = {
    "overlapping": exif([(n + 300, UNDEFINED, 60_000, 0) for n in range(4000)], extra=bytes(12_000)),
    "four billion": exif([(0x0112, SHORT, 2**32 - 1, 8), (0x010F, ASCII, 2**32 - 1, 8)]),
    "next is itself": exif([(0x0112, SHORT, 1, 6)], after=8),
    "sub-directories in themselves": exif([(0x8769, LONG, 1, 8), (0x8825, LONG, 1, 8), (0xA005, LONG, 1, 8)]),
    "orientation 0": exif([(0x0112, SHORT, 1, 0)]),
    "orientation 65535": exif([(0x0112, SHORT, 1, 65535)]),
    "orientation as text": exif([(0x0112, ASCII, 4, int.from_bytes(b"abc\0", "little"))]),
    "orientation as a ratio": exif([(0x0112, RATIONAL, 1, 8)]),
    "orientation twice": exif([(0x0112, SHORT, 1, 3), (0x0112, SHORT, 1, 6)]),
    "unknown type": exif([(0x0112, 99, 1, 6)]),
    "maker notes": exif([(0x8769, LONG, 1, 26)], extra=struct.pack("<HHHII", 1, 0x927C, UNDEFINED, 2**31, 0)),
    "cut off": b"II*\0\x08\0\0\0\xff\xff",
    "no header": b"XX",
    "offset outside": b"II*\0\xff\xff\xff\xff",
    "ratios over nothing": exif([(0x011A, RATIONAL, 4000, 8), (0x011B, RATIONAL, 1, 8), (0x0128, SHORT, 1, 2)]),
}
for _name, _body in EXIF.items():
    for _kind in ("JPEG", "PNG", "WEBP"):
        if len(_body) < 60_000 or _kind != "JPEG":
            hostile(f"{_kind.lower()}/exif {_name}", opens=True)(
                lambda k=_kind, b=_body: saved(small(), k, exif=b"Exif\0\0" + b)  # type: ignore[misc]
            )
hostile("jpeg/exif of 9 MB in parts", opens=True)(
    lambda: jpeg(
        segment(0xE1, b"Exif\0\0" + exif([(n, UNDEFINED, 9_000_000, 0) for n in range(300, 5000)]))
        + segment(0xE1, b"Exif\0\0" + bytes(64_000)) * 140
    )
)
hostile("png/exif of 9 MB that overlaps", opens=True)(
    lambda: beside(chunk(b"eXIf", exif([(n, UNDEFINED, 8_000_000, 0) for n in range(60_000)], extra=bytes(8_000_000))))
)


# --------------------------------------------------------------------------------------------------------------- GIF


def gif(before: bytes = b"", frames: int = 1) -> bytes:
    """A GIF with extensions before its first frame, which stands there many times."""
    body = saved(small("P"), "GIF")
    at = body.index(b"\x2c", 13 + 3 * 2 ** ((body[10] & 7) + 1))
    return body[:at] + before + body[at:-1] * frames + b";"


hostile("gif/nine MB of comments")(lambda: gif(b"!\xfe" + (b"\xff" + bytes(255)) * 35_000 + b"\0"))
hostile("gif/comments of one byte")(lambda: gif(b"!\xfe" + b"\x01a" * 4_500_000 + b"\0"))
hostile("gif/a million comments")(lambda: gif(b"!\xfe\x01a\0" * 1_800_000))
hostile("gif/a million extensions")(lambda: gif(b"!\xf9\x04\0\0\0\0\0" * 1_000_000))
hostile("gif/a million unknown bytes")(lambda: gif(b"\x01" * 9_000_000))
hostile("gif/profile without end")(lambda: gif(b"!\xff\x0bICCRGBG1012" + b"\x01a" * 4_000_000 + b"\0"))
hostile("gif/ten thousand frames", opens=True)(lambda: gif(frames=1)[:-1] + gif()[13 + 768 :] * 1)
hostile("gif/frames without end")(lambda: gif(frames=10_000))
hostile("gif/a frame outside")(
    lambda: (lambda body, at: body[:at] + b"\x2c" + struct.pack("<HHHH", 65000, 65000, 500, 500) + body[at + 9 :])(
        gif(), gif().index(b"\x2c", 781)
    )
)
hostile("gif/no colours", opens=False)(lambda: b"GIF89a" + struct.pack("<HHBBB", *SMALL, 0, 0, 0) + gif()[13 + 768 :])
hostile("gif/code size 12")(
    lambda: (lambda body, at: body[:at] + b"\x0c" + body[at + 1 :])(gif(), gif().index(b"\x2c", 781) + 10)
)
hostile("gif/sub-blocks of one byte")(
    lambda: gif()[: gif().index(b"\x2c", 781) + 11] + b"\x01\x00" * 4_000_000 + b"\0;"
)
hostile("gif/largest screen with a small frame", opens=True)(
    lambda: gif()[:6] + struct.pack("<HH", side(), side()) + gif()[10:]
)

# -------------------------------------------------------------------------------------------------------------- WebP


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(each)) + each + bytes(len(each) % 2) for kind, each in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_frames(canvas: int, many: int) -> bytes:
    """An animation on a canvas whose frames are small ones."""
    picture = saved(small(), "WEBP", lossless=True)[12:]
    u24 = lambda number: struct.pack("<I", number)[:3]  # noqa: E731
    frame = u24(0) + u24(0) + u24(SMALL[0] - 1) + u24(SMALL[1] - 1) + u24(10) + b"\0" + picture
    extended = b"\x12\0\0\0" + u24(canvas - 1) + u24(canvas - 1)
    return riff((b"VP8X", extended), (b"ANIM", bytes(6)), *[(b"ANMF", frame)] * many)


hostile("webp/animation of seven thousand frames", opens=True)(lambda: webp_frames(64, 7_000))
hostile("webp/the largest canvas with a small frame", opens=True)(lambda: webp_frames(half(), 2))
hostile("webp/a canvas over the limit")(lambda: webp_frames(16_000, 2))
hostile("webp/a million unknown chunks")(lambda: saved(small(), "WEBP") + b"ABCD\0\0\0\0" * 1_000_000)
hostile("webp/unknown chunks within")(
    lambda: riff((b"VP8X", b"\0\0\0\0" + struct.pack("<I", SMALL[0] - 1)[:3] + struct.pack("<I", SMALL[1] - 1)[:3]),
                 *[(b"ABCD", b"")] * 1_000_000, (b"VP8L", saved(small(), "WEBP", lossless=True)[20:]))
)  # fmt: skip
hostile("webp/a frame larger than the canvas")(
    lambda: webp_frames(64, 1).replace(struct.pack("<I", SMALL[0] - 1)[:3], b"\xff\xff\x00")
)
hostile("webp/no frames")(lambda: webp_frames(64, 0))
hostile("webp/chunk of 4 GB")(lambda: webp_frames(64, 1)[:40] + b"\xff\xff\xff\xff" + webp_frames(64, 1)[44:])

# --------------------------------------------------------------------------------------------------------------- BMP


def bmp(
    width: int, height: int, bits: int, compression: int, body: bytes, colours: int = 0, palette: bytes = b""
) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, colours, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(palette) + len(body), 0, 0, 54 + len(palette)) + head + palette + body


hostile("bmp/runs of one pixel")(lambda: bmp(3000, 3000, 8, 1, b"\x01\x00" * 4_500_000, 256, bytes(1024)))
hostile("bmp/runs of 255")(lambda: bmp(side(), side(), 8, 1, b"\xff\x00" * (side() ** 2 // 255 + 1), 256, bytes(1024)))
hostile("bmp/runs that jump")(lambda: bmp(side(), side(), 8, 1, b"\x00\x02\xff\xff" * 2_000_000, 256, bytes(1024)))
hostile("bmp/line ends alone")(lambda: bmp(side(), side(), 8, 1, b"\x00\x00" * 4_500_000, 256, bytes(1024)))
hostile("bmp/runs of four bits")(lambda: bmp(3000, 3000, 4, 2, b"\x01\x00" * 4_500_000, 16, bytes(64)))
hostile("bmp/a jpeg within")(lambda: bmp(*SMALL, 0, 4, saved(small(), "JPEG")))
hostile("bmp/upside down", opens=True)(lambda: bmp(24, -16, 24, 0, bytes(72 * 16)))
hostile("bmp/four billion colours")(lambda: bmp(*SMALL, 8, 0, bytes(24 * 16), 2**32 - 1))
hostile("bmp/no colours")(lambda: bmp(*SMALL, 8, 0, bytes(24 * 16), 0))
hostile("bmp/pixels short of the header")(lambda: bmp(side(), side(), 32, 0, bytes(100)))
hostile("bmp/an unknown compression")(lambda: bmp(*SMALL, 24, 99, bytes(9999)))
hostile("bmp/bit fields of nothing")(lambda: bmp(*SMALL, 32, 3, bytes(9999)))
hostile("bmp/a header of 4 GB")(lambda: b"BM" + bytes(8) + struct.pack("<II", 54, 2**32 - 1) + bytes(100))
hostile("bmp/the smallest height there is")(lambda: bmp(24, -(2**31), 24, 0, bytes(9999)))

# -------------------------------------------------------------------------------------------------------------- TIFF

_PHOTO = layout(*SMALL, (8, 8, 8), 2)
for _name, _tags in {
    "a tag of 4 GB": {700: (UNDEFINED, 2**32 - 1, 8)},
    "tags that overlap": {n: (UNDEFINED, 1000, 8) for n in range(1000, 60_000)},
    "sixty thousand tags": {n: (SHORT, 1, 8) for n in range(400, 60_000)},
    "strips of no rows": {278: (LONG, 1, 0)},
    "rows without end": {278: (LONG, 1, 2**32 - 1)},
    "sixty-four bits": {258: (SHORT, 3, struct.pack("<3H", 64, 64, 64))},
    "no bits": {258: (SHORT, 3, bytes(6))},
    "65,535 samples": {277: (SHORT, 1, 65535)},
    "no samples": {277: (SHORT, 1, 0)},
    "an unknown compression": {259: (SHORT, 1, 65000)},
    "jbig": {259: (SHORT, 1, 34661)},
    "old jpeg": {259: (SHORT, 1, 6)},
    "lzma": {259: (SHORT, 1, 34925)},
    "zstd": {259: (SHORT, 1, 50000)},
    "webp within": {259: (SHORT, 1, 50001)},
    "thunderscan": {259: (SHORT, 1, 32809)},
    "jpeg 2000": {259: (SHORT, 1, 34712)},
    "an unknown photometric": {262: (SHORT, 1, 999)},
    "an offset outside": {273: (LONG, 1, 2**32 - 1)},
    "a byte count of 4 GB": {279: (LONG, 1, 2**32 - 1)},
    "planes apart": {284: (SHORT, 1, 2)},
    "predictor 3": {317: (SHORT, 1, 3), 259: (SHORT, 1, 8)},
    "a palette of one": {320: (SHORT, 3, bytes(6)), 262: (SHORT, 1, 3)},
    "tiles of 4 GB": {322: (LONG, 1, 2**32 - 1), 323: (LONG, 1, 2**32 - 1), 324: (LONG, 1, 8), 325: (LONG, 1, 8)},
    "tiles of nothing": {322: (LONG, 1, 0), 323: (LONG, 1, 0), 324: (LONG, 1, 8), 325: (LONG, 1, 8)},
    "sub-directories in themselves": {330: (LONG, 1, 8), 34665: (LONG, 1, 8), 34853: (LONG, 1, 8)},
    "subsampling of nothing": {262: (SHORT, 1, 6), 530: (SHORT, 2, 0), 259: (SHORT, 1, 7)},
    "orientation 9": {274: (SHORT, 1, 9)},
    "fill order 9": {266: (SHORT, 1, 9)},
    "ratios over nothing": {282: (RATIONAL, 1, bytes(8)), 283: (RATIONAL, 1, bytes(8))},
    "xmp of rubbish": {700: (BYTE, 900, b"<x:xmpmeta" * 90)},
    "extra samples without end": {338: (SHORT, 60_000, bytes(120_000))},
}.items():  # fmt: skip
    hostile(f"tiff/{_name}")(lambda t=_tags: tiff(dict(sorted((_PHOTO | t).items())), bytes(24 * 16 * 3)))  # type: ignore[misc]
    if len(_tags) < 1000 and all(0 <= value < 2**32 for _, _, value in _tags.values() if isinstance(value, int)):
        hostile(f"tiff/big/{_name}")(
            lambda t=_tags: tiff(  # type: ignore[misc]
                dict(sorted((_PHOTO | {273: (LONG, 1, 16)} | t).items())), bytes(24 * 16 * 3), big=True
            )
        )
hostile("tiff/big/directory of 2^60 entries")(lambda: struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2**60) + bytes(9999))
hostile("tiff/big/offset of 2^63")(lambda: struct.pack("<2sHHHQ", b"II", 43, 8, 0, 2**63) + bytes(99))
hostile("tiff/the next directory is the first", opens=True)(
    lambda: tiff(_PHOTO, bytes(24 * 16 * 3), after=8 + 24 * 16 * 3)
)
hostile("tiff/the directory is the header")(lambda: b"II*\0\0\0\0\0" + bytes(100))
hostile("tiff/big endian directory", opens=False)(lambda: b"MM\0*\0\0\0\x08\xff\xff" + bytes(100_000))


@hostile("tiff/a thousand frames", opens=True)
def _frames() -> bytes:
    return saved(small(), "TIFF", save_all=True, append_images=[small()] * 999)


# ------------------------------------------------------------------------------------- no images, and what looks like one

for _name, _data in {
    "nothing": b"", "one byte": b"\x89", "zeros": bytes(100_000), "text": b"hello " * 1000,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "html": b"<html><script>alert(1)</script></html>", "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
    "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n", "zip": b"PK\x03\x04" + bytes(1000), "pickle": b"\x80\x04cos\nsystem\n(S'touch x'\ntR.",
    "a path": b"/etc/passwd", "an address": b"http://127.0.0.1/x.png", "photoshop": b"8BPS\0\1" + bytes(1000),
    "icon": b"\0\0\1\0\1\0" + bytes(1000), "fits": b"SIMPLE  =                    T" + b" " * 9000, "ppm": b"P6 99999 99999 255\n" + bytes(1000),
    "ppm of few pixels": b"P3\n8 8\n255\n" + b"0 " * 192, "dds": b"DDS |" + bytes(1000), "pcx": b"\x0a\x05\x01\x08" + bytes(1000),
    "xbm": b"#define a_width 64\n#define a_height 64\nstatic char a[] = {\n" + b"0x00," * 512 + b"};", "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(1000),
    "avif": b"\0\0\0\x1cftypavif" + bytes(1000), "qoi": b"qoif" + struct.pack(">II", 64, 64) + b"\3\0" + bytes(999), "tga": bytes(2) + b"\2" + bytes(9) + struct.pack("<HH", 64, 64) + b"\x18\0" + bytes(12288),
    "wmf": b"\xd7\xcd\xc6\x9a" + bytes(1000), "sgi": b"\x01\xda\0\1" + bytes(1000), "icns": b"icns\0\0\3\xf0" + bytes(1000), "mpeg": b"\0\0\1\xb3" + bytes(1000),
    "gzip": b"\x1f\x8b\x08" + bytes(1000), "elf": b"\x7fELF" + bytes(1000),
}.items():  # fmt: skip
    hostile(f"other/{_name}")(lambda d=_data: d)  # type: ignore[misc]
for _kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
    hostile(f"{_kind.lower()}/magic alone")(lambda k=_kind: saved(small(), k)[:16])  # type: ignore[misc]
    hostile(f"{_kind.lower()}/a zip at the end", opens=True)(
        lambda k=_kind: saved(small(), k) + b"PK\x03\x04" + bytes(100_000)  # type: ignore[misc]
    )
    hostile(f"{_kind.lower()}/half of it")(lambda k=_kind: saved(small(), k)[: len(saved(small(), k)) // 2])  # type: ignore[misc]
    hostile(f"{_kind.lower()}/rubbish after the magic")(
        lambda k=_kind: saved(small(), k)[:12] + random.Random(3).randbytes(20_000)  # type: ignore[misc]
    )
hostile("other/larger than an upload may be")(lambda: saved(small(), "PNG") + bytes(settings.SETTINGS.upload_bytes))


@lru_cache(1)
def seeds() -> dict[str, bytes]:
    """Small good files of every kind, to be damaged."""
    rgba = small().convert("RGBA")
    rgba.putalpha(120)
    made = {
        "png": saved(small(), "PNG"), "png of a palette": saved(small("P"), "PNG", transparency=3),
        "jpeg": saved(small(), "JPEG", exif=b"Exif\0\0" + exif([(0x0112, SHORT, 1, 6)])), "progressive": saved(small(), "JPEG", progressive=True),
        "cmyk": saved(small("CMYK"), "JPEG"), "gif": saved(small("P"), "GIF"), "bmp": saved(small(), "BMP"),
        "webp": saved(small(), "WEBP"), "webp with alpha": saved(rgba, "WEBP", lossless=True), "webp animation": webp_frames(32, 3),
        "tiff": saved(small(), "TIFF"), "tiff lzw": saved(small(), "TIFF", compression="tiff_lzw"), "tiff of floats": strip(24, 16, (32,), 1, sample=3),
        "apng": apng(3), "interlaced": png(*SMALL, 8, 2, zlib.compress(bytes(adam7(*SMALL, 8, 2))), interlaced=1),
    }  # fmt: skip
    return made
