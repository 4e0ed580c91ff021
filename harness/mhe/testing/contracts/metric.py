"""What a metric promises."""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.protocols import MetricContext
from mhe.testing.contracts.promises import check_name, check_options, promise
from mhe.testing.toys import HOSTILE_TEXTS, PlainProfile, toy_cases
from mhe.values import Case, MetricValue

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.protocols import FloatArray, Metric, MetricFactory, Profile

KINDS = frozenset({"caption", "vqa"})
REQUIREMENTS = frozenset({"references", "question", "image", "entities", "encoder", "profile"})
TOLERANCE = 1e-9


def check_metric(
    factory: MetricFactory,
    options: Mapping[str, object] | None = None,
    *,
    cases: Sequence[Case] | None = None,
    profile: Profile | None = None,
) -> FloatArray:
    """Statistics are finite, of the right shape, and a sample's own; values keep to the range that they promise.

    `cases` are toy ones of the metric's first kind where None, `profile` lower-cases and splits at blanks. Returns
    the statistics of the cases. Raises `AssertionError` with the broken promise, and `MetricUnavailableError` where
    the metric cannot be computed on this machine.
    """
    chosen = check_options(factory, options)
    profile = PlainProfile() if profile is None else profile
    with tempfile.TemporaryDirectory() as folder:
        metric = factory(chosen, MetricContext(cache_dir=Path(folder)))
        what = f"metric {getattr(metric, 'name', metric)!r}"
        _check_declaration(metric, what)
        if cases is None:
            cases = toy_cases(12, "caption" if "caption" in metric.kinds else "vqa")
        statistics = _statistics(metric, cases, profile, what)
        _check_rows(metric, cases, profile, statistics, what)
        _check_aggregate(metric, statistics, what)
        _check_per_sample(metric, statistics, what)
        _check_direction(metric, cases, profile, what)
        hostile = [replace(cases[row % len(cases)], answer=text) for row, text in enumerate(HOSTILE_TEXTS)]
        _check_range(metric, metric.aggregate(_statistics(metric, hostile, profile, what).sum(axis=0)), what)
    return statistics


def _check_declaration(metric: Metric, what: str) -> None:
    check_name(metric.name, metric.version, what)
    promise(metric.kinds and set(metric.kinds) <= KINDS, f"{what}: kinds must be of {sorted(KINDS)}")
    unknown = sorted(set(metric.requires) - REQUIREMENTS)
    promise(not unknown, f"{what}: requires {unknown}; known are {sorted(REQUIREMENTS)}")
    for noun, names in (("columns", list(metric.columns)), ("values", [value.name for value in metric.values])):
        promise(names and len(set(names)) == len(names), f"{what}: {noun} must have distinct names, found {names}")
    for value in metric.values:
        promise(isinstance(value, MetricValue), f"{what}: values holds {type(value).__name__}, not MetricValue")
        promise(value.summary, f"{what}: value {value.name!r} has no summary")


def _statistics(metric: Metric, cases: Sequence[Case], profile: Profile, what: str) -> FloatArray:
    import numpy as np

    found: object = metric.statistics(cases, profile)
    if not isinstance(found, np.ndarray):
        raise AssertionError(f"{what}: statistics returned {type(found).__name__}, not a numpy array")
    shape = (len(cases), len(metric.columns))
    promise(found.shape == shape, f"{what}: statistics of shape {found.shape}, where {shape} belongs")
    promise(found.dtype == np.float64, f"{what}: statistics are {found.dtype}, not float64")
    rows = np.flatnonzero(~np.isfinite(found).all(axis=1))
    promise(not rows.size, f"{what}: statistics of rows {rows[:5].tolist()} are not finite")
    return found


