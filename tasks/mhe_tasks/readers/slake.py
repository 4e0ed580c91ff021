"""SLAKE: JSON annotations in English and Chinese with `imgs/xmlabN/source.jpg`, on disk or as the hub's snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mhe import DocumentError, Image, MissingExtraError, Part, Sample
from mhe_tasks.readers.hub import reason_of, refuse_unreachable_hub
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

FILES = {
    "train": ("train.json",),
    "validation": ("validate.json", "validation.json"),
    "test": ("test.json",),
}
"""The hub copy renamed `validate.json`."""
RELEASE = Release(
    title="SLAKE",
    homepage="https://www.med-vqa.com/slake/ (Liu et al., arXiv:2102.09542)",
    layout="train.json, validate.json, test.json and imgs/xmlabN/source.jpg (or imgs.zip)",
    folder="slake",
)


class SlakeOptions(Part):
    """Which half of SLAKE."""

    language: Literal["en", "zh"] = "en"
    """`q_lang` of the questions."""
    unanswered: tuple[str, ...] = ()
    """`qid` of published questions whose answer is empty: left out. Any other empty answer is a problem."""


class SlakeReader:
    """Questions of one language in published order; sample ids are the published `qid`.

    SLAKE on the hub is the official files, so both places go through the same code.
    """

    Options = SlakeOptions

    def __init__(self, options: SlakeOptions) -> None:
        self._language = options.language
        self._unanswered = frozenset(options.unanswered)

    def read(self, context: ReadContext) -> Iterator[Sample]:
        """Samples of `train`, `validation` or `test`. See `DatasetReader.read` for what it raises."""
        if context.split not in FILES:
            raise DocumentError("SLAKE", [f"no split {context.split!r}; it has: {', '.join(FILES)}"])
        root = context.data_dir or _fetch_snapshot(context)
        path = next((root / name for name in FILES[context.split] if (root / name).is_file()), None)
        if path is None:
            raise RELEASE.missing(context, f"no file {' or '.join(FILES[context.split])}")
        questions = self._parse_file(path)
        store = find_images(root, ["imgs"], [question.image for question in questions])
        if store is None:
            if context.need_images:
                raise RELEASE.missing(context, "no folder imgs/ and no imgs.zip beside the annotations")
            store = ImageStore(root / "imgs")
        for question in questions:
            yield Sample(
                id=question.id,
                images=(Image(question.image, store.source(question.image)),),
                references=(question.answer,),
                question=question.question,
                answer_type=question.answer_type,
                groups=question.groups,
            )

    def _parse_file(self, path: Path) -> list[_Question]:
        problems: list[str] = []
        seen: dict[str, int] = {}
        questions = []
        for number, entry in enumerate(read_entries(path), start=1):
            if isinstance(entry, dict) and str(entry.get("qid")) in self._unanswered and not entry.get("answer"):
                continue
            question = _parse(entry, number, problems)
            if question is None:
                continue
            if question.id in seen:
                problems.append(f"entry {number}: qid {question.id} stands at entry {seen[question.id]} as well")
            seen[question.id] = number
            if question.language == self._language:
                questions.append(question)
        refuse_problems(path, problems)
        return questions


@dataclass(frozen=True, slots=True)
class _Question:
    """One entry, understood."""

    id: str
    language: str
    image: str
    question: str
    answer: str
    answer_type: Literal["closed", "open"]
    groups: dict[str, str]


def _parse(entry: object, number: int, problems: list[str]) -> _Question | None:
    if not isinstance(entry, dict):
        problems.append(f"entry {number}: expected a mapping, found {type(entry).__name__}")
        return None
    before = len(problems)
    where = f"entry {number} (qid {entry.get('qid', 'missing')})"
    text: dict[str, str] = {}
    for key in ("qid", "img_name", "question", "answer", "q_lang", "answer_type"):
        value = text_of(entry.get(key))
        if not value:
            problems.append(f"{where}: {key} is {'missing' if key not in entry else f'unusable: {entry[key]!r}'}")
        text[key] = value or ""
    if text["img_name"] and not is_inside(text["img_name"]):
        problems.append(f"{where}: img_name {text['img_name']!r} leaves the image folder")
    if text["q_lang"] and text["q_lang"] not in ("en", "zh"):
        problems.append(f"{where}: q_lang is {text['q_lang']!r}, allowed are en and zh")
    answer_type = text["answer_type"].lower()
    if text["answer_type"] and answer_type not in ("closed", "open"):
        problems.append(f"{where}: answer_type is {text['answer_type']!r}, allowed are CLOSED and OPEN")
    if len(problems) > before:
        return None
    return _Question(
        id=text["qid"],
        language=text["q_lang"],
        image=text["img_name"],
        question=text["question"],
        answer=text["answer"],
        answer_type="closed" if answer_type == "closed" else "open",
        groups={
            "modality": text_of(entry.get("modality")) or "unknown",
            "organ": text_of(entry.get("location")) or "unknown",
            "question_type": text_of(entry.get("content_type")) or "unknown",
            "answer_type": answer_type,
        },
    )


def _fetch_snapshot(context: ReadContext) -> Path:
    """The hub copy's folder in the local cache, fetched where needed."""
    if not context.hub or context.offline:
        raise RELEASE.missing(context)
    refuse_unreachable_hub(context, RELEASE)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("data", "reading the hub copy of SLAKE", "huggingface_hub") from None
    wanted = [*(name for names in FILES.values() for name in names), *(["imgs.zip"] if context.need_images else [])]
    try:
        folder = snapshot_download(context.hub, revision=context.revision, repo_type="dataset", allow_patterns=wanted)
    except Exception as error:
        raise RELEASE.missing(context, reason_of(error, f"{context.hub}@{context.revision}")) from error
    return Path(folder)
