"""What the official releases share: annotation files, image folders or archives, and words for what is absent."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from mhe import DataMissingError, DocumentError, FileSource, SampleDataError

if TYPE_CHECKING:
    from mhe import ImageSource, ReadContext

SHOWN_PROBLEMS = 100


@dataclass(frozen=True, slots=True)
class Release:
    """Where a data set comes from, in words that a person can follow."""

    title: str
    homepage: str
    layout: str
    """What must lie in the folder."""
    folder: str
    """Its name under `$MHE_DATA_DIR`."""

    def missing(self, context: ReadContext, reason: str = "") -> DataMissingError:
        """The error for data that is neither on this machine nor within reach."""
        if context.data_dir is not None:
            lines = [f"{self.title} was not found in {context.data_dir}."]
        else:
            lines = [f"{self.title} is not on this machine."]
        if reason:
            lines[0] = f"{lines[0][:-1]}: {reason}."
        if context.data_dir is None and context.hub and context.offline:
            lines.append(f"Its hub copy {context.hub} was not asked for because of --offline.")
        lines += [
            f"Download it from {self.homepage}",
            f"so that one folder holds {self.layout},",
            f"then name that folder with --data-dir FOLDER, or put it at $MHE_DATA_DIR/{self.folder}",
            f"(or ./data/{self.folder}).",
        ]
        return DataMissingError("\n".join(lines))


def refuse_problems(place: Path | str, problems: Sequence[str]) -> None:
    """Raise `DocumentError` with all problems of one file, where there are any; a flood is cut and counted."""
    if not problems:
        return
    shown = list(problems[:SHOWN_PROBLEMS])
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"… and {len(problems) - SHOWN_PROBLEMS} more")
    raise DocumentError(str(place), shown)


def read_entries(path: Path) -> list[object]:
    """The list in a JSON file. Raises `DocumentError` for anything else, with the line of a syntax error."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DocumentError(
            str(path), [f"line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}"]
        ) from None
    except UnicodeDecodeError as error:
        raise DocumentError(str(path), [f"not UTF-8 text: {error.reason} at byte {error.start}"]) from None
    except OSError as error:
        raise DocumentError(str(path), [f"cannot be read: {error.strerror or error}"]) from None
    if not isinstance(data, list):
        raise DocumentError(str(path), [f"expected a list of questions, found {type(data).__name__}"])
    return data


def text_of(value: object) -> str | None:
    """Text or number as text without outer white space; None for what is neither."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return None


def is_inside(name: str) -> bool:
    """Whether an image name from an annotation file stays inside its folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    return bool(name) and not parts.is_absolute() and ".." not in parts.parts


# ---------------------------------------------------------------- images in a folder or an archive


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image inside a zip file that nobody unpacked."""

    archive: Path
    member: str

    def read(self) -> bytes:
        """The member's bytes. Raises `SampleDataError` where it is absent or damaged."""
        try:
            return _open_archive(self.archive).read(self.member)
        except KeyError:
            raise SampleDataError(f"image {self.member}: not in {self.archive}") from None
        except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
            # zipfile raises the last four for damaged, encrypted, unknown and cut-off members.
            raise SampleDataError(f"image {self.member} in {self.archive}: {error}") from None

    def digest(self) -> str:
        """Content digest; of a member that cannot be read, one that matches no content."""
        try:
            return hashlib.sha256(self.read()).hexdigest()
        except SampleDataError:
            return hashlib.sha256(f"unreadable:{self.member}".encode()).hexdigest()


@lru_cache(maxsize=8)
def _open_archive(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


@lru_cache(maxsize=8)
def _members(path: Path) -> dict[str, str]:
    """Every ending of a member's path to its full name: `xmlab1/source.jpg` to `imgs/xmlab1/source.jpg`."""
    endings: dict[str, str] = {}
    for member in _open_archive(path).namelist():
        parts = member.split("/")
        for start in range(len(parts)):
            endings.setdefault("/".join(parts[start:]), member)
    return endings


@dataclass(frozen=True, slots=True)
class ImageStore:
    """A folder of images, or a zip file of one."""

    place: Path

    def source(self, name: str) -> ImageSource:
        """The image of this name; an absent one becomes an error when it is read."""
        if self.place.suffix == ".zip":
            return ArchivedImage(self.place, _members(self.place).get(name, name))
        return FileSource(self.place / name)


def find_images(root: Path, folders: Iterable[str], names: Sequence[str]) -> ImageStore | None:
    """The first of `folders` (or `FOLDER.zip`) under `root` that holds one of the first images named.

    Where none holds any, the first that exists, so that each sample says what it misses; None where none exists.
    """
    places: list[Path] = []
    for folder in folders:
        places += [place for place in (root / folder,) if place.is_dir()]
        archive = root / f"{folder}.zip"
        if archive.is_file():
            if not zipfile.is_zipfile(archive):
                raise DocumentError(str(archive), ["not a zip file, or its download was cut off: get it again"])
            places.append(archive)
    for place in places:
        if place.suffix == ".zip":
            if any(name in _members(place) for name in names[:50]):
                return ImageStore(place)
        elif any((place / name).is_file() for name in names[:50]):
            return ImageStore(place)
    return ImageStore(places[0]) if places else None
