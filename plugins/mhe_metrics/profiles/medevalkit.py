r"""`medevalkit`: MedEvalKit's rules for VQA-RAD; `medevalkit-slake` has those for SLAKE.

MedEvalKit judges the same answer by other rules in each data set, so there are two profiles: take the one of the data
set when comparing with its published numbers.

    closed:   credit = 1 if exactly one of `yes` and `no` occurs in the answer, and it is the reference, else 0
    open:     credit = 1 if the answer equals the reference, lower case and surrounding white space apart, else 0

A question is closed if its reference is yes or no, whatever the data set says; the answer is right if exactly one of
the substrings `yes` and `no` occurs in it, inside other words too, and it is the reference. An open answer is right if
it equals the reference, lower case and surrounding white space apart. The answer is taken from `\boxed{...}`,
`<answer>...</answer>`, or after `answer is` and the like, where the response has these. The judge by a language model
that MedEvalKit offers instead is left out.

Blind to: what a closed answer says besides yes or no; open answers in other words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_metrics.profiles.medevalkit_answers import final_answer, judged_yes_no
from mhe_metrics.profiles.question_types import is_yes_or_no, yes_no_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Sample


class MedEvalKit:
    """Substrings for yes or no, equality for the rest."""

    name = "medevalkit"
    version = "1"
    kind = "vqa"
    source = "Lingshu (arXiv:2506.07044), MedEvalKit, utils/VQA_RAD/VQA_RAD.py"
    defects: Sequence[str] = (
        "`None`, `unknown` and `abnormal` are right for `No`: they contain `no`",
        "`Yes, it is not small` is wrong for `Yes`: `not` contains `no`",
        "an open answer with a full stop is wrong: `right lung.` for `Right Lung`",
        "an open answer after `the answer is` is wrong: a blank is left before it",
        "a response that says `boxed` without a whole box is wrong, whatever else it says",
    )

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text's final answer in lower case, white space unified."""
        return [" ".join(final_answer(text).split()) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """`closed` if every reference is yes or no."""
        return yes_no_type(sample)

    def credit(self, answer: str, sample: Sample) -> float:
        """1 where the answer is right for any reference, else 0."""
        return float(any(_is_right(answer, reference) for reference in sample.references))


def _is_right(answer: str, reference: str) -> bool:
    wanted = reference.lower().strip()
    if is_yes_or_no(reference):
        return judged_yes_no(answer, wanted)
    return final_answer(answer.strip()) == wanted


MEDEVALKIT = MedEvalKit()
