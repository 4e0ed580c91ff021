"""CIDEr-D, as COCO's caption evaluation computes it.

    CIDEr = 10 · mean over n = 1..4 and references of
            min(g, r) · r / (|g| |r|) · exp(−(l_g − l_r)² / (2 · 6²))

g and r are TF-IDF vectors of the n-grams of answer and reference, l their numbers of bigrams. The document frequency
counts samples one of whose references holds the n-gram, over all samples scored; log N − log df weighs it.

So the value depends on the set: a subset scores otherwise, and with one sample every weight is log 1 = 0 and CIDEr is
0. The bootstrap keeps the weights of the whole set: computing them anew in each resample would bias the value.
Source: Vedantam et al., CVPR 2015, equations 1 to 5 with the clipping and length penalty of CIDEr-D (section 6);
the length in bigrams from pycocoevalcap. Range 0 to 10; even identical captions of fewer than four words stay below.
Blind to: negation and laterality (`no effusion`, `left`), which are frequent words and weigh little.
"""

from __future__ import annotations

import math
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

ORDERS = 4
SIGMA_SQUARED = 6.0**2
Ngrams = Counter[tuple[str, ...]]


class CiderOptions(Part):
    """CIDEr has no options."""


class Cider:
    """Mean CIDEr-D; columns: the sample's value, and 1."""

    Options = CiderOptions
    name = "cider"
    version = "1"
    kinds = frozenset({"caption"})
    requires = frozenset({"references"})
    columns = ("cider", "count")
    values = (MetricValue("cider", "TF-IDF weighted n-gram agreement with the references", ceiling=10.0),)

    def __init__(self, options: CiderOptions, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 2)."""
        import numpy as np

        texts = cleaned_cases(cases, profile)
        answers = [_ngrams(text.answer) for text in texts]
        references = [[_ngrams(reference) for reference in text.references] for text in texts]
        weights = _Weights(references)
        rows = [(weights.cider(a, r), 1.0) for a, r in zip(answers, references, strict=True)]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 2)

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The mean from sums of shape (..., 2); NaN over no sample."""
        from mhe_metrics.means import mean

        return {"cider": mean(sums[..., 0], sums[..., 1])}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """Each sample's value, with the weights of the whole set."""
        return self.aggregate(statistics)


def _ngrams(text: str) -> Ngrams:
    words = text.split()
    return Counter(tuple(words[at : at + k]) for k in range(1, ORDERS + 1) for at in range(len(words) - k + 1))


def _bigrams(ngrams: Ngrams) -> int:
    return sum(count for ngram, count in ngrams.items() if len(ngram) == 2)


Vector = list[dict[tuple[str, ...], float]]


class _Weights:
    """IDF over the references of a set."""

    def __init__(self, references: Sequence[Sequence[Ngrams]]) -> None:
        frequency: Counter[tuple[str, ...]] = Counter()
        for one in references:
            frequency.update(set().union(*one))
        size = math.log(len(references)) if references else 0.0
        self._unseen = size
        self._idf = {ngram: size - math.log(count) for ngram, count in frequency.items()}

    def _vector(self, ngrams: Ngrams) -> tuple[Vector, list[float]]:
        vector: Vector = [{} for _ in range(ORDERS)]
        for ngram, count in ngrams.items():
            vector[len(ngram) - 1][ngram] = count * self._idf.get(ngram, self._unseen)
        return vector, [math.sqrt(sum(weight * weight for weight in part.values())) for part in vector]

    def cider(self, answer: Ngrams, references: Sequence[Ngrams]) -> float:
        """CIDEr-D of one answer."""
        vector, norms = self._vector(answer)
        length = _bigrams(answer)
        total = 0.0
        for reference in references:
            other, other_norms = self._vector(reference)
            penalty = math.exp(-((length - _bigrams(reference)) ** 2) / (2 * SIGMA_SQUARED))
            for part, other_part, norm, other_norm in zip(vector, other, norms, other_norms, strict=True):
                if norm == 0 or other_norm == 0:
                    continue
                shared = part.keys() & other_part.keys()
                product = sum(min(part[ngram], other_part[ngram]) * other_part[ngram] for ngram in shared)
                total += penalty * product / (norm * other_norm)
        return 10 * total / ORDERS / len(references)
