"""ROUGE-1, ROUGE-2 and ROUGE-L as Google's `rouge_score` computes them, averaged over samples.

    P = shared n-grams / n-grams of the answer,   R = shared n-grams / n-grams of the reference,   F1 = 2 P R / (P + R)

with n-grams shared at most as often as the other side has them (clipped). For `rouge-l-google` the length of the
longest common subsequence of words stands in the place of the shared n-grams. Of several references each of the three
takes the one with its highest F1. Where either side has no n-gram the value is 0, for two empty texts as well.

The words are runs of a–z and 0–9 after lower-casing: everything else parts words, so that `3.5` is two words and text
in another script is nothing at all. With `stemming` words of more than three letters are cut by Porter's stemmer.

`rouge-l-google` is not COCO's `rouge-l`: that weights recall by beta 1.2, takes precision and recall from different
references, and counts the profile's own words; one set of captions gave .4510 here and .4476 there.

Source: Lin, ROUGE, ACL workshop 2004; tokens and F1 from the package `rouge_score` 0.1.2.
Blind to: synonyms, negation, and every character that is not an ASCII letter or digit (µ, ±, Chinese).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from mhe import MetricUnavailableError, MetricValue, Part
from mhe_metrics.rouge_l import longest_common
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile

    FloatArray = NDArray[np.float64]

Item = TypeVar("Item", bound=Hashable)

_WORD = re.compile("[a-z0-9]+")
SHORTEST_STEMMED = 4


class RougeOptions(Part):
    """How words are compared."""

    stemming: bool = False
    """Compare Porter stems instead of words (needs nltk); published numbers differ in this."""


class Rouge:
    """Mean F1 of ROUGE-1, -2 and -L; columns: the three, and 1."""

    Options = RougeOptions
    name = "rouge"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires = frozenset({"references"})
    columns = ("rouge-1", "rouge-2", "rouge-l-google", "count")
    values = (
        MetricValue("rouge-1", "F1 of words shared with the best reference (Google's ROUGE)"),
        MetricValue("rouge-2", "F1 of word pairs shared with the best reference (Google's ROUGE)"),
        MetricValue("rouge-l-google", "F1 of the longest common subsequence with the best reference (Google's ROUGE)"),
    )

    def __init__(self, options: RougeOptions, context: MetricContext) -> None:
        del context
        self._options = options

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 4). Raises `MetricUnavailableError` where stemming is asked for without nltk."""
        import numpy as np

        stem = _stemmer() if self._options.stemming else None
        rows = [
            (*_best(_words(text.answer, stem), [_words(r, stem) for r in text.references]), 1.0)
            for text in cleaned_cases(cases, profile)
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(self.columns))

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The means from sums of shape (..., 4); NaN over no sample."""
        from mhe_metrics.means import mean

        return {value.name: mean(sums[..., place], sums[..., 3]) for place, value in enumerate(self.values)}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """The three of each sample."""
        return self.aggregate(statistics)


def _stemmer() -> Callable[[str], str]:
    """Porter's stemmer, each word stemmed once."""
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError:
        raise MetricUnavailableError(
            "stemming needs nltk, which is not installed; pip install nltk, or leave out metrics.rouge.stemming"
        ) from None
    stem = PorterStemmer().stem
    known: dict[str, str] = {}

    def stemmed(word: str) -> str:
        if len(word) < SHORTEST_STEMMED:
            return word
        if word not in known:
            known[word] = str(stem(word))
        return known[word]

    return stemmed


def _words(text: str, stem: Callable[[str], str] | None) -> list[str]:
    words = _WORD.findall(text.lower())
    return words if stem is None else [stem(word) for word in words]


def _best(answer: list[str], references: list[list[str]]) -> tuple[float, float, float]:
    """ROUGE-1, -2 and -L, each against the reference that it is highest for."""
    length_of = longest_common()
    words, pairs = Counter(answer), _pairs(answer)
    one = two = longest = 0.0
    for reference in references:
        shared = _shared(words, Counter(reference))
        if shared == 0:
            continue
        one = max(one, _f1(shared, len(answer), len(reference)))
        two = max(two, _f1(_shared(pairs, _pairs(reference)), len(answer) - 1, len(reference) - 1))
        longest = max(longest, _f1(length_of(answer, reference), len(answer), len(reference)))
    return one, two, longest


def _pairs(words: list[str]) -> Counter[tuple[str, str]]:
    return Counter(pairwise(words))


def _shared(one: Counter[Item], other: Counter[Item]) -> int:
    return sum(min(count, other[item]) for item, count in one.items() if item in other)


def _f1(shared: int, answer: int, reference: int) -> float:
    if shared == 0:
        return 0.0
    precision, recall = shared / answer, shared / reference
    return 2 * precision * recall / (precision + recall)
