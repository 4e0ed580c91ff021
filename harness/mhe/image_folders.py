"""Images for texts that were made elsewhere: the files of a folder, found by name."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mhe.digests import bytes_digest
from mhe.errors import SampleDataError, UserError
from mhe.images import FileSource
from mhe.values import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.values import ImageSource, Sample

SUFFIXES = frozenset({".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp"})
"""What a file ends in to be found by its name without the ending: notes beside an image are no second image."""


@dataclass(frozen=True, slots=True)
class AbsentImage:
    """In the place of an image that was not found: a metric that does not look at it never knows."""

    name: str
    reason: str

    def read(self) -> bytes:
        """Raises `SampleDataError` with the reason."""
        raise SampleDataError(self.reason)

    def digest(self) -> str:
        """A digest of the name, which matches no content."""
        return bytes_digest(f"absent:{self.name}".encode("utf-8", "surrogatepass"))


class ImageFolder:
    """A folder of images, listed once."""

    def __init__(self, place: Path) -> None:
        """Raises `UserError` where there is no such folder."""
        if not place.is_dir():
            raise UserError(f"images: {place} is no folder.")
        self._place = place
        self._listed: dict[str, dict[str, list[str]]] = {}

    def source(self, name: str) -> ImageSource:
        """The file of that very name, else the one image of that name with an ending; else an `AbsentImage`.

        A name may lead into folders below (`study1/a.png`), never out.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            return AbsentImage(name, f"{name[:60]!r} names no file inside {self._place}")
        below = path.parent.as_posix()
        if below not in self._listed:
            self._listed[below] = _list_names(self._place / below)
        found = self._listed[below].get(path.name, [])
        if path.name in found:
            found = [path.name]
        if not found:
            return AbsentImage(name, f"no image {name[:60]!r} in {self._place}")
        if len(found) > 1:
            return AbsentImage(name, f"more than one image {name[:60]!r} in {self._place}: {', '.join(found)}")
        return FileSource(self._place / below / found[0])


def _list_names(folder: Path) -> dict[str, list[str]]:
    """Each name, with and without its ending, to the sorted files that have it."""
    names: dict[str, list[str]] = defaultdict(list)
    try:
        files = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except (OSError, ValueError):  # ValueError: a name with a NUL
        return names
    for file in files:
        names[file].append(file)
        if Path(file).suffix.lower() in SUFFIXES and Path(file).stem != file:
            names[Path(file).stem].append(file)
    return names


def with_images(samples: Sequence[Sample], folder: ImageFolder) -> list[Sample]:
    """Each sample with the image that it names (`cluster`), else with that of its id; absent ones become `AbsentImage`.

    What the bootstrap draws stays the same.
    """
    names = [sample.cluster or sample.id for sample in samples]
    return [
        replace(sample, images=(Image(name, folder.source(name)),)) for sample, name in zip(samples, names, strict=True)
    ]


def absent_images(samples: Sequence[Sample]) -> dict[str, str]:
    """Sample id to why its image was not found, over the samples of which that is so."""
    return {
        sample.id: image.source.reason
        for sample in samples
        for image in sample.images
        if isinstance(image.source, AbsentImage)
    }
