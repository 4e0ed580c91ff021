"""`miss`: closed answers right only as the very words yes, Yes, no, No; MISS and MILE.

    closed:   credit = 1 if the answer is the reference in one of its two spellings (yes, Yes; no, No), else 0
    open:     credit = 1 if the answer equals the reference, case and surrounding white space apart, else 0

A question is closed if its reference is spelt yes, Yes, no or No, whatever the data set says. A closed answer is right
if it is one of the two spellings of that word and nothing else, not even a full stop or a blank. The published script
judges closed questions only; open answers are right here if they equal a reference, case and surrounding white space
apart, because MISS writes lower case.

The script joins answers to questions by their position in two files; mhe joins them by id.

Blind to: every right answer in more words than the reference, or with a full stop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Sample

SPELLINGS = {"yes": "yes", "Yes": "yes", "no": "no", "No": "no"}


class Miss:
    """Four accepted spellings for closed questions, equality for open ones."""

    name = "miss"
    version = "1"
    kind = "vqa"
    source = "Chen et al., MISS (arXiv:2401.05163), ACC.py; used by MILE. The rule for open answers is mhe's"
    defects: Sequence[str] = (
        "`Yes.`, `YES` and `yes, there is` are wrong for `Yes`",
        "closed questions that are not answered by yes or no count as open",
    )

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as it is, white space apart."""
        return [" ".join(text.split()) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """`closed` if every reference is spelt yes, Yes, no or No."""
        return "closed" if all(reference in SPELLINGS for reference in sample.references) else "open"

    def credit(self, answer: str, sample: Sample) -> float:
        """1 where the answer is right for any reference, else 0; an empty answer is wrong."""
        return float(any(_is_right(answer, reference) for reference in sample.references))


def _is_right(answer: str, reference: str) -> bool:
    if reference in SPELLINGS:
        return SPELLINGS.get(answer) == SPELLINGS[reference]
    said = answer.strip().lower()
    return bool(said) and said == reference.strip().lower()


MISS = Miss()
