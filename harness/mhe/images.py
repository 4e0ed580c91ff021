"""From encoded bytes to RGB pixels, the same for every backend; nothing unreadable passes in silence."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.digests import bytes_digest, file_digest
from mhe.errors import SampleDataError

if TYPE_CHECKING:
    import PIL.Image

    from mhe.values import Image

MAX_PIXELS = 178_956_970
"""Half a gigabyte as RGB; beyond it a file is taken for a mistake or an attack, as Pillow does."""


@dataclass(frozen=True, slots=True)
class FileSource:
    """An image file on disk."""

    path: Path

    def read(self) -> bytes:
        """The file's bytes. Raises `SampleDataError` for a missing, unreadable or empty file."""
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise SampleDataError(f"image {self.path}: {error.strerror or error}") from None
        if not data:
            raise SampleDataError(f"image {self.path}: the file is empty")
        return data

    def digest(self) -> str:
        """Content digest; of a file that cannot be read, a digest that says so and matches no content."""
        try:
            return file_digest(self.path)
        except OSError as error:
            return bytes_digest(f"unreadable:{self.path.name}:{error.errno}".encode())


@dataclass(frozen=True, slots=True)
class BytesSource:
    """An encoded image in memory."""

    data: bytes

    def read(self) -> bytes:
        """The bytes. Raises `SampleDataError` where there are none."""
        if not self.data:
            raise SampleDataError("the image has no bytes")
        return self.data

    def digest(self) -> str:
        """Content digest."""
        return bytes_digest(self.data)


def open_image(image: Image) -> PIL.Image.Image:
    """Decode an image to RGB with its orientation applied, resized where the task asks for it.

    Raises `SampleDataError` for what cannot be read: missing, empty, truncated, not an image, too large.
    """
    import PIL.Image

    decoded = decode_image(image.source.read(), image.id)
    if image.resize is not None and decoded.size != image.resize:
        decoded = decoded.resize(image.resize, PIL.Image.Resampling.BICUBIC)
    return decoded


def decode_image(data: bytes, name: str) -> PIL.Image.Image:
    """RGB pixels of an encoded image; the format is read from the content, never from a suffix."""
    import PIL.Image
    import PIL.ImageOps

    try:
        with warnings.catch_warnings():
            # Size is checked below against one limit, instead of a warning at one and an error at another.
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            picture = PIL.Image.open(io.BytesIO(data))
            width, height = picture.size
            if width * height <= MAX_PIXELS:
                picture.load()
                # In place: most pictures stand upright, and would be copied.
                PIL.ImageOps.exif_transpose(picture, in_place=True)
                return to_rgb(picture)
    except PIL.Image.DecompressionBombError:
        width, height = 2 * MAX_PIXELS, 1
    except PIL.UnidentifiedImageError:
        raise SampleDataError(f"image {name}: not an image that Pillow knows ({len(data)} bytes)") from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, MemoryError) as error:
        # Pillow's decoders raise all of these for damaged files.
        raise SampleDataError(f"image {name}: damaged or truncated ({type(error).__name__}: {error})") from None
    raise SampleDataError(
        f"image {name}: {width * height / 1e6:.0f} megapixels or more, above the limit of {MAX_PIXELS / 1e6:.0f}; "
        "scale it down and run again"
    )


def to_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """Any Pillow mode as RGB: 16-bit and float greys are stretched to their range, transparency lies on black."""
    import numpy as np
    import PIL.Image

    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith("I") or picture.mode == "F":
        # Pillow's own conversion cuts values at 255, which turns a 16-bit radiograph white.
        values = np.asarray(picture, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        scaled = np.zeros_like(values) if high <= low else (values - low) * (255.0 / (high - low))
        return PIL.Image.fromarray(np.rint(scaled).astype(np.uint8), "L").convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        ground = PIL.Image.new("RGBA", layer.size, (0, 0, 0, 255))
        return PIL.Image.alpha_composite(ground, layer).convert("RGB")
    return picture.convert("RGB")
