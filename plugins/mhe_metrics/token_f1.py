"""Token precision, recall and F1 of an answer, averaged over samples.

    P = shared tokens / answer tokens,   R = shared tokens / reference tokens,   F1 = 2 P R / (P + R)

A token is shared at most as often as the other side has it (clipped): an answer cannot gain by repeating a word, as it
can in LLaVA-Med's recall. Of several references the one with the highest F1 counts (then recall, then precision).
An answer without a word scores 0.

Source: Rajpurkar et al., EMNLP 2016 (SQuAD), with the profile's words in the place of theirs.
Blind to: word order and negation (`not left` for `left` has recall 1).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mhe import MetricValue, Part
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile

    FloatArray = NDArray[np.float64]


class TokenF1Options(Part):
    """Token F1 has no options."""


class TokenF1:
    """Mean token precision, recall and F1; columns: the three, and 1."""

    Options = TokenF1Options
    name = "token-f1"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires = frozenset({"references"})
    columns = ("precision", "recall", "f1", "count")
    values = (
        MetricValue("token-precision", "share of the answer's tokens that the reference has"),
        MetricValue("token-recall", "share of the reference's tokens that the answer has"),
        MetricValue("token-f1", "harmonic mean of token precision and recall"),
    )

    def __init__(self, options: TokenF1Options, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 4)."""
        import numpy as np

        rows = [
            (*_best(text.answer.split(), [r.split() for r in text.references]), 1.0)
            for text in cleaned_cases(cases, profile)
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 4)

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The means from sums of shape (..., 4); NaN over no sample."""
        from mhe_metrics.means import mean

        return {value.name: mean(sums[..., place], sums[..., 3]) for place, value in enumerate(self.values)}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """The three of each sample."""
        return self.aggregate(statistics)


def _best(answer: list[str], references: list[list[str]]) -> tuple[float, float, float]:
    """Precision, recall and F1 against the best reference."""
    scores = [_overlap(answer, reference) for reference in references]
    return max(scores, key=lambda score: (score[2], score[1], score[0]))


def _overlap(answer: list[str], reference: list[str]) -> tuple[float, float, float]:
    shared = (Counter(answer) & Counter(reference)).total()
    if not shared:
        return 0.0, 0.0, 0.0
    precision, recall = shared / len(answer), shared / len(reference)
    return precision, recall, 2 * precision * recall / (precision + recall)
