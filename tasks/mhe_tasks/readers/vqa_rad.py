"""VQA-RAD: the official JSON with its image folder, or the hub copy without ids."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mhe import DocumentError, Image, Part, Sample
from mhe_tasks.readers.hub import find_copy, read_rows
from mhe_tasks.readers.release import (
    ImageStore,
    Release,
    find_images,
    is_inside,
    read_entries,
    refuse_problems,
    text_of,
)

if TYPE_CHECKING:
    from mhe import ReadContext
    from mhe_tasks.readers.hub import Copy

ANNOTATIONS = "VQA_RAD Dataset Public.json"
IMAGE_FOLDERS = ("images", "VQA_RAD Image Folder", "VQA_RAD_Image_Folder")
SPLITS = ("train", "test")
MISSPELT = {"PRSE": "PRES", "ATRIB": "ATTRIB"}
"""Typing errors of the published `question_type`."""
QUESTION_TYPES = frozenset(
    ["ABN", "ATTRIB", "COLOR", "COUNT", "MODALITY", "ORGAN", "OTHER", "PLANE", "POS", "PRES", "SIZE"]
)
PHRASINGS = {"freeform": "freeform", "para": "paraphrase"}
RELEASE = Release(
    title="VQA-RAD",
    homepage="https://osf.io/89kps/ (Lau et al., Scientific Data 5:180251)",
    layout=f"'{ANNOTATIONS}' and the folder images/ (315 JPEG files)",
    folder="vqa_rad",
)


class VqaRadOptions(Part):
    """VQA-RAD has nothing to choose."""


class VqaRadReader:
    """Questions of VQA-RAD in published order.

    Sample ids are the published `qid`; of the hub copy, which has none, split and row (`test-17`). The test split is
    `phrase_type` beginning with `test`, the train split everything else. The hub copy has no `answer_type` either:
    there a question is closed exactly where its answer is yes or no, which calls fewer questions closed.
    """

    Options = VqaRadOptions

    def __init__(self, options: VqaRadOptions) -> None:
        """Nothing to choose; every reader is called with its options."""

    def read(self, context: ReadContext) -> Iterator[Sample]:
        """Samples of `train` or `test`. See `DatasetReader.read` for what it raises."""
        if context.split not in SPLITS:
            raise DocumentError("VQA-RAD", [f"no split {context.split!r}; it has: {', '.join(SPLITS)}"])
        if context.data_dir is not None and (context.data_dir / ANNOTATIONS).is_file():
            yield from _read_release(context)
            return
        copy = find_copy(context, context.split)
        if copy is None:
            raise RELEASE.missing(context, f"no file '{ANNOTATIONS}'" if context.data_dir else "")
        yield from _read_copy(copy, context)


def _read_release(context: ReadContext) -> Iterator[Sample]:
    assert context.data_dir is not None
    path = context.data_dir / ANNOTATIONS
    problems: list[str] = []
    seen: dict[str, int] = {}
    entries: list[_Question] = []
    for number, entry in enumerate(read_entries(path), start=1):
        question = _parse(entry, number, problems)
        if question is None:
            continue
        if question.id in seen:
            problems.append(f"entry {number}: qid {question.id} stands at entry {seen[question.id]} as well")
        seen[question.id] = number
        if question.split == context.split:
            entries.append(question)
    refuse_problems(path, problems)
    store = find_images(context.data_dir, IMAGE_FOLDERS, [question.image for question in entries])
    if store is None:
        if context.need_images:
            raise RELEASE.missing(context, "no folder images/ beside the annotations")
        store = ImageStore(context.data_dir / IMAGE_FOLDERS[0])
    for question in entries:
        yield Sample(
            id=question.id,
            images=(Image(question.image, store.source(question.image)),),
            references=(question.answer,),
            question=question.question,
            answer_type=question.answer_type,
            groups={
                "organ": question.organ,
                "question_type": question.question_type,
                "phrasing": question.phrasing,
            },
        )


@dataclass(frozen=True, slots=True)
class _Question:
    """One entry, understood."""

    id: str
    split: str
    image: str
    question: str
    answer: str
    answer_type: Literal["closed", "open"]
    organ: str
    question_type: str
    phrasing: str


def _parse(entry: object, number: int, problems: list[str]) -> _Question | None:
    if not isinstance(entry, dict):
        problems.append(f"entry {number}: expected a mapping, found {type(entry).__name__}")
        return None
    before = len(problems)
    where = f"entry {number} (qid {entry.get('qid', 'missing')})"
    text: dict[str, str] = {}
    for key in ("qid", "image_name", "question", "answer", "answer_type", "phrase_type"):
        value = text_of(entry.get(key))
        if not value:
            problems.append(f"{where}: {key} is {'missing' if key not in entry else f'unusable: {entry[key]!r}'}")
        text[key] = value or ""
    if text["image_name"] and not is_inside(text["image_name"]):
        problems.append(f"{where}: image_name {text['image_name']!r} leaves the image folder")
    answer_type = text["answer_type"].lower()
    if text["answer_type"] and answer_type not in ("closed", "open"):
        problems.append(f"{where}: answer_type is {text['answer_type']!r}, allowed are CLOSED and OPEN")
    is_test = text["phrase_type"].startswith("test")
    phrase = text["phrase_type"].removeprefix("test_")
    if text["phrase_type"] and phrase not in PHRASINGS:
        problems.append(f"{where}: phrase_type is {text['phrase_type']!r}, allowed are [test_]freeform and [test_]para")
    question_type = main_question_type(text_of(entry.get("question_type")) or "")
    if question_type is None:
        problems.append(f"{where}: question_type is {entry.get('question_type')!r}")
    if len(problems) > before:
        return None
    return _Question(
        id=text["qid"],
        split="test" if is_test else "train",
        image=text["image_name"],
        question=text["question"],
        answer=text["answer"],
        answer_type="closed" if answer_type == "closed" else "open",
        organ=(text_of(entry.get("image_organ")) or "unknown").lower(),
        question_type=question_type or "unknown",
        phrasing=PHRASINGS[phrase],
    )


def main_question_type(published: str) -> str | None:
    """The first label of a published `question_type`, spelt right, in lower case; None for an unknown one.

    >>> main_question_type("PRSE"), main_question_type("Size, COLOR"), main_question_type("")
    ('pres', 'size', 'unknown')
    """
    if not published:
        return "unknown"
    labels = [label.strip().upper() for label in published.split(",")]
    labels = [MISSPELT.get(label, label) for label in labels]
    return labels[0].lower() if all(label in QUESTION_TYPES for label in labels) else None


def _read_copy(copy: Copy, context: ReadContext) -> Iterator[Sample]:
    problems: list[str] = []
    samples: list[Sample] = []
    for number, (row, source) in enumerate(read_rows(copy, ["question", "answer"], context, RELEASE)):
        question, answer = text_of(row["question"]), text_of(row["answer"])
        for key, value in (("question", question), ("answer", answer)):
            if not value:
                problems.append(f"row {number}: {key} is unusable: {row[key]!r}")
        if not question or not answer:
            continue
        # Rows carry no image name, and rows that share an image must share a resampling unit.
        image = Image(source.digest()[:16], source)
        is_closed = answer.lower() in ("yes", "no")
        samples.append(
            Sample(
                id=f"{context.split}-{number}",
                images=(image,),
                references=(answer,),
                question=question,
                answer_type="closed" if is_closed else "open",
                groups={"organ": "unknown", "question_type": "unknown", "phrasing": "unknown"},
            )
        )
    refuse_problems(copy.place, problems)
    yield from samples
