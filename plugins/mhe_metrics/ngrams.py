"""n-grams of many texts at once, as numbers: the same counts as a `Counter` a text, an order of magnitude sooner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class NgramCounts:
    """Which text holds which n-gram of one order how often; entries sorted by text, then n-gram."""

    texts: Integers
    """Position of the text, shape (entries,)."""
    ngrams: Integers
    """Number of the n-gram below `distinct`, equal for equal n-grams; shape (entries,)."""
    counts: Integers
    distinct: int

    def keys(self, groups: Integers) -> Integers:
        """One number for each entry's n-gram and `groups[text]`; rises with the entries where the groups do."""
        found: Integers = groups[self.texts] * self.distinct + self.ngrams
        return found


def word_lengths(texts: Sequence[Sequence[object]]) -> Integers:
    """How many words each text has, or texts each group; shape (len(texts),)."""
    import numpy as np

    return np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))


def count_ngrams(texts: Sequence[Sequence[str]], orders: int) -> Iterator[NgramCounts]:
    """The n-grams of 1 to `orders` words of each text, given as its words; one `NgramCounts` an order.

    Numbers of n-grams are exact: each is looked up, none is hashed to fit.
    """
    import numpy as np

    known: dict[str, int] = {}
    words = np.array([known.setdefault(word, len(known)) for text in texts for word in text], dtype=np.int64)
    owners = np.repeat(np.arange(len(texts)), word_lengths(texts))
    starts, numbers = np.arange(len(words)), words
    for order in range(1, orders + 1):
        if order > 1:
            # Only an n-gram that ends inside its text, made of the one before it and a word.
            stays = starts + order - 1 < len(words)
            stays[stays] = owners[starts[stays]] == owners[starts[stays] + order - 1]
            starts = starts[stays]
            pairs = numbers[stays] * max(1, len(known)) + words[starts + order - 1]
            numbers = np.unique(pairs, return_inverse=True)[1]
        distinct = int(numbers.max()) + 1 if len(numbers) else 1
        entries, counts = np.unique(owners[starts] * distinct + numbers, return_counts=True)
        yield NgramCounts(entries // distinct, entries % distinct, counts, distinct)


def look_up(keys: Integers, known: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """The place of each key in the sorted `known`, and whether it is there (where not, the place means nothing)."""
    import numpy as np

    if not len(known):
        return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return places, known[places] == keys
