"""METEOR's kept processes with the part of its paraphrase table that the texts need.

The first call chooses the part: pairs of phrases that occur in its texts. A later call with the same references brings
answers with other phrases, but few of its cases have a pair that the part lacks between their own answer and their own
references. Only these go to a process of their own, for the time of the call; the others to those that are warm.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from mhe_metrics.meteor_jar import MeteorJars
    from mhe_metrics.paraphrase_index import Occurrences, ParaphraseIndex
    from mhe_metrics.texts import CleanedCase

    Flags = NDArray[np.bool_]
    Texts: TypeAlias = tuple[str, Sequence[str]]
    """An answer and its references."""

FEW = 200
"""Cases for which no index is built: the whole table is read sooner."""
MANY = 0.25
"""The share of cases without their pairs from which on other processes replace those that are there."""


class FilteredJar:
    """Kept processes, and the phrases that their paraphrase table was made for."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._jar: MeteorJars | None = None
        self._phrases: Flags | None = None
        """None where the processes have the whole table."""
        self._references: frozenset[str] = frozenset()
        """Whose phrases are all among `_phrases`."""

    @property
    def is_started(self) -> bool:
        """Whether processes are kept."""
        return self._jar is not None

    def ask(self, texts: Sequence[CleanedCase]) -> list[list[float]]:
        """The jar's 23 numbers for each case."""
        from mhe_metrics.java import find_jar
        from mhe_metrics.meteor_jar import MeteorJars, safe_text, score_line
        from mhe_metrics.paraphrase_index import open_index

        lines = [score_line(text.answer, text.references) for text in texts]
        if self._jar is not None and self._phrases is None:
            return self._jar.ask(lines)
        table = find_jar("meteor", "data", "paraphrase-en.gz")
        index = open_index(table, self._cache_dir, build=len(lines) >= FEW)
        if index is None:
            self._jar = MeteorJars()
            return self._jar.ask(lines)
        cases = [(safe_text(text.answer), tuple(map(safe_text, text.references))) for text in texts]
        known = self._references
        occurring = index.occurrences([answer, *(r for r in right if r not in known)] for answer, right in cases)
        if self._jar is None or self._phrases is None:
            return self._replace(index, index.flags_of(occurring), cases).ask(lines)
        wanted = self._phrases | index.flags_of(occurring)
        lacking = _lacking(index, self._phrases, wanted, occurring, cases)
        if len(lacking) > MANY * len(lines):
            self._jar.close()
            return self._replace(index, wanted, cases).ask(lines)
        if not lacking:
            return self._jar.ask(lines)
        of_these = index.occurring({text for row in lacking for text in (cases[row][0], *cases[row][1])})
        more = _start(index, of_these)
        try:
            return _ask_both(self._jar, more, lines, lacking)
        finally:
            more.close()

    def _replace(self, index: ParaphraseIndex, phrases: Flags, cases: Sequence[Texts]) -> MeteorJars:
        self._phrases = phrases
        self._references |= {text for _, right in cases for text in right}
        self._jar = _start(index, phrases)
        return self._jar


def _lacking(
    index: ParaphraseIndex,
    known: Flags,
    wanted: Flags,
    occurring: Occurrences,
    cases: Sequence[Texts],
) -> list[int]:
    """The cases with a pair of phrases, one in the answer and one in a reference, that a table for `known` lacks.

    `wanted` are the known phrases and all of the cases; `occurring` tells where in the cases those are that may be new.
    """
    import numpy as np

    partners = index.new_partners(known, wanted)
    has_partners = np.zeros(len(wanted), dtype=bool)
    has_partners[list(partners)] = True
    rows = np.unique(occurring.cases[has_partners[occurring.phrases]]).tolist()
    found = index.cases_with_a_pair(partners, [cases[row] for row in rows])
    return [rows[number] for number in found]


def _start(index: ParaphraseIndex, phrases: Flags) -> MeteorJars:
    """Processes with the pairs of these phrases; their file is kept as long, for one that is started again."""
    from mhe_metrics.meteor_jar import MeteorJars

    folder = tempfile.mkdtemp(prefix="mhe-meteor-")
    path = Path(folder) / "paraphrases.gz"
    index.write_filtered(phrases, path)
    jars = MeteorJars(path)
    weakref.finalize(jars, shutil.rmtree, folder, ignore_errors=True)
    return jars


def _ask_both(kept: MeteorJars, more: MeteorJars, lines: Sequence[str], lacking: Sequence[int]) -> list[list[float]]:
    """Each line's numbers from `more` where `kept` lacks its pairs, else from `kept`."""
    chosen = set(lacking)
    others = [row for row in range(len(lines)) if row not in chosen]
    answers: list[list[float]] = [[]] * len(lines)
    with ThreadPoolExecutor(2) as threads:
        asked = [
            (rows, threads.submit(jars.ask, [lines[r] for r in rows]))
            for jars, rows in ((more, lacking), (kept, others))
        ]
        for rows, future in asked:
            for row, numbers in zip(rows, future.result(), strict=True):
                answers[row] = numbers
    return answers
