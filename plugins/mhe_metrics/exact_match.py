"""Share of answers that equal one of their references after the profile's cleaning.

    exact-match = answers equal to any of their references, both cleaned / answers

An answer without a word is never right, also where a reference cleans to nothing. It is not `accuracy`: that asks the
profile's own rule, which may accept other answers than equal ones.

Source: Rajpurkar et al., EMNLP 2016 (SQuAD), with the profile's cleaning in the place of theirs.
Blind to: everything but equality: a right answer in other words is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import MetricValue, Part
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile

    FloatArray = NDArray[np.float64]


class ExactMatchOptions(Part):
    """Exact match has no options."""


class ExactMatch:
    """Mean equality; columns: 1 or 0, and 1."""

    Options = ExactMatchOptions
    name = "exact-match"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires = frozenset({"references"})
    columns = ("equal", "count")
    values = (MetricValue("exact-match", "share of answers equal to a reference"),)

    def __init__(self, options: ExactMatchOptions, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 2)."""
        import numpy as np

        rows = [
            (float(bool(text.answer) and text.answer in text.references), 1.0) for text in cleaned_cases(cases, profile)
        ]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 2)

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The share from sums of shape (..., 2); NaN over no sample."""
        from mhe_metrics.means import mean

        return {"exact-match": mean(sums[..., 0], sums[..., 1])}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """1 or 0 a sample."""
        return self.aggregate(statistics)
