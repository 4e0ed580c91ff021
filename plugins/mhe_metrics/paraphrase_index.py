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
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import MetricUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

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


@dataclass(frozen=True, slots=True)
class ParaphraseIndex:
    """An index on disk."""

    place: Path

    def occurring(self, texts: Iterable[str]) -> Flags:
        """For each distinct phrase of the table whether its letters and digits occur in the texts; shape (phrases,)."""
        import numpy as np

        phrases = self._phrases()
        found = np.zeros(len(phrases), dtype=bool)
        # Most runs of words are no phrase, which their first bits tell sooner than a search.
        sieve = np.zeros(1 << SIEVE_BITS, dtype=bool)
        shift = np.uint64(64 - SIEVE_BITS)
        sieve[phrases >> shift] = True
        for hashes, _ in _ngram_hashes([text] for text in texts):
            ngrams = np.sort(hashes[sieve[hashes >> shift]])
            rows = np.searchsorted(phrases, ngrams)
            rows[rows == len(phrases)] = 0
            found[rows[phrases[rows] == ngrams]] = True
        return found

    def missing(self, known: Flags, wanted: Flags) -> Hashes:
        """Phrases of `wanted`, which holds `known`, that `known` lacks and that make a pair in it: hashes, sorted."""
        import numpy as np

        pairs = np.load(self.place / "pairs.npy", mmap_mode="r")
        new = wanted & ~known
        kept = np.flatnonzero(wanted[pairs[0]] & wanted[pairs[1]])
        rows = np.unique(pairs[:, kept])
        found: Hashes = self._phrases()[rows[new[rows]]]
        return found

    def cases_with(self, phrases: Hashes, cases: Sequence[Sequence[str]]) -> Flags:
        """For each case whether one of the sorted `phrases` occurs in one of its texts; shape (len(cases),)."""
        import numpy as np

        found = np.zeros(len(cases), dtype=bool)
        for hashes, owners in _ngram_hashes(cases):
            if not len(owners):
                found |= hashes[0] in phrases
                continue
            rows = np.minimum(np.searchsorted(phrases, hashes), len(phrases) - 1)
            found[owners[phrases[rows] == hashes]] = True
        return found

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


def _ngram_hashes(cases: Iterable[Iterable[str]]) -> Iterator[tuple[Hashes, Places]]:
    """Hashes of all runs of 0 to `LONGEST` words of the cases' texts and the case of each, one pair a length.

    The run of no words has no case: it is in all.
    """
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
    # A phrase without an ASCII letter or digit is taken to occur everywhere.
    yield np.zeros(1, dtype=np.uint64), owners[:0]
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
