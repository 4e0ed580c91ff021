"""METEOR's paraphrase table, indexed once, so that its jar is given only the pairs that can occur in the texts.

The table has 5.3 million pairs of phrases and takes the jar seconds to load. A pair is left out only where the
letters and digits of one of its phrases, in their order, stand nowhere in the texts. The jar's normaliser moves
blanks and punctuation and never touches ASCII letters and digits other than by lower-casing them and by resolving
five XML entities, so that every pair that the jar could match after its own normalisation is kept, and in the order
of the table: the jar's output is the same byte for byte. Phrases are compared by a 64-bit hash; two that collide
keep a pair too many, which changes nothing either.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import re
import shutil
import struct
import tempfile
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mhe import MetricUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Flags = NDArray[np.bool_]
    Places = NDArray[np.int64]

FORMAT = 1
LONGEST = 9
"""Runs of letters and digits in the longest phrase of the English table."""
MULTIPLIER = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
SIEVE_BITS = 24
NOTHING = 0
"""The hash of a phrase without ASCII letters and digits; hashes are sorted, so that it stands first."""
REMEMBERED = 400_000
"""Phrases kept while the index is built: most repeat soon after, and all of them would take half a gigabyte."""
RUN = re.compile(r"[a-z0-9]+")
RUN_BYTES = re.compile(rb"[a-z0-9]+")
# The normaliser resolves these, and writes and removes the mark DOTMULTI: neither leaves letters behind.
VANISHING = re.compile(r"(?ai:&(?:quot|apos|lt|gt|amp);)|(?:DOT)*DOTMULTI")


def _word_hash(word: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(word, digest_size=8).digest(), "little")


def open_index(table: Path, cache_dir: Path, *, build: bool) -> ParaphraseIndex | None:
    """The index of the gzipped `table`, built in `cache_dir` if it is not there and `build` says so; else None.

    Raises `MetricUnavailableError` where the cache cannot be written.

    The index is found by the table's content (the checksum and size that gzip keeps), and becomes visible whole.
    """
    with table.open("rb") as stream:
        stream.seek(-8, os.SEEK_END)
        checksum, size = struct.unpack("<II", stream.read(8))
    place = cache_dir / "meteor" / f"paraphrases-{checksum:08x}-{size}-v{FORMAT}"
    if not place.is_dir():
        if not build:
            return None
        # A person waits, and has no other sign of it. Level and stream are those that are seen where nothing is set up.
        logging.getLogger(__name__).warning(
            "METEOR: indexing 5.3 million paraphrases, once on this machine (about 20 s, 380 MB in %s) …", place.parent
        )
        try:
            _build(table, place)
        except OSError as error:
            raise MetricUnavailableError(
                f"METEOR's paraphrase index cannot be written to {place} ({error.strerror}): it takes 380 MB; "
                "set MHE_CACHE_DIR to a folder with room"
            ) from None
    return ParaphraseIndex(place)


class Occurrences(NamedTuple):
    """Phrases that stand in texts, as often as they do."""

    phrases: Places
    """Their rows among the table's distinct phrases."""
    cases: Places
    """The case of each."""


@dataclass(frozen=True, slots=True)
class ParaphraseIndex:
    """An index on disk."""

    place: Path

    def occurring(self, texts: Iterable[str]) -> Flags:
        """For each distinct phrase of the table whether its letters and digits occur in the texts; shape (phrases,)."""
        return self.flags_of(self.occurrences([text] for text in texts))

    def occurrences(self, cases: Iterable[Iterable[str]]) -> Occurrences:
        """Every place where letters and digits of a phrase stand in a text of a case, those without any left out."""
        import numpy as np

        phrases, sieve = self._phrases(), _sieve(self.place)
        shift = np.uint64(64 - SIEVE_BITS)
        rows, owners = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for hashes, cases_of in _ngram_hashes(cases):
            likely = np.flatnonzero(sieve[hashes >> shift])
            # Sorted, since a search for neighbours finds them in the processor's cache.
            likely = likely[np.argsort(hashes[likely])]
            found = np.searchsorted(phrases, hashes[likely])
            found[found == len(phrases)] = 0
            is_phrase = phrases[found] == hashes[likely]
            rows.append(found[is_phrase])
            owners.append(cases_of[likely[is_phrase]])
        return Occurrences(np.concatenate(rows), np.concatenate(owners))

    def flags_of(self, occurrences: Occurrences) -> Flags:
        """For each distinct phrase whether it occurs, or has no letter and no digit; shape (phrases,)."""
        import numpy as np

        phrases = self._phrases()
        flags = np.zeros(len(phrases), dtype=bool)
        flags[occurrences.phrases] = True
        flags[:1] |= phrases[:1] == NOTHING
        return flags

    def new_partners(self, known: Flags, wanted: Flags) -> dict[int, list[int]]:
        """To each phrase of `wanted` that `known` lacks the phrases of `wanted` that the table pairs it with."""
        import numpy as np

        pairs = np.load(self.place / "pairs.npy", mmap_mode="r")
        new = wanted & ~known
        kept = np.flatnonzero(wanted[pairs[0]] & wanted[pairs[1]])
        partners: dict[int, list[int]] = {}
        for one, other in pairs[:, kept[new[pairs[0, kept]] | new[pairs[1, kept]]]].T.tolist():
            if new[one]:
                partners.setdefault(one, []).append(other)
            if new[other]:
                partners.setdefault(other, []).append(one)
        return partners

    def cases_with_a_pair(
        self, partners: Mapping[int, Sequence[int]], cases: Sequence[tuple[str, Sequence[str]]]
    ) -> list[int]:
        """The numbers of those cases of which the answer has a phrase and a reference one of its partners, or the other
        way round.
        """
        answers = self._by_case([[answer] for answer, _ in cases])
        references = self._by_case([texts for _, texts in cases])
        found = []
        for number, (ours, theirs) in enumerate(zip(answers, references, strict=True)):
            pairs = ((ours, theirs), (theirs, ours))
            if any(not other.isdisjoint(partners.get(row, ())) for side, other in pairs for row in side):
                found.append(number)
        return found

    def _by_case(self, cases: Sequence[Sequence[str]]) -> list[set[int]]:
        """Each case's phrases, and the one without letters and digits, which is taken to occur everywhere."""
        everywhere = self._phrases()[:1] == NOTHING
        sets: list[set[int]] = [{0} if everywhere.any() else set() for _ in cases]
        found = self.occurrences(cases)
        for row, owner in zip(found.phrases.tolist(), found.cases.tolist(), strict=True):
            sets[owner].add(row)
        return sets

    def _phrases(self) -> Hashes:
        """Hashes of the table's distinct phrases, sorted."""
        import numpy as np

        phrases: Hashes = np.load(self.place / "phrases.npy", mmap_mode="r")
        return phrases

    def write_filtered(self, occurring: Flags, path: Path) -> int:
        """Write the pairs of which both phrases occur to `path`, gzipped, in the table's order; returns how many."""
        import numpy as np

        pairs = np.load(self.place / "pairs.npy", mmap_mode="r")
        kept = np.flatnonzero(occurring[pairs[0]] & occurring[pairs[1]])
        offsets = np.load(self.place / "offsets.npy", mmap_mode="r")
        spans = np.stack([offsets[kept], offsets[kept + 1]], axis=1).tolist()
        text = np.memmap(self.place / "table.txt", dtype=np.uint8, mode="r")
        # Level 1: the file is read once, by the jar.
        with gzip.open(path, "wb", compresslevel=1) as stream:
            for start in range(0, len(spans), 10_000):
                stream.write(b"".join(text[low:high].tobytes() for low, high in spans[start : start + 10_000]))
        return len(spans)


