"""`medevalkit-slake`: MedEvalKit's rules for SLAKE; `medevalkit` has those for VQA-RAD.

    credit = 1 if the answer equals the reference in lower case, else 0

A question is open if the data set says so, else closed. An answer is right if it equals the reference, lower case
apart; from closed answers line feeds and full stops are deleted first. A closed reference spelt `yes` or `no` in lower
case, which SLAKE itself does not have, is judged as in `medevalkit`. The answer is found in the response as there.

Blind to: right answers in other words, in another order, or with any further word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_metrics.profiles.medevalkit_answers import final_answer, judged_yes_no, without_stops
from mhe_metrics.profiles.question_types import YES_OR_NO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Sample


class MedEvalKitSlake:
    """Equality in lower case."""

    name = "medevalkit-slake"
    version = "1"
    kind = "vqa"
    source = "Lingshu (arXiv:2506.07044), MedEvalKit, utils/SLAKE/SLAKE.py"
    defects: Sequence[str] = (
        "`Yes, there is.` is wrong for `Yes`, and right for `yes`: the rule depends on the reference's first letter",
        "an answer with a blank around it is wrong, and so is one after `the answer is`, which leaves a blank",
        "an open answer with a full stop is wrong: `right lung.` for `Right Lung`",
    )

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text's final answer in lower case, white space unified."""
        return [" ".join(final_answer(text).split()) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """`open` if the data set says so; `closed` otherwise, also where it says nothing."""
        return "open" if sample.answer_type == "open" else "closed"

    def credit(self, answer: str, sample: Sample) -> float:
        """1 where the answer is right for any reference, else 0."""
        is_closed = self.question_type(sample) == "closed"
        return float(any(_is_right(answer, reference, is_closed=is_closed) for reference in sample.references))


def _is_right(answer: str, reference: str, *, is_closed: bool) -> bool:
    if is_closed and reference in YES_OR_NO:
        return judged_yes_no(answer, reference)
    said = final_answer(answer)
    return (without_stops(said) if is_closed else said) == reference.lower()


MEDEVALKIT_SLAKE = MedEvalKitSlake()
