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
TINY = 1e-15
SMALL = 1e-9


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
    values = tuple(MetricValue(f"bleu-{k}", f"n-gram precision up to {k} words, corpus") for k in range(1, 5))

    def __init__(self, options: BleuOptions, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 9)."""
        import numpy as np

        rows = [
            _row(text.answer.split(), [r.split() for r in text.references]) for text in cleaned_cases(cases, profile)
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.columns))

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


def _row(answer: list[str], references: list[list[str]]) -> list[int]:
    matched = []
    for k in range(1, ORDERS + 1):
        allowed: Counter[tuple[str, ...]] = Counter()
        for reference in references:
            allowed |= _ngrams(reference, k)
        matched.append((_ngrams(answer, k) & allowed).total())
    possible = [max(0, len(answer) - k + 1) for k in range(1, ORDERS + 1)]
    closest = min((abs(len(reference) - len(answer)), len(reference)) for reference in references)[1]
    return [*matched, *possible, closest]


def _ngrams(words: list[str], k: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(k)), strict=False))
