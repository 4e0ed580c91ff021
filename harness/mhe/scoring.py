"""From answers to scores, without the model: every metric under every profile, with intervals and groups.

Each metric and profile leaves one file of per-sample statistics, from which intervals, paired tests and boards are
made later without the answers. Its bytes depend on nothing but the answers and the rules.

Two rules that are ours:

- *Provisional.* A run with unanswered samples is scored over the answered ones. Beside each value with a floor
  stands the worst case: the mean of that value and the floor, weighted with the answered and the unanswered samples
  that the value counts. For a mean over samples that is the value with every unanswered one at the floor; a corpus
  value (BLEU) is lowered in proportion. Which values an unanswered sample counts for (`accuracy.closed`) is asked
  of the metric with an empty answer, unless it would need the image or an encoder: then it counts for all.
- *Null, never zero.* A metric that cannot be computed here, and a value over nothing, is null with its reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mhe.digests import cache_dir as default_cache_dir
from mhe.digests import digest_of
from mhe.documents.base import parse_options
from mhe.documents.run import MetricRecord, ScoreRecord
from mhe.errors import MetricUnavailableError, MheError, UserError
from mhe.protocols import MetricContext
from mhe.remembered_profiles import remembering_profiles
from mhe.score_files import kept_statistics, score_file_name, score_head, write_score_file
from mhe.statistics import bootstrap_weights, intervals, unit_sums
from mhe.values import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from pydantic import BaseModel

    from mhe.catalog import Catalog
    from mhe.protocols import FloatArray, Metric, MetricFactory, Profile
    from mhe.statistics import Counts
    from mhe.values import MetricValue, Sample


class ScoredTask(Protocol):
    """What scoring asks of a task: every `TaskSpec` has it, and so has a pair of files."""

    @property
    def name(self) -> str:
        """For messages."""
        ...

    @property
    def kind(self) -> str:
        """`caption` or `vqa`."""
        ...

    @property
    def profile(self) -> str:
        """The scoring profile used unless another is asked for."""
        ...

    @property
    def groups(self) -> Sequence[str]:
        """Groups that scores are reported by."""
        ...


NOTHING_ANSWERED = "no sample was answered"
NOTHING_COUNTED = "no answered sample is of the kind that this value counts"


def score_cases(
    catalog: Catalog,
    task: ScoredTask,
    cases: Sequence[Case],
    *,
    all_samples: Sequence[Sample],
    metrics: Sequence[str],
    profiles: Sequence[str],
    run_key: str,
    folder: Path | None = None,
    metric_options: Mapping[str, Mapping[str, object]] | None = None,
    cache_dir: Path | None = None,
    with_intervals: bool = True,
    report: Callable[[str, int, int], None] | None = None,
) -> list[MetricRecord]:
    """Score answered cases under each profile with each metric; one record a pair, profiles outermost.

    `cases` are the answered samples in the order of `all_samples`, which holds the unanswered ones too. Statistics
    are written to `folder`/scores where a folder is given, and taken from there where they are of the same answers.
    `report(what, done, total)` is called before each pair, and after the last.
    Raises what `check_scoring` raises, and `StorageError`.
    """
    chosen = _choose(catalog, task, metrics, profiles, metric_options or {}, cache_dir=cache_dir)
    answered = {case.sample.id for case in cases}
    scored = _Scored(
        task=task,
        cases=cases,
        unanswered=[Case(sample, "") for sample in all_samples if sample.id not in answered],
        run_key=run_key,
        folder=folder,
        with_intervals=with_intervals,
    )
    pairs = [
        (profile, entry)
        for profile in remembering_profiles(catalog, list(dict.fromkeys(profiles)), cases)
        for entry in chosen
    ]
    # Of one profile at a time: what works elsewhere begins first and is waited for last.
    begun = [_begin(scored, entry, profile) for profile, entry in pairs] if len(profiles) == 1 else [False] * len(pairs)
    records: dict[int, MetricRecord] = {}
    for done, number in enumerate(sorted(range(len(pairs)), key=lambda place: begun[place])):
        profile, entry = pairs[number]
        if report is not None:
            report(f"{entry.metric.name} under {profile.name}", done, len(pairs))
        records[number] = _score(scored, entry, profile)
    if report is not None:
        report("done", len(pairs), len(pairs))
    return [records[number] for number in range(len(pairs))]


def check_scoring(
    catalog: Catalog,
    task: ScoredTask,
    *,
    metrics: Sequence[str],
    profiles: Sequence[str],
    metric_options: Mapping[str, Mapping[str, object]] | None = None,
) -> frozenset[str]:
    """Find a mistake in what is asked for before a model is loaded. Returns all that the metrics require (`image`, …).

    Raises `UnknownNameError` for names, `UserError` for options a metric does not have and for a metric or profile
    of another kind of task, and `MissingExtraError`.
    """
    chosen = _choose(catalog, task, metrics, profiles, metric_options or {})
    return frozenset(name for entry in chosen for name in entry.metric.requires)


def uncomputed(records: Sequence[MetricRecord]) -> list[MetricRecord]:
    """The records of metrics that could not be computed at all: a reason for an exit code other than 0."""
    return [record for record in records if all(value.value is None for value in record.values)]


# ---------------------------------------------------------------- what is asked for


@dataclass(frozen=True, slots=True)
class _Entry:
    metric: Metric
    options: BaseModel


@dataclass(frozen=True, slots=True)
class _Scored:
    task: ScoredTask
    cases: Sequence[Case]
    unanswered: list[Case]
    run_key: str
    folder: Path | None
    with_intervals: bool

    @property
    def units(self) -> list[str]:
        return [case.sample.resampling_unit for case in self.cases]


def _choose(
    catalog: Catalog,
    task: ScoredTask,
    metrics: Sequence[str],
    profiles: Sequence[str],
    metric_options: Mapping[str, Mapping[str, object]],
    *,
    cache_dir: Path | None = None,
) -> list[_Entry]:
    names = list(dict.fromkeys(metrics))
    for name in metric_options:
        if name not in names:
            catalog.metric(name)
            raise UserError(f"metrics.{name}: options for a metric that is not asked for ({', '.join(names)}).")
    context = MetricContext(cache_dir=cache_dir or default_cache_dir(), open_tagger=catalog.open_tagger)
    entries = []
    for name in names:
        entry = _open(name, catalog.metric(name), metric_options.get(name, {}), context)
        if task.kind not in entry.metric.kinds:
            raise UserError(
                f"metric {name!r} is for {' and '.join(sorted(entry.metric.kinds))} tasks; {task.name} is a "
                f"{task.kind} task. See `mhe show metrics`."
            )
        entries.append(entry)
    for name in profiles:
        kind = catalog.profile(name).kind
        if kind != task.kind:
            raise UserError(
                f"profile {name!r} is for {kind} tasks; {task.name} is a {task.kind} task, by default scored under "
                f"{task.profile!r}. See `mhe show profiles`."
            )
    return entries


def _open(name: str, factory: MetricFactory, options: Mapping[str, object], context: MetricContext) -> _Entry:
    checked = parse_options(factory.Options, options, f"options of metric {name!r}")
    return _Entry(factory(checked, context), checked)


# ---------------------------------------------------------------- one metric under one profile


def _begin(scored: _Scored, entry: _Entry, profile: Profile) -> bool:
    """Let a metric that works in another process begin; whether it did."""
    begin = getattr(entry.metric, "begin", None)
    if begin is None or not scored.cases or scored.folder is not None:
        # Where statistics are kept they may be there already.
        return False
    try:
        begin(scored.cases, profile)
    except MetricUnavailableError:
        # Raised again, and told, when its statistics are asked for.
        return False
    return True


def _score(scored: _Scored, entry: _Entry, profile: Profile) -> MetricRecord:
    metric, options = entry.metric, entry.options.model_dump(mode="json")
    reason = None if scored.cases else NOTHING_ANSWERED
    resources: dict[str, str] = {}
    try:
        resources = dict(getattr(metric, "resources", {}))
    except MetricUnavailableError as error:
        reason = reason or str(error)
    key = digest_of(
        {
            "run_key": scored.run_key,
            "metric": [metric.name, metric.version, options],
            "profile": [profile.name, profile.version],
            **({"resources": resources} if resources else {}),
        }
    )
    name = score_file_name(metric.name, profile.name, key)
    place = scored.folder / name if scored.folder is not None else None
    values: list[ScoreRecord] = []
    if reason is None:
        try:
            # Made of every sample, and so only where it is written.
            head = (
                score_head(metric, options, profile, key, resources, scored.cases, scored.task.groups) if place else {}
            )
            statistics = kept_statistics(place, head, len(metric.columns)) if place else None
            if statistics is None:
                statistics = _checked(metric, metric.statistics(scored.cases, profile), len(scored.cases))
            values = _values(scored, metric, profile, statistics)
            if place is not None:
                write_score_file(place, head, metric, statistics)
        except MetricUnavailableError as error:
            reason = str(error)
    if reason is not None:
        values = [_null(value, reason, scored) for value in metric.values]
    return MetricRecord(
        metric=metric.name,
        metric_version=metric.version,
        options=options,
        resources=resources,
        profile=profile.name,
        profile_version=profile.version,
        score_key=key,
        file=name if place is not None and reason is None else None,
        provisional=bool(scored.unanswered),
        values=tuple(values),
    )


def _null(value: MetricValue, reason: str, scored: _Scored) -> ScoreRecord:
    # A metric that is unavailable has no worst case either: nothing is known of what was answered.
    has_worst = not scored.cases and bool(scored.unanswered) and value.higher_is_better is not None
    worst = value.floor if has_worst else None
    return ScoreRecord(
        name=value.name,
        value=None,
        samples=0,
        worst_case=worst,
        reason=reason,
        higher_is_better=value.higher_is_better,
        summary=value.summary,
        floor=value.floor,
        ceiling=value.ceiling,
    )


def _checked(metric: Metric, statistics: FloatArray, rows: int) -> FloatArray:
    import numpy as np

    statistics = np.asarray(statistics, dtype=np.float64)
    if statistics.shape != (rows, len(metric.columns)):
        raise MheError(
            f"metric {metric.name!r} is defective: statistics of shape {statistics.shape} for {rows} samples and "
            f"{len(metric.columns)} columns."
        )
    if not np.isfinite(statistics).all():
        row = int(np.argwhere(~np.isfinite(statistics))[0][0])
        raise MheError(f"metric {metric.name!r} is defective: statistics of sample number {row + 1} are not finite.")
    return statistics


def _values(scored: _Scored, metric: Metric, profile: Profile, statistics: FloatArray) -> list[ScoreRecord]:
    sums_by_unit = unit_sums(statistics, scored.units)
    totals = metric.aggregate(statistics.sum(axis=0))
    rows = metric.aggregate(statistics)
    ranges: Mapping[str, tuple[float, float] | None] = {}
    if scored.with_intervals:
        ranges = intervals(metric.aggregate, sums_by_unit, _weights(len(sums_by_unit)))
    groups = {group: _by_group(scored, metric, statistics, group) for group in scored.task.groups}
    missing = _counted_unanswered(scored, metric, profile)
    records = []
    for value in metric.values:
        total = float(totals[value.name])
        counted = _count(rows[value.name])
        found = ranges.get(value.name)
        records.append(
            ScoreRecord(
                name=value.name,
                value=None if math.isnan(total) else total,
                low=None if found is None or math.isnan(total) else found[0],
                high=None if found is None or math.isnan(total) else found[1],
                samples=counted,
                worst_case=_worst_case(value, total, counted, missing[value.name]) if scored.unanswered else None,
                reason=NOTHING_COUNTED if math.isnan(total) else None,
                higher_is_better=value.higher_is_better,
                summary=value.summary,
                floor=value.floor,
                ceiling=value.ceiling,
                groups={group: by_value[value.name] for group, by_value in groups.items()},
            )
        )
    return records


def _worst_case(value: MetricValue, total: float, answered: int, unanswered: int) -> float | None:
    if value.floor is None or value.higher_is_better is None or answered + unanswered == 0:
        return None
    earned = 0.0 if answered == 0 else total * answered
    return (earned + value.floor * unanswered) / (answered + unanswered)


def _counted_unanswered(scored: _Scored, metric: Metric, profile: Profile) -> dict[str, int]:
    """For each value, how many of the unanswered samples it would count."""
    if not scored.unanswered or {"image", "encoder"} & set(metric.requires):
        return {value.name: len(scored.unanswered) for value in metric.values}
    rows = metric.aggregate(metric.statistics(scored.unanswered, profile))
    return {value.name: _count(rows[value.name]) for value in metric.values}


def _by_group(
    scored: _Scored, metric: Metric, statistics: FloatArray, group: str
) -> dict[str, dict[str, float | None]]:
    """Value name to group value to score; samples without the group are in none."""
    places: dict[str, list[int]] = {}
    for row, case in enumerate(scored.cases):
        if (member := case.sample.groups.get(group)) is not None:
            places.setdefault(member, []).append(row)
    found: dict[str, dict[str, float | None]] = {value.name: {} for value in metric.values}
    for member in sorted(places):
        totals = metric.aggregate(statistics[places[member]].sum(axis=0))
        for value in metric.values:
            total = float(totals[value.name])
            found[value.name][member] = None if math.isnan(total) else total
    return found


def _count(values: FloatArray) -> int:
    import numpy as np

    return int(np.count_nonzero(~np.isnan(values)))


_drawn: dict[int, Counts] = {}


def _weights(n_units: int) -> Counts:
    """The draws for this number of units, made once for all metrics and runs of the process."""
    if n_units not in _drawn:
        _drawn.clear()
        _drawn[n_units] = bootstrap_weights(n_units)
    return _drawn[n_units]
