"""`multimedeval`: sets of cleaned words; right at a recall of 0.4 (closed) or 0.75 (open).

    recall = words of the reference that the answer has / words of the reference
    credit = 1 if recall ≥ 0.4 (closed) or recall ≥ 0.75 (open), else 0

Texts are cleaned as in the VQA v2 evaluation (`mhe_metrics.vqa_cleaning`) and become sets of words. A question is
closed if its cleaned reference is yes or no, whatever the data set says. For `no` the wanted words are no and not,
either of which is enough.

Blind to: everything that an answer says besides, negation and contradiction included; word order; repeated words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_metrics.profiles.question_types import YES_OR_NO
from mhe_metrics.vqa_cleaning import vqa_clean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Sample

CLOSED_RECALL = 0.4
OPEN_RECALL = 0.75


class MultiMedEval:
    """Recall of words against a threshold."""

    name = "multimedeval"
    version = "1"
    kind = "vqa"
    source = "Royer et al., MultiMedEval (arXiv:2402.09262), multimedeval/task_families.py"
    defects: Sequence[str] = (
        "`yes and no` is right for yes and for no",
        "other words cost nothing: `not left` is right for `Left`, and so is a list of all organs for any of them",
        "three of four words are enough for an open answer, two of three are not",
        "`none` and `zero` become `0`, so that `none` is wrong for `no`",
    )

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as its cleaned words between single blanks."""
        return [vqa_clean(text) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """`closed` if every cleaned reference is yes or no."""
        return "closed" if all(vqa_clean(reference) in YES_OR_NO for reference in sample.references) else "open"

    def credit(self, answer: str, sample: Sample) -> float:
        """1 where the recall of any reference reaches the threshold of that reference's type, else 0."""
        said = frozenset(vqa_clean(answer).split())
        return float(any(_is_right(said, vqa_clean(reference)) for reference in sample.references))


def _is_right(said: frozenset[str], reference: str) -> bool:
    wanted = {"no", "not"} if reference == "no" else set(reference.split())
    threshold = CLOSED_RECALL if reference in YES_OR_NO else OPEN_RECALL
    return bool(wanted) and len(said & wanted) / len(wanted) >= threshold


MULTIMEDEVAL = MultiMedEval()
