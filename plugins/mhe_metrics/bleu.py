"""BLEU-1 to BLEU-4 over the corpus, as COCO's caption evaluation computes them.

    BLEU-n = BP · (p_1 · … · p_n)^(1/n),   p_k = matched k-grams / k-grams of the answers,   BP = exp(1 − r/c) if c < r

with matches clipped by the reference that has most of the k-gram, c the answers' length and r the sum of the
reference lengths closest to each answer's (the shorter of two equally close). Matches, k-grams and lengths are sums
over samples: BLEU is a function of nine sums, never a mean of sentence values. Two small constants keep the
fractions finite, as in pycocoevalcap: a per-sample BLEU-4 of an answer of fewer than four words is not 0 but small.

Source: Papineni et al., ACL 2002; constants and closest length from pycocoevalcap (BleuScorer).
Blind to: meaning, word order beyond four words, and, by being precise only, to what an answer leaves out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import MetricValue, Part
from mhe_metrics.ngrams import count_ngrams, look_up, word_lengths
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile
    from mhe_metrics.ngrams import Integers, NgramCounts
    from mhe_metrics.texts import CleanedCase

    FloatArray = NDArray[np.float64]

ORDERS = 4
TINY = 1e-15
SMALL = 1e-9
PART = 4_000_000


class BleuOptions(Part):
    """BLEU has no options."""


class Bleu:
    """Corpus BLEU; columns: matched and possible k-grams for k = 1 to 4, and the closest reference length."""

    Options = BleuOptions
    name = "bleu"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires = frozenset({"references"})
    columns = (*(f"matched-{k}" for k in range(1, 5)), *(f"possible-{k}" for k in range(1, 5)), "reference-length")
    values = (
        MetricValue("bleu-1", "share of the answers' words that a reference has; short answers lose"),
        *(MetricValue(f"bleu-{k}", f"the same of sequences of 1 to {k} words, geometric mean") for k in range(2, 5)),
    )

    def __init__(self, options: BleuOptions, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 9)."""
        import numpy as np

        texts = cleaned_cases(cases, profile)
        rows = [_rows(texts[start:end]) for start, end in _parts(texts)]
        return np.concatenate([np.zeros((0, len(self.columns))), *rows])

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """BLEU-1 to BLEU-4 from sums of shape (..., 9)."""
        import numpy as np

        matched, possible = sums[..., :ORDERS], sums[..., ORDERS : 2 * ORDERS]
        length, reference_length = possible[..., 0], sums[..., -1]
        products = np.cumprod((matched + TINY) / (possible + SMALL), axis=-1)
        ratio = (length + TINY) / (reference_length + SMALL)
        brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
        bleu: dict[str, FloatArray] = {}
        for k in range(1, ORDERS + 1):
            bleu[f"bleu-{k}"] = np.asarray(products[..., k - 1] ** (1 / k) * brevity, dtype=np.float64)
        return bleu

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """Sentence BLEU with the same constants; its mean is not the corpus value."""
        return self.aggregate(statistics)


def _parts(texts: Sequence[CleanedCase]) -> Iterator[tuple[int, int]]:
    """Runs of cases of about `PART` characters, so that memory does not grow with the number of cases."""
    start, size = 0, 0
    for place, text in enumerate(texts):
        size += len(text.answer) + sum(map(len, text.references))
        if size > PART:
            yield start, place + 1
            start, size = place + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _rows(cases: Sequence[CleanedCase]) -> FloatArray:
    """Shape (len(cases), 9)."""
    import numpy as np

    answers = [case.answer.split() for case in cases]
    references = [reference.split() for case in cases for reference in case.references]
    n_cases, counts = len(cases), [len(case.references) for case in cases]
    owners = np.concatenate([np.arange(n_cases), np.repeat(np.arange(n_cases), counts)])
    matched = [_matched(ngrams, owners, n_cases) for ngrams in count_ngrams([*answers, *references], ORDERS)]
    lengths = word_lengths(answers)
    possible = [np.maximum(0, lengths - k) for k in range(ORDERS)]
    others = word_lengths(references)
    # The closest length, and of two the shorter: the first when sorted by case, distance and length.
    distances = np.abs(others - lengths[owners[n_cases:]])
    order = np.lexsort((others, distances, owners[n_cases:]))
    closest = others[order][np.cumsum([0, *counts[:-1]])]
    return np.column_stack([*matched, *possible, closest]).astype(np.float64)


def _matched(ngrams: NgramCounts, owners: Integers, n_cases: int) -> FloatArray:
    """Matches of each case's answer, clipped by the reference that has most of the n-gram; shape (n_cases,)."""
    import numpy as np

    keys, is_answer = ngrams.keys(owners), ngrams.texts < n_cases
    known, places = np.unique(keys[~is_answer], return_inverse=True)
    allowed = np.zeros(len(known), dtype=np.int64)
    np.maximum.at(allowed, places, ngrams.counts[~is_answer])
    places, is_shared = look_up(keys[is_answer], known)
    shared = np.minimum(ngrams.counts[is_answer][is_shared], allowed[places[is_shared]])
    return np.bincount(ngrams.texts[is_answer][is_shared], shared, minlength=n_cases).astype(np.float64)
