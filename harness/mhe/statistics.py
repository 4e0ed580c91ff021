"""Intervals, paired tests and seeds, all from sums of per-sample statistics.

A metric is a function of column sums (`mhe.protocols.Metric`), so a bootstrap resample is one row of a matrix
product: how often each unit was drawn, times the sums of that unit. The draws are made once for a run and serve
every metric of it; since units are ordered by name, two runs on the same units share their draws as well.

The unit is what was sampled independently: the image where several questions share one (`Sample.resampling_unit`).
Resampling questions instead would make intervals too narrow.

Source of the percentile interval: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe.protocols import FloatArray

    Counts = NDArray[np.uint16]

RESAMPLES = 1000
PERMUTATIONS = 10_000
CONFIDENCE = 0.95
CHUNK_CELLS = 4_000_000
"""Cells of float64 converted at a time: 32 MB."""
POWER = 0.8


class Aggregate(Protocol):
    """`Metric.aggregate`: column sums of shape (..., columns) to one array of shape (...) per value."""

    def __call__(self, sums: FloatArray, /) -> Mapping[str, FloatArray]:
        """One array per value."""
        ...


def unit_sums(statistics: FloatArray, units: Sequence[str]) -> FloatArray:
    """Column sums of each resampling unit, units in the order of their names: shape (n_units, columns).

    Raises `ValueError` where `units` does not name one unit for each row.
    """
    import numpy as np

    if len(units) != len(statistics):
        raise ValueError(f"{len(statistics)} rows of statistics for {len(units)} units")
    place = {name: position for position, name in enumerate(sorted(set(units)))}
    sums = np.zeros((len(place), statistics.shape[1]))
    np.add.at(sums, [place[unit] for unit in units], statistics)
    return sums


def bootstrap_weights(n_units: int, resamples: int = RESAMPLES, seed: int = 0) -> Counts:
    """How often each resample draws each unit: shape (resamples, n_units), each row summing to `n_units`.

    Row r counts `bootstrap_indices(n_units, resamples, seed)[r]`. Two bytes a cell: 20 MB for 10,000 units.
    """
    import numpy as np

    weights = np.zeros((resamples, n_units), dtype=np.uint16)
    generator = np.random.default_rng(seed)
    for row in weights:
        row[:] = np.bincount(generator.integers(0, n_units, size=n_units), minlength=n_units)
    return weights


def bootstrap_indices(n_units: int, resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.int64]:
    """The same draws as `bootstrap_weights`, as indices of units: shape (resamples, n_units)."""
    import numpy as np

    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(0, n_units, size=n_units) for _ in range(resamples)])


def resampled_values(aggregate: Aggregate, sums_by_unit: FloatArray, weights: Counts) -> dict[str, FloatArray]:
    """Every value of the metric in every resample: arrays of shape (resamples,), NaN where it is over nothing."""
    import numpy as np

    rows = max(1, CHUNK_CELLS // max(1, weights.shape[1]))
    parts = [weights[start : start + rows].astype(np.float64) @ sums_by_unit for start in range(0, len(weights), rows)]
    return dict(aggregate(np.concatenate(parts)))


def intervals(aggregate: Aggregate, sums_by_unit: FloatArray, weights: Counts) -> dict[str, tuple[float, float] | None]:
    """95 % percentile interval of each value; None with fewer than two units, or where a value is over nothing.

    A resample in which a value is over nothing (no closed question drawn) does not count for that value.
    """
    if len(sums_by_unit) < 2:
        return dict.fromkeys(resampled_values(aggregate, sums_by_unit, weights[:1]))
    return {
        name: percentile_interval(values) for name, values in resampled_values(aggregate, sums_by_unit, weights).items()
    }


def percentile_interval(resampled: FloatArray) -> tuple[float, float] | None:
    """The middle 95 % of a value over resamples, NaN left out; None where nothing is left."""
    import numpy as np

    tail = 100 * (1 - CONFIDENCE) / 2
    counted = resampled[~np.isnan(resampled)]
    if not len(counted):
        return None
    low, high = np.percentile(counted, [tail, 100 - tail])
    return float(low), float(high)


def smallest_difference(resampled: FloatArray) -> float | None:
    """The smallest true difference that a paired test on these units finds at 5 % with a power of 80 %.

    2.80 standard errors (the normal quantiles of 97.5 % and 80 %), where `resampled` holds the paired difference in
    each resample and its standard deviation is the standard error. None with fewer than two numbers, or where they
    do not vary: units on which two runs never differ do not tell what they could show.

    Source: Gelman and Hill, Data Analysis Using Regression and Multilevel/Hierarchical Models (2007), section 20.2.
    """
    import statistics

    import numpy as np

    counted = resampled[~np.isnan(resampled)]
    error = float(np.std(counted, ddof=1)) if len(counted) > 1 else 0.0
    normal = statistics.NormalDist()
    factor = normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(POWER)
    # Sums in another order differ in the last bits: that is no variation.
    return factor * error if error > 1e-12 else None


def paired_p_value(
    statistics_a: FloatArray,
    statistics_b: FloatArray,
    aggregate: Aggregate,
    value: str,
    units: Sequence[str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> float:
    """Two-sided p-value of one value; see `paired_p_values`."""
    return paired_p_values(statistics_a, statistics_b, aggregate, [value], units, permutations=permutations, seed=seed)[
        value
    ]


def paired_p_values(
    statistics_a: FloatArray,
    statistics_b: FloatArray,
    aggregate: Aggregate,
    values: Sequence[str],
    units: Sequence[str],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, float]:
    """Two-sided p-values of the paired randomisation test: were A and B exchangeable on every unit?

    Each permutation swaps A and B on a random half of the units and compares the absolute difference of each of the
    metric's `values` with the observed one. With few units all 2^n swaps are counted; otherwise p = (1 + hits) /
    (1 + permutations), which is never 0. Both runs must hold the same samples in the same order.

    Source: Noreen, Computer-Intensive Methods for Testing Hypotheses (1989); Smucker et al., CIKM 2007.
    Raises `ValueError` for statistics of unequal shape.
    """
    import numpy as np

    if statistics_a.shape != statistics_b.shape:
        raise ValueError(f"a paired test needs equal samples: {statistics_a.shape} and {statistics_b.shape}")
    sums_a, sums_b = unit_sums(statistics_a, units), unit_sums(statistics_b, units)
    difference, total_a, total_b = sums_b - sums_a, sums_a.sum(axis=0), sums_b.sum(axis=0)
    found_a, found_b = aggregate(total_a), aggregate(total_b)
    observed = {value: abs(float(found_a[value]) - float(found_b[value])) for value in values}
    n_units = len(sums_a)
    is_exact = 2**n_units <= permutations
    count = 2**n_units if is_exact else permutations
    generator = np.random.default_rng(seed)
    hits = dict.fromkeys(values, 0)
    rows = max(1, CHUNK_CELLS // max(1, n_units))
    for start in range(0, count, rows):
        size = min(rows, count - start)
        if is_exact:
            swapped = (np.arange(start, start + size)[:, None] >> np.arange(n_units)) & 1
        else:
            swapped = generator.integers(0, 2, size=(size, n_units), dtype=np.uint8)
        moved = swapped.astype(np.float64) @ difference
        moved_a, moved_b = aggregate(total_a + moved), aggregate(total_b - moved)
        for value in values:
            change = np.abs(moved_a[value] - moved_b[value])
            # Sums in another order differ in the last bits; a tie must count as one.
            hits[value] += int(np.count_nonzero(~(change < observed[value] - 1e-12 * max(1.0, observed[value]))))
    return {value: hits[value] / count if is_exact else (1 + hits[value]) / (1 + count) for value in values}


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction for several comparisons, in the given order; each at most 1.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979).
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = highest
    return corrected


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (n - 1) over seeds; no deviation for a single value.

    Raises `ValueError` for no values at all.
    """
    import statistics

    if not values:
        raise ValueError("no values to average")
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