@lru_cache(maxsize=1)
def _sieve(place: Path) -> Flags:
    """Whether any phrase's hash begins with these bits, 16 MB: most runs of words are no phrase, and it tells sooner
    than a search.
    """
    import numpy as np

    phrases: Hashes = np.load(place / "phrases.npy", mmap_mode="r")
    sieve = np.zeros(1 << SIEVE_BITS, dtype=bool)
    sieve[phrases >> np.uint64(64 - SIEVE_BITS)] = True
    return sieve


def _ngram_hashes(cases: Iterable[Iterable[str]]) -> Iterator[tuple[Hashes, Places]]:
    """Hashes of all runs of 1 to `LONGEST` words of the cases' texts and the case of each, one pair a length."""
    import numpy as np

    known: dict[str, int] = {}
    flat, sizes = array("Q"), []
    for texts in cases:
        before = len(flat)
        for text in texts:
            for word in RUN.findall(VANISHING.sub(" ", text).lower()):
                value = known.get(word)
                if value is None:
                    value = known[word] = _word_hash(word.encode())
                flat.append(value)
            flat.append(0)  # no phrase goes from one text into the next
        sizes.append(len(flat) - before)
    words = np.frombuffer(flat, dtype=np.uint64) if flat else np.zeros(0, dtype=np.uint64)
    owners = np.repeat(np.arange(len(sizes)), sizes)
    hashes = np.zeros(len(words), dtype=np.uint64)
    for length in range(1, LONGEST + 1):
        if len(words) < length:
            return
        hashes = hashes[: len(words) - length + 1] * np.uint64(MULTIPLIER) + words[length - 1 :]
        yield hashes, owners[: len(hashes)]


def _build(table: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=place.parent))
    try:
        _write(table, working)
        try:
            working.rename(place)
        except OSError:
            # Another process was as far: its index is the same.
            if not place.is_dir():
                raise
    finally:
        shutil.rmtree(working, ignore_errors=True)


def _write(table: Path, place: Path) -> None:
    import numpy as np

    hash_of = _PhraseHashes()
    first, second, offsets = array("Q"), array("Q"), array("q", [0])
    written = 0
    with gzip.open(table, "rb") as lines, (place / "table.txt").open("wb", buffering=1 << 20) as copy:
        for weight in lines:
            one, other = next(lines), next(lines)
            first.append(hash_of[one])
            second.append(hash_of[other])
            written += copy.write(weight) + copy.write(one) + copy.write(other)
            offsets.append(written)
            hash_of.forget_if_many()
    phrases, rows = np.unique(np.frombuffer(first + second, dtype=np.uint64), return_inverse=True)
    np.save(place / "phrases.npy", phrases)
    np.save(place / "pairs.npy", rows.astype(np.int32).reshape(2, len(first)))
    np.save(place / "offsets.npy", np.frombuffer(offsets, dtype=np.int64))


class _PhraseHashes(dict[bytes, int]):
    """The hash of each phrase, made when first asked for."""

    def __init__(self) -> None:
        super().__init__()
        self._words: dict[bytes, int] = {}

    def __missing__(self, phrase: bytes) -> int:
        total = 0
        for word in RUN_BYTES.findall(phrase):
            value = self._words.get(word)
            if value is None:
                value = self._words[word] = _word_hash(word)
            total = (total * MULTIPLIER + value) & MASK
        self[phrase] = total
        return total

    def forget_if_many(self) -> None:
        if len(self) > REMEMBERED:
            self.clear()
