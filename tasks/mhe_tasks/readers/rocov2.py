"""ROCOv2: figures of open-access articles with their captions, from the release's CSV files or the hub copy.

The imaging modality of a figure comes from the concepts that people assigned (`*_concepts_manual.csv`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import DocumentError, Image, Part, Sample
from mhe_tasks.readers.hub import find_copy, read_rows
from mhe_tasks.readers.release import ImageStore, Release, find_images, is_inside, refuse_problems, text_of

if TYPE_CHECKING:
    from mhe import ReadContext
    from mhe_tasks.readers.hub import Copy

SPLITS = {"train": "train", "valid": "validation", "test": "test"}
"""The release's names of the splits, and the hub copy's."""
MODALITIES = {
    "C0040405": "ct",
    "C0024485": "mri",
    "C0041618": "ultrasound",
    "C1306645": "radiograph",
    "C0002978": "angiogram",
    "C0032743": "pet",
}
"""Concept unique identifiers (UMLS) of the modality."""
UNKNOWN = "unknown"
RELEASE = Release(
    title="ROCOv2",
    homepage="https://zenodo.org/records/10821435 (Rückert et al., Scientific Data 11:688)",
    layout=(
        "{train,valid,test}_captions.csv, {train,valid,test}_concepts_manual.csv and the unpacked (or zipped) "
        "{train,valid,test}_images"
    ),
    folder="rocov2",
)


class Rocov2Options(Part):
    """ROCOv2 has nothing to choose."""


class Rocov2Reader:
    """Captioned figures in published order; sample and image ids are the published ones.

    Captions lose their outer white space and nothing else. The group `modality` is `unknown` where no concept of
    `MODALITIES` was assigned. The hub copy joins manual and automatic concepts in one list, so that its modality can
    differ for figures whose caption names a second one.
    """

    Options = Rocov2Options

    def __init__(self, options: Rocov2Options) -> None:
        """Nothing to choose; every reader is called with its options."""

    def read(self, context: ReadContext) -> Iterator[Sample]:
        """Samples of `train`, `valid` or `test`. See `DatasetReader.read` for what it raises."""
        if context.split not in SPLITS:
            raise DocumentError("ROCOv2", [f"no split {context.split!r}; it has: {', '.join(SPLITS)}"])
        root = context.data_dir
        if root is not None and (root / f"{context.split}_captions.csv").is_file():
            yield from _read_release(root, context)
            return
        copy = find_copy(context, SPLITS[context.split])
        if copy is None:
            raise RELEASE.missing(context, f"no file {context.split}_captions.csv" if root else "")
        yield from _read_copy(copy, context)


def _read_release(root: Path, context: ReadContext) -> Iterator[Sample]:
    split = context.split
    concepts_path = root / f"{split}_concepts_manual.csv"
    if not concepts_path.is_file():
        raise RELEASE.missing(context, f"no file {concepts_path.name}, which tells the modality")
    captions = _Table(root / f"{split}_captions.csv", "Caption", may_be_empty=False).read()
    concepts = _Table(concepts_path, "CUIs", may_be_empty=True).read()
    folders = [f"{split}_images/{split}", f"{split}_images", split, f"images/{split}", "images"]
    store = find_images(root, folders, [f"{name}.jpg" for name in captions])
    if store is None:
        if context.need_images:
            raise RELEASE.missing(context, f"no folder {split}_images/{split}/, {split}_images/ or {split}/")
        store = ImageStore(root / f"{split}_images" / split)
    for name, caption in captions.items():
        yield Sample(
            id=name,
            images=(Image(name, store.source(f"{name}.jpg")),),
            references=(caption,),
            groups={"modality": modality_of(concepts.get(name, "").split(";"))},
        )


def modality_of(concepts: Sequence[str]) -> str:
    """The modality that the first concept of `MODALITIES` names.

    >>> modality_of(["C0817096", "C1306645", "C0040405"]), modality_of([""])
    ('radiograph', 'unknown')
    """
    return next((MODALITIES[cui.strip()] for cui in concepts if cui.strip() in MODALITIES), UNKNOWN)


class _Table:
    """A two-column CSV file: id to text, in its order, and every problem with its line."""

    def __init__(self, path: Path, column: str, *, may_be_empty: bool) -> None:
        self.path = path
        self.column = column
        self.may_be_empty = may_be_empty
        self.texts: dict[str, str] = {}
        self.problems: list[str] = []
        self._lines: dict[str, int] = {}

    def read(self) -> Mapping[str, str]:
        """Id to text. Raises `DocumentError` with all problems."""
        line = 0
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as stream:
                table = csv.reader(stream, strict=True)
                self._check_header(next(table, []))
                line = table.line_num + 1
                for row in table:
                    if row:
                        self._take(row, line)
                    line = table.line_num + 1
        except csv.Error as error:
            self.problems.append(f"line {line}: {error} (is a quotation mark open?)")
        except UnicodeDecodeError as error:
            self.problems.append(f"after line {line}: not UTF-8 text: {error.reason}")
        except OSError as error:
            self.problems.append(f"cannot be read: {error.strerror or error}")
        refuse_problems(self.path, self.problems)
        return self.texts

    def _check_header(self, row: list[str]) -> None:
        if [name.strip() for name in row] != ["ID", self.column]:
            raise DocumentError(
                str(self.path), [f"line 1: expected the header ID,{self.column}, found {','.join(row)!r}"]
            )

    def _take(self, row: list[str], line: int) -> None:
        if len(row) != 2:
            self.problems.append(
                f"line {line}: expected 2 columns, found {len(row)} (text with a comma must be quoted)"
            )
            return
        name, text = row[0].strip(), row[1].strip()
        if not is_inside(name):
            self.problems.append(f"line {line}: {name!r} is no image id")
        elif name in self.texts:
            self.problems.append(f"line {line}: the id {name!r} stands at line {self._lines[name]} as well")
        elif not text and not self.may_be_empty:
            self.problems.append(f"line {line}: {name} has an empty {self.column}")
        self.texts[name] = text
        self._lines[name] = line


def _read_copy(copy: Copy, context: ReadContext) -> Iterator[Sample]:
    problems: list[str] = []
    samples: list[Sample] = []
    for number, (row, source) in enumerate(read_rows(copy, ["image_id", "caption", "cui"], context, RELEASE)):
        name, caption = text_of(row["image_id"]), text_of(row["caption"])
        if not name:
            problems.append(f"row {number}: image_id is unusable: {row['image_id']!r}")
        if not caption:
            problems.append(f"row {number}: caption is unusable: {row['caption']!r}")
        if not name or not caption:
            continue
        concepts = row["cui"]
        modality = modality_of([str(cui) for cui in concepts]) if isinstance(concepts, list) else UNKNOWN
        samples.append(
            Sample(id=name, images=(Image(name, source),), references=(caption,), groups={"modality": modality})
        )
    refuse_problems(copy.place, problems)
    yield from samples
