"""A run as a reader sees it: values with intervals, groups, cost, and everything that is not as it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mhe.documents.run import Efficiency, MetricRecord, RunRecord

PHANTOM_NOTE = "Phantoms are drawn images: these scores say nothing of medicine."


def run_table(record: RunRecord, folder: Path | None = None) -> str:
    """The run as text: head, values, groups, cost, warnings."""
    parts = [_head(record), values_table(record.metrics)]
    groups = groups_table(record.metrics, record.task.primary)
    if groups:
        parts.append(groups)
    parts.append(cost_line(record.efficiency, record.model.parameters, record.model.bytes_on_disk))
    notes = [f"warning: {warning}" for warning in record.warnings]
    if record.task.phantom:
        notes.append(PHANTOM_NOTE)
    if folder is not None:
        notes.append(f"Run: {folder}")
    if notes:
        parts.append("\n".join(notes))
    return "\n\n".join(parts) + "\n"


def _head(record: RunRecord) -> str:
    counts = record.counts
    name = f"{record.model.name} on {record.task.name} (version {record.task.version}), split {record.data.split}"
    lines = [f"{name}, seed {record.seed}: {counts.answered} of {counts.samples} samples answered"]
    if record.status == "partial":
        errors = [
            f"{number} {kind}"
            for kind, number in [
                ("data", counts.data_errors),
                ("model", counts.model_errors),
                ("system", counts.system_errors),
            ]
            if number
        ]
        lines.append(
            f"PARTIAL: errors of kind {', '.join(errors)}; values are provisional, over the answered samples. "
            "Errors are in samples.jsonl; system errors are tried again at the next start."
        )
    if counts.cut_at_limit or counts.empty:
        lines.append(f"{counts.cut_at_limit} answers cut at the token limit, {counts.empty} empty.")
    return "\n".join(lines)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none."""
    return "—" if value is None else f"{value:.{digits}f}"


def values_table(metrics: Sequence[MetricRecord]) -> str:
    """One row a value: interval, samples, direction, profile."""
    rows = []
    for metric in metrics:
        for score in metric.values:
            interval = f"{number(score.low)} to {number(score.high)}" if score.low is not None else "—"
            remark = score.reason or ("provisional" if metric.provisional else "")
            if score.worst_case is not None:
                remark = f"{remark}; {number(score.worst_case)} with the unanswered at the floor".strip("; ")
            rows.append(
                [
                    score.name,
                    number(score.value),
                    interval,
                    str(score.samples),
                    "higher is better" if score.higher_is_better else "lower is better",
                    metric.profile,
                    remark,
                ]
            )
    headers = ["metric", "value", "95 % interval", "n", "direction", "profile", ""]
    return table(headers, rows, right={1, 3})


def groups_table(metrics: Sequence[MetricRecord], primary: str) -> str:
    """The primary value by group, under the first profile; nothing where the task names no groups."""
    for metric in metrics:
        for score in metric.values:
            if score.name == primary and score.groups:
                rows = [
                    [group, name, number(value)]
                    for group, values in score.groups.items()
                    for name, value in sorted(values.items())
                ]
                return table(["group", "", score.name], rows, right={2})
    return ""


def readable_bytes(size: float | None) -> str:
    """Bytes in the unit a person would use (powers of 1024)."""
    if size is None:
        return "—"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def cost_line(cost: Efficiency, parameters: int | None, size: int | None) -> str:
    """Cost in one line; what was not measured is left out here and has its reason in run.json."""
    parts = [f"device {cost.device}"] if cost.device else []
    if parameters is not None:
        parts.append(f"{parameters:,} parameters")
    if size is not None:
        parts.append(f"{readable_bytes(size)} on disk")
    if cost.samples_per_second is not None:
        parts.append(f"{cost.samples_per_second:.1f} samples/s")
    if cost.latency_p50 is not None and cost.latency_p95 is not None:
        parts.append(f"latency p50 {cost.latency_p50:.3f} s, p95 {cost.latency_p95:.3f} s")
    if cost.batch_size is not None:
        parts.append(f"batch {cost.batch_size}")
    if cost.peak_host_bytes is not None:
        parts.append(f"peak host memory {readable_bytes(cost.peak_host_bytes)}")
    if cost.peak_device_bytes is not None:
        parts.append(f"peak device memory {readable_bytes(cost.peak_device_bytes)}")
    return "Cost: " + (", ".join(parts) or "not measured")
