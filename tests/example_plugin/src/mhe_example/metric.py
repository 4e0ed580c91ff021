"""Metric `example-first-word`: the share of answers whose first word begins a reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import MetricValue, Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile

    FloatArray = NDArray[np.float64]


class FirstWordOptions(Part):
    """Set with `--set metrics.example-first-word.…`; this metric has none."""


class FirstWord:
    """A row of statistics a sample; the value is a function of the sums of rows, and of nothing else."""

    Options = FirstWordOptions
    name = "example-first-word"
    version = "1"
    kinds = frozenset({"vqa"})
    requires = frozenset({"references", "profile"})
    columns = ("right", "count")
    values = (MetricValue("example-first-word", "share of answers with the right first word"),)

    def __init__(self, options: FirstWordOptions, context: MetricContext) -> None:
        pass

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        import numpy as np

        rows = np.zeros((len(cases), 2))
        for row, case in zip(rows, cases, strict=True):
            answer, *references = (text.split(" ")[0] for text in profile.clean([case.answer, *case.sample.references]))
            row[:] = answer in references and answer != "", 1
        return rows

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        import numpy as np

        right, count = sums[..., 0], sums[..., 1]
        share = np.divide(right, count, out=np.full(np.shape(count), np.nan), where=count > 0)
        return {"example-first-word": share}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        return self.aggregate(statistics)
