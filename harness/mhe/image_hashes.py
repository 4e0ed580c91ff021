"""Which images are the same, or nearly: content digests and 64-bit perceptual hashes, read with many threads.

The perceptual hash is the DCT hash (Zauner 2010, section 3.2.1): grey, 32 x 32 pixels, the 8 x 8 lowest frequencies of
a two-dimensional DCT-II, one bit each for lying above their median. Scaling, compression and brightness change few
bits. Images almost without contrast have no hash, because all of them would look alike.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from mhe.digests import bytes_digest
from mhe.errors import SampleDataError
from mhe.images import decode_image

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image
    from numpy.typing import NDArray

    from mhe.values import Image, ImageSource

SIDE = 32
LOWEST = 8
PLAIN_CONTRAST = 2.0
"""Standard deviation in grey levels below which an image has no hash."""
BLOCK = 512
"""Hashes a side: 512 x 512 comparisons stay in the processor's cache."""
DECODER_ERRORS = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, MemoryError)
MOST_THREADS = 8


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What was found out about one image."""

    digest: str | None
    """Hex SHA-256 of its bytes; None where they could not be read."""
    perceptual: int | None
    """64 bits; None where it could not be decoded or is almost without contrast."""
    problem: str | None = None
    """Why it could not be read or decoded."""


def key_of(source: ImageSource) -> Hashable:
    """What tells sources apart: themselves where they can be hashed, else which object they are."""
    if not isinstance(source, Hashable):
        return id(source)
    return source


def read_facts(
    images: Iterable[Image], progress: Callable[[int, int], None] | None = None
) -> dict[Hashable, ImageFacts]:
    """Facts by `key_of(source)`, each source read once. `progress` gets the number done and the number of all."""
    sources: dict[Hashable, Image] = {}
    for image in images:
        sources.setdefault(key_of(image.source), image)
    facts: dict[Hashable, ImageFacts] = {}
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda image: facts_of(image.source, image.id), sources.values())
        for done, (key, found) in enumerate(zip(sources, results, strict=True), start=1):
            facts[key] = found
            if progress is not None:
                progress(done, len(sources))
    return facts


def facts_of(source: ImageSource, name: str) -> ImageFacts:
    """Read, digest and hash one image; what goes wrong stands in `problem`."""
    try:
        data = source.read()
    except SampleDataError as error:
        return ImageFacts(None, None, str(error))
    try:
        return ImageFacts(bytes_digest(data), perceptual_hash(data, name))
    except SampleDataError as error:
        return ImageFacts(bytes_digest(data), None, str(error))


def perceptual_hash(data: bytes, name: str = "image") -> int | None:
    """The 64-bit DCT hash of an encoded image, None for one almost without contrast.

    Raises `SampleDataError` for what cannot be decoded.
    """
    import numpy as np
    import PIL.Image

    small = _grey(data, name).resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS)
    pixels = np.asarray(small, dtype=np.float64)
    if float(pixels.std()) < PLAIN_CONTRAST:
        return None
    basis = _basis()
    frequencies = (basis @ pixels @ basis.T).ravel()
    # The first is the mean brightness, which says nothing of the content and would drag the median.
    bits = frequencies > np.median(frequencies[1:])
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _grey(data: bytes, name: str) -> PIL.Image.Image:
    import PIL.Image
    import PIL.ImageOps

    # Whatever fails here fails in the decoder below as well, which tells it in the words of an evaluation.
    with warnings.catch_warnings(), contextlib.suppress(*DECODER_ERRORS, PIL.Image.DecompressionBombError):
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        picture = PIL.Image.open(io.BytesIO(data))
        if picture.format == "JPEG" and picture.mode in ("L", "RGB"):
            # The decoder scales down while decoding: several times quicker for the sizes of figures.
            picture.draft("L", (4 * SIDE, 4 * SIDE))
            return PIL.ImageOps.exif_transpose(picture).convert("L")
    return decode_image(data, name).convert("L")


@lru_cache(maxsize=1)
def _basis() -> NDArray[np.float64]:
    """The first rows of the orthonormal DCT-II matrix, shape (8, 32)."""
    import numpy as np

    rows = np.arange(LOWEST)[:, None]
    basis = np.cos(np.pi * (2 * np.arange(SIDE)[None, :] + 1) * rows / (2 * SIDE)) * np.sqrt(2 / SIDE)
    basis[0] /= np.sqrt(2)
    return np.asarray(basis, dtype=np.float64)


def near_pairs(left: NDArray[np.uint64], right: NDArray[np.uint64], threshold: int) -> Iterator[tuple[int, int, int]]:
    """Every (i, j, distance) whose hashes differ in at most `threshold` bits; all pairs are compared, in blocks."""
    for start in range(0, len(left), BLOCK):
        for other in range(0, len(right), BLOCK):
            for i, j, distance in _block_pairs(left[start : start + BLOCK], right[other : other + BLOCK], threshold):
                yield start + i, other + j, distance


def near_pairs_within(hashes: NDArray[np.uint64], threshold: int) -> Iterator[tuple[int, int, int]]:
    """Every (i, j, distance) with i < j, as `near_pairs`."""
    for start in range(0, len(hashes), BLOCK):
        for other in range(start, len(hashes), BLOCK):
            for i, j, distance in _block_pairs(hashes[start : start + BLOCK], hashes[other : other + BLOCK], threshold):
                if start + i < other + j:
                    yield start + i, other + j, distance


def _block_pairs(left: NDArray[np.uint64], right: NDArray[np.uint64], threshold: int) -> Iterator[tuple[int, int, int]]:
    distances = _count_bits(left[:, None] ^ right[None, :])
    if int(distances.min()) > threshold:
        return
    for i, j in zip(*(distances <= threshold).nonzero(), strict=True):
        yield int(i), int(j), int(distances[i, j])


def _count_bits(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    import numpy as np

    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(values), dtype=np.uint8)
    # numpy 1 counts no bits of its own: a table over bytes does.
    table = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)
    counted = table[np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, 8)]
    return np.asarray(counted.sum(axis=-1), dtype=np.uint8)
