"""ROUGE-L with beta 1.2, as COCO's caption evaluation computes it, averaged over samples.

    P = max over references of LCS / answer length,   R = max over references of LCS / reference length
    ROUGE-L = (1 + β²) P R / (R + β² P),   β = 1.2

LCS is the longest common subsequence of words. P and R may come from different references. Google's `rouge_score`
computes another metric (F1, other words, other references rule) under the same name.

Source: Lin, ACL workshop 2004, section 3; the two maxima from pycocoevalcap. As there, a text without a word counts
as one empty word: an empty answer to an empty reference scores 1, to any other 0.
Blind to: synonyms, and to what stands between the words of the common subsequence.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mhe import MetricValue, Part
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile

    FloatArray = NDArray[np.float64]

BETA_SQUARED = 1.2**2


class RougeLOptions(Part):
    """ROUGE-L has no options."""


class RougeL:
    """Mean ROUGE-L; columns: the sample's value, and 1."""

    Options = RougeLOptions
    name = "rouge-l"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires = frozenset({"references"})
    columns = ("rouge-l", "count")
    values = (MetricValue("rouge-l", "longest common subsequence with the references (beta 1.2)"),)

    def __init__(self, options: RougeLOptions, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 2)."""
        import numpy as np

        texts = cleaned_cases(cases, profile)
        if not texts:
            return np.zeros((0, 2))
        length_of = longest_common()
        common, lengths, answers = [], [], []
        for text in texts:
            answer = text.answer.split(" ")
            answers.append(len(answer))
            for reference in text.references:
                words = reference.split(" ")
                common.append(length_of(answer, words))
                lengths.append(len(words))
        starts = np.cumsum([0, *(len(text.references) for text in texts[:-1])])
        precision = np.maximum.reduceat(common, starts) / answers
        recall = np.maximum.reduceat(np.divide(common, lengths), starts)
        some = (precision > 0) & (recall > 0)
        values = np.divide(
            (1 + BETA_SQUARED) * precision * recall,
            recall + BETA_SQUARED * precision,
            out=np.zeros(len(texts)),
            where=some,
        )
        return np.column_stack([values, np.ones(len(texts))])

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The mean from sums of shape (..., 2); NaN over no sample."""
        from mhe_metrics.means import mean

        return {"rouge-l": mean(sums[..., 0], sums[..., 1])}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """Each sample's value."""
        return self.aggregate(statistics)


@cache
def longest_common() -> Callable[[Sequence[str], Sequence[str]], int]:
    """`common_subsequence`, or the same whole number from rapidfuzz (extra `metrics`), which is faster."""
    try:
        from rapidfuzz.distance import LCSseq
    except ImportError:
        return common_subsequence
    return LCSseq.similarity


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence of two lists of words.

    A row of the usual table is kept as the bits of one integer, so that a word of `second` costs a few operations
    on integers instead of a loop over `first`. Source: Hyyrö, Bit-parallel LCS-length computation revisited (2004).
    """
    places: dict[str, int] = {}
    for position, word in enumerate(first):
        places[word] = places.get(word, 0) | (1 << position)
    everywhere = (1 << len(first)) - 1
    row = everywhere
    for word in second:
        # A word that `first` has not leaves the row as it is. Carries go up only, so that one mask at the end will do.
        if word in places:
            found = row & places[word]
            row = (row + found) | (row - found)
    return len(first) - (row & everywhere).bit_count()
