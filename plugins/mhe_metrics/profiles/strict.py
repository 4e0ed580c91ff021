"""`strict`: an answer is right if it equals a reference, case, punctuation and white space apart. mhe's default.

    credit = 1 if words(answer) = words(reference) for any reference and there is a word, else 0

Words are those of the profile `plain`. Nothing is guessed in favour of an answer: no substring, no synonym, no article
dropped, no order of words forgiven. An answer without a word is wrong, whatever the reference. Where the data set names
no type, a question is closed if all its references are yes or no.

Blind to: right answers in other words, in another order, or with any further word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_metrics.words import words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Sample

YES_OR_NO = frozenset({"yes", "no"})


class Strict:
    """Equality of words, and the data set's own question types."""

    name = "strict"
    version = "1"
    kind = "vqa"
    source = "mhe"
    defects: Sequence[str] = (
        "a right answer in other words (`The right lung` for `Right Lung`) counts as wrong",
        "symbols (<, >, +, %) are left out, so that `<5 mm` and `>5 mm` are equal",
    )
    is_default = True
    usual_metrics: Sequence[str] = ("accuracy", "exact-match", "token-f1")

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as its lower-case words (`mhe_metrics.words`) between single blanks."""
        return [" ".join(words(text)) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """As the data set says; else `closed` where every reference is yes or no."""
        if sample.answer_type is not None:
            return sample.answer_type
        return "closed" if set(self.clean(sample.references)) <= YES_OR_NO else "open"

    def credit(self, answer: str, sample: Sample) -> float:
        """1 where the answer's words are those of any reference, else 0."""
        cleaned = words(answer)
        return float(bool(cleaned) and any(cleaned == words(reference) for reference in sample.references))


STRICT = Strict()