def _check_rows(
    metric: Metric, cases: Sequence[Case], profile: Profile, statistics: FloatArray, what: str
) -> None:
    import numpy as np

    _statistics(metric, [], profile, what)
    again = _statistics(metric, cases, profile, what)
    promise(np.array_equal(again, statistics), f"{what}: the same cases give other statistics a second time")
    reverse = _statistics(metric, list(cases)[::-1], profile, what)[::-1]
    promise(
        np.allclose(reverse, statistics, rtol=TOLERANCE, atol=TOLERANCE),
        f"{what}: a sample's statistics depend on the order of samples",
    )
    # The boards keep ids apart from numbers: a name must not matter either.
    renamed = [replace(case, sample=replace(case.sample, id=f"renamed-{case.sample.id}")) for case in cases]
    promise(
        np.allclose(_statistics(metric, renamed, profile, what), statistics, rtol=TOLERANCE, atol=TOLERANCE),
        f"{what}: statistics depend on the samples' ids",
    )


def _check_aggregate(metric: Metric, statistics: FloatArray, what: str) -> None:
    import numpy as np

    names = {value.name for value in metric.values}
    totals = metric.aggregate(statistics.sum(axis=0))
    promise(set(totals) == names, f"{what}: aggregate gives {sorted(totals)}, and values promises {sorted(names)}")
    _check_range(metric, totals, what)
    parts = np.stack([statistics[: rows + 1].sum(axis=0) for rows in range(len(statistics))])
    with warnings.catch_warnings():
        # A division by zero that only warns here is a value over nothing that was not thought of.
        warnings.simplefilter("error", RuntimeWarning)
        many = metric.aggregate(np.stack([parts, parts]))
        nothing = metric.aggregate(np.zeros(len(metric.columns)))
    for name in sorted(names):
        shape = np.shape(many[name])
        wanted = (2, len(parts))
        promise(shape == wanted, f"{what}: {name} of sums of shape (2, {len(parts)}, columns) has shape {shape}")
        last = np.asarray(many[name])[0, -1]
        promise(
            np.allclose(last, totals[name], rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True),
            f"{what}: {name} is {last} among other sums and {totals[name]} alone",
        )
        promise(not np.isinf(np.asarray(nothing[name])), f"{what}: {name} over nothing is infinite, where NaN belongs")
    _check_range(metric, many, what)


def _check_range(metric: Metric, totals: Mapping[str, FloatArray], what: str) -> None:
    import numpy as np

    for value in metric.values:
        numbers = np.asarray(totals[value.name], dtype=np.float64)
        numbers = numbers[~np.isnan(numbers)]
        if not numbers.size:
            continue
        low, high = float(numbers.min()), float(numbers.max())
        promise(
            value.floor is None or low >= value.floor - TOLERANCE,
            f"{what}: {value.name} is {low}, below its floor {value.floor}",
        )
        promise(
            value.ceiling is None or high <= value.ceiling + TOLERANCE,
            f"{what}: {value.name} is {high}, above its ceiling {value.ceiling}",
        )


def _check_per_sample(metric: Metric, statistics: FloatArray, what: str) -> None:
    import numpy as np

    found = metric.per_sample(statistics)
    unknown = sorted(set(found) - {value.name for value in metric.values})
    promise(not unknown, f"{what}: per_sample gives {unknown}, which values does not name")
    for name, numbers in found.items():
        shape = np.shape(numbers)
        promise(shape == (len(statistics),), f"{what}: per_sample of {name} has shape {shape}")
    _check_range(metric, {**{v.name: np.array([]) for v in metric.values}, **found}, what)


def _check_direction(metric: Metric, cases: Sequence[Case], profile: Profile, what: str) -> None:
    """The references themselves must not score worse than empty answers."""
    right = [replace(case, answer=case.sample.references[0]) for case in cases]
    empty = [replace(case, answer="") for case in cases]
    best = metric.aggregate(_statistics(metric, right, profile, what).sum(axis=0))
    worst = metric.aggregate(_statistics(metric, empty, profile, what).sum(axis=0))
    for value in metric.values:
        high, low = float(best[value.name]), float(worst[value.name])
        if not value.higher_is_better:
            high, low = low, high
        promise(
            not high < low,
            f"{what}: of {value.name}, the references earn {float(best[value.name])} and empty answers "
            f"{float(worst[value.name])}; higher_is_better is {value.higher_is_better}",
        )
