"""What every metric must keep: its values are functions of sums of per-sample rows, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mhe.protocols import MetricContext
from mhe.testing.contracts import Options, check_name, checked_options, require
from mhe.testing.toys import HOSTILE_TEXTS, ToyProfile, toy_cases

if TYPE_CHECKING:
    from mhe.entity_taggers import EntityTagger
    from mhe.protocols import FloatArray, Metric, MetricFactory, Profile
    from mhe.values import Case, MetricValue

KINDS = {"caption", "vqa"}
REQUIREMENTS = {"references", "question", "image", "entities", "encoder", "profile"}
CLOSE = 1e-9
SMOOTHING = 1e-4
"""Published smoothing constants (BLEU's) weigh less the larger the sums; what they move stays below this."""


def check_metric(
    factory: MetricFactory,
    profile: Profile | None = None,
    *,
    options: Options | None = None,
    cases: Sequence[Case] | None = None,
    expected: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Statistics, sums and bounds over `cases` (toys of the profile's kind where empty). Returns the values.

    `profile` is by default one that lowers the case and splits at blanks, of the kind that the metric is for.

    `expected` are values that must come out, within 1e-6. Raises `AssertionError` with the promise that was broken;
    `MetricUnavailableError` passes through, so that a test can skip with its reason.
    """
    import numpy as np

    with TemporaryDirectory() as cache:
        context = MetricContext(cache_dir=Path(cache), open_tagger=_open_installed_tagger)
        metric = factory(checked_options(factory, options), context)
        _check_declarations(metric)
        if profile is None:
            profile = ToyProfile("vqa" if "vqa" in metric.kinds else "caption")
        given = list(cases) if cases is not None else toy_cases(12, "caption" if profile.kind == "caption" else "vqa")
        rows = metric.statistics(given, profile)
        _check_rows(metric, rows, len(given))
        # A value over the whole, from the rows in any order, once or twice: intervals rest on it.
        backwards = metric.statistics(given[::-1], profile)[::-1]
        require(
            bool(np.allclose(rows, backwards, atol=CLOSE)), "a sample's row does not depend on the order of samples"
        )
        values = _aggregated(metric, rows.sum(axis=0))
        doubled = _aggregated(metric, 2 * rows.sum(axis=0))
        for name, value in values.items():
            require(_same(value, doubled[name], SMOOTHING), f"{name} stays the same where every sample counts twice")
        _check_resamples(metric, rows)
        _check_bounds(metric, values)
        renamed = [replace(case, sample=replace(case.sample, id=f"renamed-{case.sample.id}")) for case in given]
        same = bool(np.allclose(rows, metric.statistics(renamed, profile), atol=CLOSE))
        require(same, "a sample's row does not depend on its id")
        _check_rows(metric, metric.statistics([], profile), 0)
        _check_direction(metric, profile, given)
        per_sample = metric.per_sample(rows)
        require(set(per_sample) <= set(values), "per_sample() returns values of the metric")
        for name, column in per_sample.items():
            require(np.shape(column) == (len(given),), f"per_sample()[{name!r}] has one number a sample")
        _check_odd_answers(metric, profile, given)
    for name, value in (expected or {}).items():
        require(name in values, f"{name} is not a value of {metric.name}: {', '.join(values)}")
        require(abs(values[name] - value) < 1e-6, f"{name} is {values[name]:.6f}, expected {value:.6f}")
    return values


def _open_installed_tagger(name: str, options: Mapping[str, object]) -> EntityTagger:
    from mhe.catalog import open_catalog

    return open_catalog().open_tagger(name, options)


def _check_declarations(metric: Metric) -> None:
    check_name(metric.name, metric.version, "metric")
    require(bool(metric.kinds) and set(metric.kinds) <= KINDS, f"kinds are of {sorted(KINDS)}: {metric.kinds!r}")
    unknown = set(metric.requires) - REQUIREMENTS
    require(not unknown, f"requires is of {sorted(REQUIREMENTS)}, not {sorted(unknown)}")
    names = [value.name for value in metric.values]
    require(bool(names) and len(set(names)) == len(names), f"the names of values are unique: {names}")
    require(len(set(metric.columns)) == len(metric.columns) > 0, f"the names of columns are unique: {metric.columns}")
    for value in metric.values:
        require(bool(value.summary), f"the value {value.name} has a summary")
        if value.floor is not None and value.ceiling is not None:
            is_upside_down = (value.ceiling > value.floor) is (value.higher_is_better is False)
            told = f"floor (worst) {value.floor:g}, ceiling (best) {value.ceiling:g}"
            require(not is_upside_down, f"higher_is_better of {value.name} is {value.higher_is_better}; {told}")


def _check_rows(metric: Metric, rows: FloatArray, count: int) -> None:
    import numpy as np

    wanted = (count, len(metric.columns))
    require(np.shape(rows) == wanted, f"statistics() has shape {wanted}, not {np.shape(rows)}")
    require(rows.dtype == np.float64, f"statistics() is float64, not {rows.dtype}")
    require(bool(np.isfinite(rows).all()), "statistics() is finite")


def _aggregated(metric: Metric, sums: FloatArray) -> dict[str, float]:
    found = metric.aggregate(sums)
    names = [value.name for value in metric.values]
    require(list(found) == names, f"aggregate() returns the declared values in order: {names}, not {list(found)}")
    return {name: float(value) for name, value in found.items()}


def _check_resamples(metric: Metric, rows: FloatArray) -> None:
    """Sums of many resamples at once give what each gives alone; over nothing, NaN and no exception."""
    import numpy as np

    weights = np.random.default_rng(0).integers(0, 3, size=(5, len(rows))).astype(np.float64)
    sums = weights @ rows
    together = metric.aggregate(sums.reshape(5, 1, -1))
    for number in range(5):
        for name, value in _aggregated(metric, sums[number]).items():
            require(np.shape(together[name]) == (5, 1), f"aggregate() keeps the leading axes of sums: {name}")
            require(_same(float(together[name][number, 0]), value), f"{name} is the same alone and among resamples")
    # A division by zero that warns is a value over nothing that nobody thought of.
    with np.errstate(divide="raise", invalid="raise", over="raise"):
        nothing = _aggregated(metric, np.zeros(len(metric.columns)))
    for name, value in nothing.items():
        require(not math.isinf(value), f"{name} over nothing is NaN, not {value}")


def _check_bounds(metric: Metric, values: Mapping[str, float]) -> None:
    for value in metric.values:
        number = values[value.name]
        if math.isnan(number):
            continue
        low, high = value.bounds
        require(low is None or number >= low - CLOSE, f"{value.name}: {number} is below its {_end(value, low)}")
        require(high is None or number <= high + CLOSE, f"{value.name}: {number} is above its {_end(value, high)}")


def _end(value: MetricValue, bound: float | None) -> str:
    """`floor` is the worst value and `ceiling` the best, whichever number is the larger."""
    return "floor" if bound == value.floor else "ceiling"


def _check_direction(metric: Metric, profile: Profile, cases: Sequence[Case]) -> None:
    """The references themselves are no worse than empty answers."""
    right = [replace(case, answer=case.sample.references[0]) for case in cases]
    empty = [replace(case, answer="") for case in cases]
    best = _aggregated(metric, metric.statistics(right, profile).sum(axis=0))
    worst = _aggregated(metric, metric.statistics(empty, profile).sum(axis=0))
    for value in metric.values:
        if value.higher_is_better is None:
            continue
        sign = 1 if value.higher_is_better else -1
        is_upside_down = sign * (best[value.name] - worst[value.name]) < -CLOSE
        told = f"references earn {best[value.name]}, empty answers {worst[value.name]}"
        require(not is_upside_down, f"higher_is_better of {value.name} is {value.higher_is_better}; {told}")


def _check_odd_answers(metric: Metric, profile: Profile, cases: Sequence[Case]) -> None:
    strange = [replace(cases[row % len(cases)], answer=text) for row, text in enumerate(HOSTILE_TEXTS)]
    rows = metric.statistics(strange, profile)
    _check_rows(metric, rows, len(strange))
    _check_bounds(metric, _aggregated(metric, rows.sum(axis=0)))


def _same(one: float, other: float, tolerance: float = CLOSE) -> bool:
    return (math.isnan(one) and math.isnan(other)) or abs(one - other) <= tolerance * max(1.0, abs(one))
