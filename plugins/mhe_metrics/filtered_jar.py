"""METEOR's kept process with the part of its paraphrase table that the texts need.

The first call chooses the part: pairs of phrases that occur in its texts. A later call with the same references brings
answers with other phrases, but few of its cases have a pair that the part lacks between their own answer and their own
references. The warm process answers all, and meanwhile these few are found and go to a process of their own, for the
time of the call, whose answers count.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import MetricUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    import numpy as np
    from numpy.typing import NDArray

    from mhe_metrics.meteor_jar import MeteorJar
    from mhe_metrics.paraphrase_index import Occurrences, ParaphraseIndex
    from mhe_metrics.texts import CleanedCase

    Flags = NDArray[np.bool_]
    Texts: TypeAlias = tuple[str, Sequence[str]]
    """An answer and its references."""

FEW = 200
"""Cases for which no index is built: the whole table is read sooner."""
MANY = 0.25
"""The share of cases with other references from which on another process replaces the one that is there."""


class FilteredJar:
    """The kept process, and the phrases that its paraphrase table was made for."""

    def __init__(self, cache_dir: Path) -> None:
        self._cache_dir = cache_dir
        self._jar: MeteorJar | None = None
        self._phrases: Flags | None = None
        """None where the process has the whole table."""
        self._references: frozenset[str] = frozenset()
        """Whose phrases are all among `_phrases`."""
        # A metric that is gone may leave a call behind that nobody waits for: the next one waits its turn.
        self._turn = threading.Lock()

    @property
    def is_started(self) -> bool:
        """Whether a process is kept."""
        return self._jar is not None

    def ask(self, texts: Sequence[CleanedCase]) -> list[list[float]]:
        """The jar's 23 numbers for each case. Raises `MetricUnavailableError`."""
        with self._turn:
            return self._ask(texts)

    def _ask(self, texts: Sequence[CleanedCase]) -> list[list[float]]:
        from mhe_metrics.java import find_jar
        from mhe_metrics.meteor_jar import MeteorJar, safe_text, score_line
        from mhe_metrics.paraphrase_index import open_index

        lines = [score_line(text.answer, text.references) for text in texts]
        if self._jar is not None and self._phrases is None:
            return self._jar.ask(lines)
        table = find_jar("meteor", "data", "paraphrase-en.gz")
        index = open_index(table, self._cache_dir, build=len(lines) >= FEW)
        if index is None:
            self._jar = MeteorJar()
            return self._jar.ask(lines)
        cases = [(safe_text(text.answer), tuple(map(safe_text, text.references))) for text in texts]
        known = self._references
        if self._jar is not None and sum(known.issuperset(right) for _, right in cases) > (1 - MANY) * len(cases):
            # The kept process works while it is found out which cases need more.
            with ThreadPoolExecutor(1) as thread:
                asked = thread.submit(self._jar.ask, lines)
                more = self._ask_apart(index, cases, lines)
            answers = asked.result()
            for row, numbers in more.items():
                answers[row] = numbers
            return answers
        wanted = index.flags_of(index.occurrences([answer, *right] for answer, right in cases))
        if self._jar is not None and self._phrases is not None:
            self._jar.close()
            wanted |= self._phrases
        self._phrases = wanted
        self._references |= {text for _, right in cases for text in right}
        self._jar = _start(index, wanted)
        return self._jar.ask(lines)

    def _ask_apart(
        self, index: ParaphraseIndex, cases: Sequence[Texts], lines: Sequence[str]
    ) -> dict[int, list[float]]:
        """The numbers of those cases that have pairs which the kept table lacks, from a process of their own."""
        known = self._references
        occurring = index.occurrences([answer, *(r for r in right if r not in known)] for answer, right in cases)
        assert self._phrases is not None
        lacking = _lacking(index, self._phrases, self._phrases | index.flags_of(occurring), occurring, cases)
        if not lacking:
            return {}
        jar = _start(index, index.flags_of(index.occurrences((cases[row][0], *cases[row][1]) for row in lacking)))
        try:
            return dict(zip(lacking, jar.ask([lines[row] for row in lacking]), strict=True))
        finally:
            jar.close()


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


def _start(index: ParaphraseIndex, phrases: Flags) -> MeteorJar:
    """A process with the pairs of these phrases; their file is kept as long, for when it is started again."""
    from mhe_metrics.meteor_jar import MeteorJar

    folder = None
    try:
        folder = tempfile.mkdtemp(prefix="mhe-meteor-")
        path = Path(folder) / "paraphrases.gz"
        index.write_filtered(phrases, path)
    except OSError as error:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise MetricUnavailableError(
            f"METEOR's paraphrases cannot be written to {tempfile.gettempdir()} ({error.strerror}): they take some "
            "megabytes; set TMPDIR to a folder with room"
        ) from None
    jar = MeteorJar(path)
    weakref.finalize(jar, shutil.rmtree, folder, ignore_errors=True)
    return jar
