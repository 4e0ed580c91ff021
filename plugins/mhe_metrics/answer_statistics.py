"""What the answers are like, whatever the references say: length, silence, cut ends, repetition, variety.

    answer-words        mean number of words
    answer-empty        share of answers without a word
    answer-cut          share of answers cut at the token limit
    answer-repeated-4   mean over answers of   1 − different 4-grams / 4-grams
    answer-distinct-n   mean over answers of   different n-grams / n-grams,   n = 1, 2

Words are the profile's. An answer counts for repetition and variety only where it has an n-gram at all. Whether an
answer was cut is known only from a model's own response: for predictions made elsewhere `answer-cut` is over nothing.

They explain other scores and are no quality of their own. `answer-words` has no direction: compare it with the
references' length. Short answers repeat
nothing and are all distinct; distinct-n falls with length, so compare it at similar lengths. It is per answer, not over
the corpus as in Li et al., where it shrinks with the number of answers: a model that says one sentence to every image
is not found by it.

Source: repetition from Welleck et al., ICLR 2020 (seq-rep-4); distinct-n after Li et al., NAACL 2016.
Blind to: the references, and to whether anything said is true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import MetricValue, Part
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile

    FloatArray = NDArray[np.float64]

REPEATED = 4


class AnswerStatisticsOptions(Part):
    """There are no options."""


class AnswerStatistics:
    """Means over answers; columns: each value's sum, then the number of answers it is over."""

    Options = AnswerStatisticsOptions
    name = "answer-statistics"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires: frozenset[str] = frozenset()
    values = (
        MetricValue("answer-words", "mean number of words", floor=0.0, ceiling=None, higher_is_better=None),
        MetricValue("answer-empty", "share of answers without a word", 1.0, 0.0, higher_is_better=False),
        MetricValue("answer-cut", "share of answers cut at the token limit", 1.0, 0.0, higher_is_better=False),
        MetricValue(
            "answer-repeated-4", "share of 4-grams said before in the answer", 1.0, 0.0, higher_is_better=False
        ),
        MetricValue("answer-distinct-1", "share of different words in an answer"),
        MetricValue("answer-distinct-2", "share of different word pairs in an answer"),
    )
    columns = tuple(f"{column}.{value.name.removeprefix('answer-')}" for value in values for column in ("sum", "count"))

    def __init__(self, options: AnswerStatisticsOptions, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 12)."""
        import numpy as np

        texts = cleaned_cases(cases, profile)
        rows = [_row(case, text.answer.split()) for case, text in zip(cases, texts, strict=True)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.columns))

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The means from sums of shape (..., 12); NaN over no answer."""
        from mhe_metrics.means import mean

        return {
            value.name: mean(sums[..., 2 * place], sums[..., 2 * place + 1]) for place, value in enumerate(self.values)
        }

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """The values of each answer; NaN where it has no n-gram or nothing is known of its end."""
        return self.aggregate(statistics)


def _row(case: Case, words: list[str]) -> list[float]:
    is_cut, is_known = _cut(case)
    repeated, has_four = _distinct(words, REPEATED)
    return [
        float(len(words)),
        1.0,
        float(not words),
        1.0,
        is_cut,
        is_known,
        has_four - repeated,
        has_four,
        *_distinct(words, 1),
        *_distinct(words, 2),
    ]


def _cut(case: Case) -> tuple[float, float]:
    """Whether the answer was cut, and whether that is known."""
    reason = case.response.finish_reason if case.response is not None else None
    return float(reason == "length"), float(reason is not None)


def _distinct(words: list[str], n: int) -> tuple[float, float]:
    """Share of different n-grams, and 1; (0, 0) for fewer than n words."""
    ngrams = list(zip(*(words[start:] for start in range(n)), strict=False))
    return (len(set(ngrams)) / len(ngrams), 1.0) if ngrams else (0.0, 0.0)
