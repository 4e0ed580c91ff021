"""What a board pins of a task: taken from the task itself, or from a run that is to be its first entry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mhe.digests import cache_dir, digest_of
from mhe.documents.board import BoardTask, MetricPin
from mhe.errors import UnknownNameError, UserError
from mhe.protocols import MetricContext

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.catalog import Catalog
    from mhe.documents.run import MetricRecord, RunRecord
    from mhe.documents.task import Generation, TaskSpec


def pin_task(
    catalog: Catalog,
    task: TaskSpec,
    *,
    split: str | None,
    limit: int | None,
    profile: str | None,
    metrics: Sequence[str],
    data_digest: str | None,
    generation: Generation | None = None,
) -> BoardTask:
    """Pins from the task; `metrics` are names of metrics or of single values, the task's metrics where empty.

    Raises `UnknownNameError` for a split, profile or metric that does not exist, `UserError` for a profile of
    another kind of task.
    """
    split = split or task.default_split
    if split not in task.splits:
        raise UnknownNameError("split", split, task.splits, hint=f"(of task {task.name})")
    convention = catalog.profile(profile or task.profile)
    if convention.kind != task.kind:
        raise UserError(
            f"profile {convention.name!r} is for {convention.kind} tasks; {task.name} is a {task.kind} task."
        )
    pins: list[MetricPin] = []
    for name in _metric_names(catalog, task, metrics):
        factory = catalog.metric(name)
        options = factory.Options()
        metric = factory(options, MetricContext(cache_dir=cache_dir()))
        pins.append(
            MetricPin(
                metric=name,
                version=metric.version,
                options=options.model_dump(mode="json"),
                profile_version=convention.version,
                values=tuple(value.name for value in metric.values),
            )
        )
    shown = _shown_values(pins, metrics, task.primary)
    pins = _used(pins, shown)
    pinned = generation or task.generation
    return BoardTask(
        task=task.key,
        title=task.title,
        phantom=task.phantom,
        split=split,
        limit=limit,
        task_digest=digest_of(task.model_dump(mode="json")),
        data_digest=data_digest,
        profile=convention.name,
        metrics=shown,
        primary=task.primary if task.primary in shown else shown[0],
        pins=tuple(pins),
        generation=pinned,
        settings=_settings(catalog, pinned, pins, task),
        notes=_notes(task, split),
    )


def _metric_names(catalog: Catalog, task: TaskSpec, metrics: Sequence[str]) -> list[str]:
    """The metrics to open: those named, or the task's where values (`accuracy.closed`) are named."""
    if not metrics:
        return list(task.metrics)
    named = [name for name in metrics if name in catalog.metrics]
    return list(dict.fromkeys([*named, *task.metrics])) if len(named) < len(metrics) else list(dict.fromkeys(named))


def _shown_values(pins: Sequence[MetricPin], metrics: Sequence[str], primary: str) -> tuple[str, ...]:
    """Values in the order of the table, the primary one first where nothing was asked for."""
    of_metric = {pin.metric: pin.values for pin in pins}
    known = [value for pin in pins for value in pin.values]
    if not metrics:
        return tuple(sorted(known, key=lambda name: name != primary))
    shown: list[str] = []
    for name in metrics:
        # A metric and its only value may share a name.
        if name in known:
            shown.append(name)
        elif name in of_metric:
            shown.extend(of_metric[name])
        else:
            raise UnknownNameError("metric or metric value", name, [*of_metric, *known])
    return tuple(dict.fromkeys(shown))


def _used(pins: Sequence[MetricPin], shown: Sequence[str]) -> list[MetricPin]:
    return [pin for pin in pins if set(pin.values) & set(shown)]


def pin_run(
    catalog: Catalog, record: RunRecord, *, profile: str | None = None, metrics: Sequence[str] = ()
) -> BoardTask:
    """Pins exactly what a run did, digests included.

    Raises `UserError` for a profile or metric that the run was not scored with.
    """
    profiles = list(dict.fromkeys(metric.profile for metric in record.metrics))
    chosen = profile or (profiles[0] if profiles else "")
    found = [metric for metric in record.metrics if metric.profile == chosen]
    if not found:
        raise UserError(
            f"the run was not scored under profile {chosen!r}; it was under: {', '.join(profiles) or 'none'}."
        )
    pins = [_pin_of(metric) for metric in found]
    shown = _shown_values(pins, metrics, record.task.primary)
    task = catalog.task(record.task.name) if record.task.name in catalog.task_folders else None
    return BoardTask(
        task=f"{record.task.name}@{record.task.version}",
        title=record.task.title,
        phantom=record.task.phantom,
        split=record.data.split,
        limit=record.data.limit,
        task_digest=record.task.digest,
        data_digest=record.data.digest,
        profile=chosen,
        metrics=shown,
        primary=record.task.primary if record.task.primary in shown else shown[0],
        pins=tuple(_used(pins, shown)),
        generation=record.generation,
        settings=_settings(catalog, record.generation, _used(pins, shown), task),
        notes=_notes(task, record.data.split) if task else (),
    )


def _pin_of(metric: MetricRecord) -> MetricPin:
    return MetricPin(
        metric=metric.metric,
        version=metric.metric_version,
        options=metric.options,
        resources=metric.resources,
        profile_version=metric.profile_version,
        values=tuple(value.name for value in metric.values),
    )


def _settings(
    catalog: Catalog, pinned: Generation, pins: Sequence[MetricPin], task: TaskSpec | None
) -> tuple[str, ...]:
    """Options of `mhe eval` for everything that differs from the task's own; all of it where the task is unknown."""
    options: list[str] = []
    names = [pin.metric for pin in pins]
    if task is None or not set(names) <= set(task.metrics):
        options += ["--metrics", ",".join(names)]
    usual = task.generation.model_dump(mode="json") if task else {}
    options += _set_options("generation", pinned.model_dump(mode="json"), usual)
    for pin in pins:
        known = catalog.metric(pin.metric).Options() if pin.metric in catalog.metrics else None
        usual = known.model_dump(mode="json") if known else {}
        options += _set_options(f"metrics.{pin.metric}", pin.options, usual)
    return tuple(options)


def _set_options(scope: str, wanted: Mapping[str, object], usual: Mapping[str, object]) -> list[str]:
    # JSON is YAML, which `--set` reads.
    changed = [name for name, value in wanted.items() if name not in usual or usual[name] != value]
    return [part for name in changed for part in ("--set", f"{scope}.{name}={json.dumps(wanted[name])}")]


def _notes(task: TaskSpec, split: str) -> tuple[str, ...]:
    notes = [
        f"The official splits {' and '.join(shared.splits)} share images: {shared.reason}"
        for shared in task.shared_images
        if split in shared.splits
    ]
    notes += [f"Sample {broken.id} is broken in the published data: {broken.reason}" for broken in task.broken]
    return tuple(notes)
