"""Do the published statistics make the published values? Recomputed with the metric itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mhe.digests import cache_dir
from mhe.documents.base import parse_options
from mhe.errors import MheError, UserError
from mhe.protocols import MetricContext
from mhe.statistics import bootstrap_weights, intervals, unit_sums

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mhe.boards.entries import EntryMetric, EntryScores
    from mhe.catalog import Catalog
    from mhe.documents.run import MetricRecord, RunRecord, ScoreRecord
    from mhe.protocols import FloatArray, Metric
    from mhe.statistics import Counts

VALUE_TOLERANCE = 1e-12
INTERVAL_TOLERANCE = 1e-9
"""Looser than for values: a resample is a matrix product, and the order of its sums depends on the processor."""


class MetricShelf:
    """The metrics a board needs, opened once. Draws of the bootstrap are kept as well."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._metrics: dict[str, Metric] = {}
        self._weights: dict[int, Counts] = {}

    def metric(self, name: str, version: str, options: Mapping[str, object]) -> Metric:
        """The metric in this version. Raises `UserError` where it is not installed or is of another version."""
        key = f"{name} {version} {sorted(options.items(), key=str)}"
        if key not in self._metrics:
            factory = self._catalog.metric(name)
            chosen = parse_options(factory.Options, options, f"options of metric {name!r} in the entry")
            metric = factory(chosen, MetricContext(cache_dir=cache_dir()))
            if metric.version != version:
                raise UserError(
                    f"metric {name!r} is installed in version {metric.version}, and the statistics are of version "
                    f"{version}: install the plugin's release that has it, or score again (a board: make a new version)"
                )
            self._metrics[key] = metric
        return self._metrics[key]

    def of_block(self, block: EntryMetric) -> Metric:
        """The metric that made a block of statistics."""
        return self.metric(block.metric, block.metric_version, block.options)

    def weights(self, n_units: int) -> Counts:
        """Draws of the bootstrap for a number of units."""
        if n_units not in self._weights:
            self._weights[n_units] = bootstrap_weights(n_units)
        return self._weights[n_units]


def disagreements(record: RunRecord, scores: EntryScores, shelf: MetricShelf) -> list[str]:
    """Every value, interval and group value of the record that its statistics do not make; empty where all agree.

    A metric that cannot be opened here is a problem as well: nothing was proved of it.
    """
    problems = []
    blocks = {(block.metric, block.profile) for block in scores.metrics}
    for metric in record.metrics:
        block = scores.of(metric.metric, metric.profile)
        blocks.discard((metric.metric, metric.profile))
        if block is None:
            problems.append(f"{metric.metric} ({metric.profile}): no statistics are published")
            continue
        problems += [f"{metric.metric} ({metric.profile}): {text}" for text in _header_problems(metric, block)]
        try:
            opened = shelf.of_block(block)
            found = _compare(metric, block, opened, scores, shelf)
            problems += [f"{metric.metric} ({metric.profile}): {text}" for text in found]
        except MheError as error:
            problems.append(f"{metric.metric} ({metric.profile}): cannot be recomputed: {error}")
    problems += [f"{name} ({profile}): statistics without a record" for name, profile in sorted(blocks)]
    return problems


def _header_problems(metric: MetricRecord, block: EntryMetric) -> list[str]:
    return [
        f"{name} is {found!r} in the statistics and {wanted!r} in the record"
        for name, found, wanted in [
            ("version", block.metric_version, metric.metric_version),
            ("profile version", block.profile_version, metric.profile_version),
            ("score key", block.score_key, metric.score_key),
            ("options", dict(block.options), metric.options),
        ]
        if found != wanted
    ]


def _compare(
    metric: MetricRecord, block: EntryMetric, opened: Metric, scores: EntryScores, shelf: MetricShelf
) -> list[str]:
    if tuple(opened.columns) != block.columns:
        return [f"columns are {', '.join(block.columns)}; the metric makes {', '.join(opened.columns)}"]
    statistics = block.array()
    totals = opened.aggregate(statistics.sum(axis=0))
    by_unit = unit_sums(statistics, scores.samples.units)
    ranges = intervals(opened.aggregate, by_unit, shelf.weights(len(by_unit)))
    problems = []
    for value in metric.values:
        if value.name not in totals:
            problems.append(f"{value.name}: the metric makes no such value")
            continue
        problems += _value_problems(value, float(totals[value.name]), ranges[value.name])
        problems += _group_problems(value, opened, statistics, scores)
    return problems


def _value_problems(value: ScoreRecord, total: float, interval: tuple[float, float] | None) -> list[str]:
    found = None if math.isnan(total) else total
    low, high = interval if interval is not None and found is not None else (None, None)
    return [
        f"{value.name}: {what} is {recorded!r} in run.json; the statistics give {computed!r}"
        for what, recorded, computed, tolerance in [
            ("the value", value.value, found, VALUE_TOLERANCE),
            ("the lower end", value.low, low, INTERVAL_TOLERANCE),
            ("the upper end", value.high, high, INTERVAL_TOLERANCE),
        ]
        if not _is_close(recorded, computed, tolerance)
    ]


def _group_problems(value: ScoreRecord, opened: Metric, statistics: FloatArray, scores: EntryScores) -> list[str]:
    problems = []
    for group, members in value.groups.items():
        labels = scores.samples.groups.get(group)
        if labels is None:
            problems.append(f"{value.name}: group {group!r} is not in the statistics")
            continue
        for member, recorded in members.items():
            rows = [index for index, label in enumerate(labels) if label == member]
            total = float(opened.aggregate(statistics[rows].sum(axis=0))[value.name])
            computed = None if math.isnan(total) else total
            if not _is_close(recorded, computed, VALUE_TOLERANCE):
                problems.append(
                    f"{value.name}: {group} {member!r} is {recorded!r} in run.json; the statistics give {computed!r}"
                )
    return problems


def _is_close(left: float | None, right: float | None, tolerance: float) -> bool:
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)
