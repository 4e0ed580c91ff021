"""What a pipeline came to: its steps as a tree, with parameters, bytes, and quality and speed where runs say them.

Nothing is evaluated here. A run counts for the model whose weights it had, whatever the name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.cli.run_tables import number, readable_bytes
from mhe.cli.tables import table
from mhe.documents.run import RunRecord
from mhe.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mhe.catalog import Catalog
    from mhe.documents.pipeline import PipelineSpec
    from mhe.pipeline_runs import StepResult
    from mhe.pipelines import StepPlace

HEADERS = ("model", "parameters", "on disk", "quality", "speed", "made in")
UNKNOWN = "—"


@dataclass(frozen=True, slots=True)
class TreeRow:
    """One model of a pipeline."""

    name: str
    depth: int
    parameters: int | None
    bytes_on_disk: int | None
    """With the base of an adapter."""
    seconds: float | None
    runs: tuple[RunRecord, ...]
    """The latest of each task, by task."""

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "name": self.name,
            "depth": self.depth,
            "parameters": self.parameters,
            "bytes_on_disk": self.bytes_on_disk,
            "seconds": self.seconds,
            "runs": [_run_json(run) for run in self.runs],
        }


def tree_rows(
    catalog: Catalog, spec: PipelineSpec, results: Sequence[StepResult], place: StepPlace, runs_dir: Path
) -> list[TreeRow]:
    """The base and the result of every step, each below what it started from."""
    from mhe.model_names import resolve_model
    from mhe.pipeline_runs import BASE, parent_of
    from mhe.pipelines import input_model

    runs = runs_by_fingerprint(runs_dir)
    base = input_model(catalog, resolve_model(spec.base, catalog, checkpoints_dir=place.directory), place)
    own = runs.get(base.fingerprint, ())
    parameters = next((run.model.parameters for run in own if run.model.parameters is not None), None)
    depths = {BASE: 0}
    rows = [TreeRow(spec.base, 0, parameters, base.bytes_on_disk, None, own)]
    for result in results:
        made = result.outcome.checkpoint
        found = input_model(catalog, result.outcome.model, place)
        depths[result.step.name] = depths[parent_of(spec, result.step)] + 1
        rows.append(
            TreeRow(
                name=f"{made.name}@{made.seed}",
                depth=depths[result.step.name],
                parameters=made.parameters,
                bytes_on_disk=found.bytes_on_disk,
                seconds=made.cost.seconds,
                runs=runs.get(found.fingerprint, ()),
            )
        )
    return rows


def runs_by_fingerprint(runs_dir: Path) -> dict[str, tuple[RunRecord, ...]]:
    """Complete runs by the fingerprint of their model: the latest of each task. Records that cannot be read are left
    out; `mhe show runs` tells of them.
    """
    latest: dict[str, dict[str, RunRecord]] = {}
    for path in sorted(runs_dir.glob("*/*/*/run.json")):
        try:
            record = RunRecord.from_json(path)
        except DocumentError:
            continue
        if record.status != "complete":
            continue
        found = latest.setdefault(record.model.fingerprint, {})
        other = found.get(record.task.name)
        if other is None or other.finished <= record.finished:
            found[record.task.name] = record
    return {key: tuple(found[task] for task in sorted(found)) for key, found in latest.items()}


def tree_text(rows: Sequence[TreeRow], tasks: Sequence[str]) -> str:
    """The table, and how to find the quality of models that no run is of; `tasks` are what the pipeline trains on."""
    cells: list[list[str]] = []
    for row in rows:
        # Tables drop blanks at the start of a cell.
        indent = f"└{'─' * (2 * row.depth - 1)} " if row.depth else ""
        parameters = UNKNOWN if row.parameters is None else f"{row.parameters:,}"
        seconds = UNKNOWN if row.seconds is None else f"{row.seconds:,.0f} s"
        quality = [_quality(run) for run in row.runs] or [UNKNOWN]
        speed = [_speed(run) for run in row.runs] or [UNKNOWN]
        cells.append(
            [f"{indent}{row.name}", parameters, readable_bytes(row.bytes_on_disk), quality[0], speed[0], seconds]
        )
        cells += [["", "", "", more, rate, ""] for more, rate in zip(quality[1:], speed[1:], strict=True)]
    lines = [table(HEADERS, cells, right={1, 2, 5})]
    unknown = [row.name for row in rows if not row.runs]
    if unknown:
        task = tasks[0] if tasks else "TASK"
        lines += ["", "Quality is not known yet of:"]
        lines += [f"  mhe eval --model {name} --task {task}" for name in unknown]
    return "\n".join(lines)


def _quality(run: RunRecord) -> str:
    scores = {score.name: score for metric in run.metrics for score in metric.values}
    primary = scores.get(run.task.primary)
    if primary is None or primary.value is None:
        return f"{run.task.name}: no {run.task.primary}"
    interval = "" if primary.low is None else f" [{number(primary.low)}, {number(primary.high)}]"
    limit = "" if run.data.limit is None else f" (first {run.data.limit})"
    return f"{run.task.name}{limit} {run.task.primary} {number(primary.value)}{interval}"


def _speed(run: RunRecord) -> str:
    cost = run.efficiency
    if cost.samples_per_second is None:
        return UNKNOWN
    return f"{cost.samples_per_second:.1f} samples/s on {cost.device or 'an unnamed device'}"


def _run_json(run: RunRecord) -> dict[str, object]:
    scores = {score.name: score for metric in run.metrics for score in metric.values}
    primary = scores.get(run.task.primary)
    return {
        "task": run.task.name,
        "metric": run.task.primary,
        "value": primary.value if primary else None,
        "low": primary.low if primary else None,
        "high": primary.high if primary else None,
        "samples_per_second": run.efficiency.samples_per_second,
        "latency_p50": run.efficiency.latency_p50,
        "device": run.efficiency.device,
        "finished": run.finished,
    }
