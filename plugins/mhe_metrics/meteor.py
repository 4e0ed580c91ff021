r"""METEOR 1.5 for English, computed by its authors' Java program, as COCO's caption evaluation runs it.

    P, R = weighted matches / weighted words, of the answer and of the reference
    F = 1 / ((1 − α)/P + α/R),   penalty = γ (chunks / matched words)^β,   METEOR = F (1 − penalty)
    α = .85, β = .2, γ = .6; a function word weighs 1 − δ and any other δ = .75; a match by the same word weighs 1, by
    the same stem .6, by a WordNet synonym .8, by a paraphrase .6

Words, weights and matches are sums over samples: the corpus value is a function of sums, as in the program, where a
sample that is matched whole and in order counts no chunk. Of several references a sample's best one counts.

The program runs under a client of our own: its process is kept and works on every core, texts are written on one line
each (line ends of every kind and the separator `|||` become blanks), and it is given only those of its 5.3 million
paraphrases that can occur in the texts, from an index built once in the cache folder (20 seconds, 380 MB). The values
are the same. Fewer than 200 samples use the whole table until the index is there.

Where an answer and a reference have more than 20,000 pairs of equal words (a word 142 times on both sides; no caption
has them) both are cut to as many first words as leave 20,000: beyond, the program takes minutes and its whole memory.

Source: Denkowski and Lavie, WMT 2014; meteor-1.5.jar and paraphrase-en.gz of pycocoevalcap. nltk's METEOR is another
metric: no paraphrases, no weights of function words, other parameters.
Blind to: negation, numbers and sides, each of which is one word among many.
"""

from __future__ import annotations

import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import MetricValue, Part
from mhe_metrics.filtered_jar import FilteredJar
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile

    FloatArray = NDArray[np.float64]

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGE_WEIGHTS = (1.0, 0.6, 0.8, 0.6)
"""Of matches by word, stem, synonym and paraphrase."""


class MeteorOptions(Part):
    """METEOR has no options."""


class Meteor:
    """Corpus METEOR; columns: weighted words and matches of answers and references, chunks, matched words, and 1."""

    Options = MeteorOptions
    name = "meteor"
    version = "1"
    kinds = frozenset({"caption"})
    requires = frozenset({"references"})
    columns = (
        "answer-weight",
        "reference-weight",
        "answer-matched-weight",
        "reference-matched-weight",
        "chunks",
        "matched-words",
        "count",
    )
    values = (MetricValue("meteor", "words matched exactly, by stem, synonym or paraphrase, and their order"),)

    def __init__(self, options: MeteorOptions, context: MetricContext) -> None:
        del options
        self._engine = _take_engine(context.cache_dir)
        self._begun: tuple[Sequence[Case], Profile, Future[list[list[float]]]] | None = None
        weakref.finalize(self, _park, context.cache_dir, self._engine)

    def begin(self, cases: Sequence[Case], profile: Profile) -> None:
        """Hand the cases to the process, and do not wait for it."""
        texts = cleaned_cases(cases, profile)
        threads = ThreadPoolExecutor(1)
        self._begun = (cases, profile, threads.submit(self._engine.ask, texts))
        threads.shutdown(wait=False)

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 7). Raises `MetricUnavailableError` without Java or the jar, or where it fails twice."""
        import numpy as np

        if not cases:
            return np.zeros((0, len(self.columns)))
        begun, self._begun = self._begun, None
        # What was begun is ended in any case: the process answers one call after the other.
        answers = begun[2].result() if begun is not None else None
        if begun is None or answers is None or begun[0] is not cases or begun[1] is not profile:
            answers = self._engine.ask(cleaned_cases(cases, profile))
        return columns_of(np.array(answers, dtype=np.float64))

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """METEOR from sums of shape (..., 7); NaN over no sample, 0 where nothing matches."""
        import numpy as np

        answer, reference, answer_matched, reference_matched, chunks, matched, count = np.moveaxis(sums, -1, 0)
        some = (answer_matched > 0) & (reference_matched > 0)
        ones = np.ones(sums.shape[:-1])
        inverse = (1 - ALPHA) * np.divide(answer, answer_matched, out=ones.copy(), where=some)
        inverse += ALPHA * np.divide(reference, reference_matched, out=ones.copy(), where=some)
        penalty = GAMMA * np.divide(chunks, matched, out=ones.copy(), where=some) ** BETA
        score = np.where(some, np.maximum(0.0, (1 - penalty) / inverse), 0.0)
        return {"meteor": np.where(count > 0, score, np.nan)}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """Each sample's value; their mean is not the corpus value."""
        return self.aggregate(statistics)


def columns_of(numbers: FloatArray) -> FloatArray:
    """The metric's columns, shape (n, 7), from the jar's 23 numbers a sample, shape (n, 23).

    These are: words of answer and reference, function words of both; for each of the four stages matched content
    words of answer and reference and matched function words of both; chunks; matched words of both.
    """
    import numpy as np

    lengths, functions = numbers[:, 0:2], numbers[:, 2:4]
    stages = numbers[:, 4:20].reshape(-1, 4, 2, 2)  # stage; content, function; answer, reference
    matches = np.einsum("nscp,s,c->np", stages, np.array(STAGE_WEIGHTS), np.array([DELTA, 1 - DELTA]))
    weights = DELTA * (lengths - functions) + (1 - DELTA) * functions
    chunks, matched = numbers[:, 20], numbers[:, 21:23]
    is_whole = (stages.sum(axis=(1, 2)) == lengths).all(axis=1) & (chunks == 1)
    return np.column_stack(
        [weights, matches, np.where(is_whole, 0.0, chunks), matched.mean(axis=1), np.ones(len(numbers))]
    )


_parked: dict[Path, FilteredJar] = {}
"""By cache folder the process of a metric that is gone, for the next one: a second model on the same references."""


def _take_engine(cache_dir: Path) -> FilteredJar:
    return _parked.pop(cache_dir, None) or FilteredJar(cache_dir)


def _park(cache_dir: Path, engine: FilteredJar) -> None:
    if engine.is_started:
        _parked[cache_dir] = engine
