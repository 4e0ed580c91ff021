"""Backend `majority`: the most frequent training answer, whatever the image and the question.

A table of numbers means little without it: on yes/no questions it is right about half the time, and a model that
does no better has learned the answers' frequencies at most. It reads the training split of the task, nothing else.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from mhe import BackendDescription, Fingerprint, ModelUnusableError, Part, Response, digest_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from mhe import BackendContext, ModelSpec, Request, Sample

VERSION = "1"
EVERYTHING = ""
"""The group of all training answers: for `by: none`, and for requests of a group that training does not have."""


class MajorityOptions(Part):
    """How answers are counted."""

    by: str = "auto"
    """`none`: one answer for everything; `answer_type`: one for closed and one for open questions; or a group of the
    samples such as `question_type`. `auto` is `answer_type` where the training samples have one, else `none`."""


class MajorityBackend:
    """Answers with the most frequent reference of the training split.

    Answers are counted in lower case without blanks around them; the most frequent spelling of the most frequent one
    is given. Ties go to the alphabetically first.
    """

    Options = MajorityOptions

    def __init__(self, model: ModelSpec, options: MajorityOptions, context: BackendContext) -> None:
        self._rule = options.by
        self._by = options.by
        self._context = context
        self._name = model.name
        self._answers: dict[str, str] = {}

    def describe(self) -> BackendDescription:
        """The fingerprint is that of the rule; the table of answers is part of the run key.

        Raises `ModelUnusableError` for a group that no training sample has, and what reading the split raises.
        """
        self.load()
        return BackendDescription(
            name="majority",
            version=VERSION,
            fingerprint=Fingerprint(digest=digest_of(["majority", VERSION, self._rule]), verified=True),
            # What `auto` comes to, and the table, belong to a task: the baseline is the same one on another task.
            key_options={"by": self._by, "answers": digest_of(self._answers)},
            device="cpu",
            parameters=0,
        )

    def load(self) -> None:
        """Read the training split and count, once. Raises as `describe`."""
        if self._answers:
            return
        samples = self._context.training_samples()
        if not samples:
            raise ModelUnusableError(f"{self._name}: the training split holds no sample to count answers of.")
        if self._by == "auto":
            self._by = "answer_type" if any(sample.answer_type for sample in samples) else "none"
        if self._by not in {"none", "answer_type"} and not any(self._by in sample.groups for sample in samples):
            known = sorted({group for sample in samples for group in sample.groups})
            raise ModelUnusableError(
                f"{self._name}: no training sample has the group {self._by!r}. Set backend.by to auto, none, "
                f"answer_type or one of: {', '.join(known) or 'no groups here'}."
            )
        self._answers = {
            group: most_frequent(answers) for group, answers in _answers_by_group(samples, self._by).items()
        }

    def generate(self, requests: Sequence[Request], pending: Collection[str]) -> Iterator[Response]:
        """One response a pending request, in order."""
        self.load()
        wanted = frozenset(pending)
        for request in requests:
            if request.sample_id not in wanted:
                continue
            start = time.perf_counter()
            group = _group_of(request, self._by)
            text = self._answers.get(group, self._answers[EVERYTHING])
            yield Response(
                sample_id=request.sample_id, text=text, finish_reason="stop", seconds=time.perf_counter() - start
            )

    def usage(self) -> Mapping[str, float]:
        """Nothing is measured."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


def most_frequent(answers: Sequence[str]) -> str:
    """The most frequent spelling of the most frequent answer, case and outer blanks apart; ties alphabetically.

    Raises `ValueError` for no answers.
    """
    if not answers:
        raise ValueError("no answers to count")
    normal = _first(Counter(answer.strip().lower() for answer in answers))
    return _first(Counter(answer.strip() for answer in answers if answer.strip().lower() == normal))


def _first(counts: Counter[str]) -> str:
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _answers_by_group(samples: Sequence[Sample], by: str) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {EVERYTHING: []}
    for sample in samples:
        groups[EVERYTHING].extend(sample.references)
        if (group := _group_of(sample, by)) != EVERYTHING:
            groups.setdefault(group, []).extend(sample.references)
    return groups


def _group_of(item: Sample | Request, by: str) -> str:
    if by == "none":
        return EVERYTHING
    return (item.answer_type if by == "answer_type" else item.groups.get(by)) or EVERYTHING
