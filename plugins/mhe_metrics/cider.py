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

from typing import TYPE_CHECKING

from mhe import MetricValue, Part
from mhe_metrics.ngrams import count_ngrams, look_up, word_lengths
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile
    from mhe_metrics.ngrams import Integers, NgramCounts

    FloatArray = NDArray[np.float64]

ORDERS = 4
SIGMA_SQUARED = 6.0**2


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
    values = (MetricValue("cider", "shared sequences of 1 to 4 words, rare ones weighing more", ceiling=10.0),)

    def __init__(self, options: CiderOptions, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 2)."""
        import numpy as np

        texts = cleaned_cases(cases, profile)
        values = _cider(
            [text.answer.split() for text in texts], [[r.split() for r in text.references] for text in texts]
        )
        return np.column_stack([values, np.ones(len(texts))])

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The mean from sums of shape (..., 2); NaN over no sample."""
        from mhe_metrics.means import mean

        return {"cider": mean(sums[..., 0], sums[..., 1])}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """Each sample's value, with the weights of the whole set."""
        return self.aggregate(statistics)


def _cider(answers: list[list[str]], references: list[list[list[str]]]) -> FloatArray:
    """CIDEr-D of each answer, with the weights of the whole set; shape (len(answers),)."""
    import numpy as np

    n_cases = len(answers)
    if not n_cases:
        return np.zeros(0)
    counts = word_lengths(references)
    # Texts are the answers, then all references; a case is known by its answer's position.
    cases = np.concatenate([np.arange(n_cases), np.repeat(np.arange(n_cases), counts)])
    texts = [*answers, *(reference for group in references for reference in group)]
    cosines = np.zeros(len(texts))
    for ngrams in count_ngrams(texts, ORDERS):
        cosines += _clipped_cosines(ngrams, cases, n_cases)
    bigrams = np.maximum(word_lengths(texts) - 1, 0)
    penalties = np.exp(-((bigrams - bigrams[cases]) ** 2) / (2 * SIGMA_SQUARED))
    totals = np.bincount(cases[n_cases:], (cosines * penalties)[n_cases:], minlength=n_cases)
    values: FloatArray = 10 * totals / ORDERS / counts
    return values


def _clipped_cosines(ngrams: NgramCounts, cases: Integers, n_cases: int) -> FloatArray:
    """For each text its clipped product with its case's answer over both norms, 0 where a norm is; shape (texts,)."""
    import numpy as np

    keys, is_answer = ngrams.keys(cases), ngrams.texts < n_cases
    in_references = np.sort(keys[~is_answer])
    is_first = np.concatenate([np.ones(min(1, len(in_references)), dtype=bool), np.diff(in_references) > 0])
    in_references = in_references[is_first] % ngrams.distinct
    frequency = np.bincount(in_references, minlength=ngrams.distinct)
    weights = ngrams.counts * (np.log(n_cases) - np.log(np.maximum(frequency, 1)))[ngrams.ngrams]
    norms = np.sqrt(np.bincount(ngrams.texts, weights**2, minlength=len(cases)))
    places, is_shared = look_up(keys, keys[is_answer])
    own = weights[is_shared]
    shared = np.minimum(weights[is_answer][places[is_shared]], own) * own
    products = np.bincount(ngrams.texts[is_shared], shared, minlength=len(cases))
    both = norms * norms[cases]
    cosines: FloatArray = np.divide(products, both, out=np.zeros(len(cases)), where=both > 0)
    return cosines
