"""What an experiment looks at: frozen, hashable inputs that hold bytes or text, never tensors."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.ExifTags
import PIL.Image

from interp import Missing, Unsuitable, store

GALLERY = Path(__file__).parent.parent / "assets" / "gallery"
TEXTS = GALLERY.parent / "texts.json"
MAX_PIXELS = 50_000_000
"""Above this an image is refused from its header, before any memory is spent on it."""
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
            raise Missing(f"The gallery has no image called {name!r}; choose another or upload yours.")
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
        if len(self.text) > 10_000:
            raise Unsuitable(f"The prompt has {len(self.text):,} characters; the limit is 10,000.")


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
        _check(*self.positive, *self.negative)


@dataclass(frozen=True)
class ImageSet:
    """Several images."""

    images: tuple[Image, ...]


@dataclass(frozen=True)
class TextSet:
    """Several texts."""

    texts: tuple[str, ...]

    def __post_init__(self) -> None:
        _check(*self.texts)


@lru_cache(1)
def reference_texts() -> TextSet:
    """The embedded texts: what means are taken over and lenses are fitted on where nothing else is given."""
    return TextSet(tuple(json.loads(TEXTS.read_text())["texts"]))


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


def _decode(data: bytes) -> PIL.Image.Image:
    """Decode untrusted bytes: size checked from the header, then made 8-bit RGB and upright."""
    try:
        picture: PIL.Image.Image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise Unsuitable(
                f"This image has {width * height / 1e6:.0f} megapixels, over {MAX_PIXELS / 1e6:.0f}; scale it down."
            )
        if min(width, height) < MIN_SIDE or max(width, height) > MAX_ASPECT * min(width, height):
            raise Unsuitable(
                f"This image is {width} x {height} pixels; it needs at least {MIN_SIDE} a side, "
                f"and one side at most {MAX_ASPECT} times the other."
            )
        picture.draft("RGB", (2 * MAX_SIDE, 2 * MAX_SIDE))  # JPEG decodes at a fraction of the size for free
        picture.load()
        turn = _orientation(picture)
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


def _orientation(picture: PIL.Image.Image) -> PIL.Image.Transpose | None:
    """How EXIF says it has to be turned to stand upright."""
    try:
        return _TURNS.get(picture.getexif().get(PIL.ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF in a good photo
        return None


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
    parts, step = [], factor * max(1, 2**20 // (width * factor))
    for top in range(0, height, step):
        strip = picture.crop((0, top, width, min(top + step, height)))
        strip.info = picture.info  # where a palette keeps its transparent colour
        parts.append(_strip(strip, scale).reduce(factor))
    whole = PIL.Image.new("RGB", (parts[0].width, sum(part.height for part in parts)))
    for index, part in enumerate(parts):
        whole.paste(part, (0, index * parts[0].height))
    return whole


def _extremes(picture: PIL.Image.Image) -> tuple[float, float]:
    values = np.asarray(picture)
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def _strip(picture: PIL.Image.Image, scale: tuple[float, float] | None) -> PIL.Image.Image:
    if scale is not None:
        low, high = scale
        scaled = (np.asarray(picture, dtype=np.float64) - low) / (high - low if high > low else 1.0) * 255
        return PIL.Image.fromarray(np.nan_to_num(scaled).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")
