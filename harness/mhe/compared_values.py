"""One metric under one profile over several sides: values, paired differences, tests, wins, changed samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.statistics import (
    mean_and_std,
    paired_p_values,
    percentile_interval,
    resampled_values,
    smallest_difference,
    unit_sums,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.boards.verification import MetricShelf
    from mhe.compared_runs import Pair, Shared, Side
    from mhe.protocols import FloatArray
    from mhe.values import MetricValue

TIE = 1e-12
"""Per-sample values closer than this are equal: sums in another order differ in the last bits."""


@dataclass(frozen=True, slots=True)
class SideValue:
    """One value of one side, over the shared samples."""

    side: str
    value: float | None
    """Mean over seeds; None where it is over nothing."""
    low: float | None
    high: float | None
    std: float | None
    """Sample standard deviation over seeds; None for one seed."""
    seeds: tuple[float | None, ...]
    """The value of each run of the side."""


@dataclass(frozen=True, slots=True)
class WinCount:
    """Samples on which the side is better than the first one, worse, and equal; direction considered."""

    wins: int
    losses: int
    ties: int
    difference: float | None
    """Of the value over these samples, side less first."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one run said, with its seed."""

    side: str
    seed: int
    text: str


@dataclass(frozen=True, slots=True)
class ChangedSample:
    """A sample whose value differs between the side and the first."""

    id: str
    first: float
    second: float
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One side against the first, in one value."""

    side: str
    difference: float | None
    """Side less first; None where one of them is over nothing."""
    low: float | None
    high: float | None
    p_value: float | None
    p_holm: float | None
    """Corrected over all comparisons shown."""
    smallest: float | None
    """The smallest difference that these samples can show; see `mhe.statistics.smallest_difference`."""
    counts: WinCount | None
    """None where the value means nothing for one sample, or has no direction."""
    groups: Mapping[str, Mapping[str, WinCount]]
    """Group to label to counts."""
    changed: tuple[ChangedSample, ...]
    """Those that changed most, first."""
    changed_samples: int
    """All that changed."""


@dataclass(frozen=True, slots=True)
class ComparedValue:
    """One value of one metric under one profile."""

    name: str
    metric: str
    profile: str
    higher_is_better: bool | None
    sides: tuple[SideValue, ...]
    differences: tuple[Difference, ...]


class Block:
    """The statistics of every side for one metric and profile, and everything drawn from them.

    Raises `UserError` where the metric is not installed in the version of the statistics.
    """

    def __init__(self, pair: Pair, sides: Sequence[Side], shared: Shared, shelf: MetricShelf) -> None:
        import numpy as np

        self._sides = sides
        self._shared = shared
        self.profile = pair[1]
        entries = [[run.entry(pair) for run in side.runs] for side in sides]
        self.metric = shelf.of_block(entries[0][0])
        # Side, then seed: shape (samples, columns), rows in the order of the shared samples.
        self._statistics = [
            [entry.array()[shared.rows(run)] for entry, run in zip(found, side.runs, strict=True)]
            for found, side in zip(entries, sides, strict=True)
        ]
        self._means = [np.mean(found, axis=0) for found in self._statistics]
        self._per_sample = [[self.metric.per_sample(found) for found in statistics] for statistics in self._statistics]
        self._n_units = len(set(shared.units))
        weights = shelf.weights(self._n_units)
        self._drawn = [
            [resampled_values(self.metric.aggregate, unit_sums(found, shared.units), weights) for found in statistics]
            for statistics in self._statistics
        ]

    def compared(self, names: Sequence[str], samples: int) -> list[ComparedValue]:
        """The values of the metric in `names`, or all; `p_holm` is left empty, and so are the answers."""
        chosen = [value for value in self.metric.values if not names or value.name in names]
        shown = [value.name for value in chosen]
        tested = [
            paired_p_values(self._means[0], mean, self.metric.aggregate, shown, self._shared.units)
            for mean in self._means[1:]
        ]
        return [
            ComparedValue(
                name=value.name,
                metric=self.metric.name,
                profile=self.profile,
                higher_is_better=value.higher_is_better,
                sides=tuple(self._side_value(value.name, place) for place in range(len(self._sides))),
                differences=tuple(
                    self._difference(value, place, p_values[value.name], samples)
                    for place, p_values in enumerate(tested, 1)
                ),
            )
            for value in chosen
        ]

    # ------------------------------------------------------------ sides

    def _seeds(self, value: str, place: int, rows: Sequence[int] | None = None) -> list[float]:
        chosen = slice(None) if rows is None else list(rows)
        return [float(self.metric.aggregate(found[chosen].sum(axis=0))[value]) for found in self._statistics[place]]

    def _mean(self, value: str, place: int, rows: Sequence[int] | None = None) -> float | None:
        """The mean over seeds; None where a seed's value is over nothing."""
        return _number(mean_and_std(self._seeds(value, place, rows))[0])

    def _resampled(self, value: str, place: int) -> FloatArray:
        import numpy as np

        found: FloatArray = np.mean([drawn[value] for drawn in self._drawn[place]], axis=0)
        return found

    def _side_value(self, value: str, place: int) -> SideValue:
        seeds = self._seeds(value, place)
        mean = self._mean(value, place)
        found = None if mean is None or self._n_units < 2 else percentile_interval(self._resampled(value, place))
        low, high = found or (None, None)
        std = None if mean is None else mean_and_std(seeds)[1]
        return SideValue(self._sides[place].name, mean, low, high, std, tuple(_number(seed) for seed in seeds))

    # ------------------------------------------------------------ differences

    def _difference(self, value: MetricValue, place: int, p_value: float, samples: int) -> Difference:
        difference = self._less_first(value.name, place)
        resampled = self._resampled(value.name, place) - self._resampled(value.name, 0)
        is_known = difference is not None and self._n_units > 1
        low, high = (percentile_interval(resampled) if is_known else None) or (None, None)
        first, second = self._samples_of(value.name, 0), self._samples_of(value.name, place)
        counts: WinCount | None = None
        groups: dict[str, dict[str, WinCount]] = {}
        changed: list[ChangedSample] = []
        if first is not None and second is not None:
            if value.higher_is_better is not None:
                counts = self._count(value, place, first, second, range(len(first)))
                groups = self._groups(value, place, first, second)
            changed = self._changed(first, second)
        return Difference(
            side=self._sides[place].name,
            difference=difference,
            low=low,
            high=high,
            p_value=None if difference is None else p_value,
            p_holm=None,
            smallest=smallest_difference(resampled) if is_known else None,
            counts=counts,
            groups=groups,
            changed=tuple(changed[:samples]),
            changed_samples=len(changed),
        )

    def _less_first(self, value: str, place: int, rows: Sequence[int] | None = None) -> float | None:
        first, second = self._mean(value, 0, rows), self._mean(value, place, rows)
        return None if first is None or second is None else second - first

    def _samples_of(self, value: str, place: int) -> list[float] | None:
        """The value of each sample, mean over seeds; None where it means nothing for one sample."""
        import numpy as np

        if value not in self._per_sample[place][0]:
            return None
        found: list[float] = np.mean([values[value] for values in self._per_sample[place]], axis=0).tolist()
        return found

    def _count(
        self, value: MetricValue, place: int, first: Sequence[float], second: Sequence[float], rows: Sequence[int]
    ) -> WinCount:
        sign = 1 if value.higher_is_better else -1
        gains = [sign * (second[row] - first[row]) for row in rows]
        return WinCount(
            wins=sum(gain > TIE for gain in gains),
            losses=sum(gain < -TIE for gain in gains),
            ties=sum(abs(gain) <= TIE for gain in gains),
            difference=self._less_first(value.name, place, rows),
        )

    def _groups(
        self, value: MetricValue, place: int, first: Sequence[float], second: Sequence[float]
    ) -> dict[str, dict[str, WinCount]]:
        found: dict[str, dict[str, WinCount]] = {}
        for group, labels in self._shared.groups.items():
            rows: dict[str, list[int]] = {}
            for row, label in enumerate(labels):
                if label is not None and not math.isnan(first[row] + second[row]):
                    rows.setdefault(label, []).append(row)
            found[group] = {label: self._count(value, place, first, second, rows[label]) for label in sorted(rows)}
        return found

    def _changed(self, first: Sequence[float], second: Sequence[float]) -> list[ChangedSample]:
        """Largest change first, then by id."""
        found = [
            ChangedSample(sample, old, new, ())
            for sample, old, new in zip(self._shared.ids, first, second, strict=True)
            if abs(new - old) > TIE
        ]
        return sorted(found, key=lambda sample: (-abs(sample.second - sample.first), sample.id))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
