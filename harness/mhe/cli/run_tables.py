"""A run as a reader sees it: values with intervals, groups, cost, and everything that is not as it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe.cli.readings import direction_text, range_text
from mhe.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mhe.documents.run import Efficiency, MetricRecord, RunRecord, ScoreRecord

PHANTOM_NOTE = "Phantoms are drawn images: these scores say nothing of medicine."


def run_table(record: RunRecord, folder: Path | None = None, summaries: Mapping[str, str] | None = None) -> str:
    """The run as text: head, values, groups, cost, warnings. `summaries` as in `values_table`."""
    parts = [_head(record), values_table(record.metrics, summaries)]
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


SHOWN_WITH_INTERVALS = 3
"""With more profiles than these, intervals are shown for the first only: `--json` and `--out` have them all."""
READING = (
    "95 % interval: bootstrap, drawn by image (by patient where known). n: samples that the value is over. "
    "—: could not be computed."
)


def values_table(metrics: Sequence[MetricRecord], summaries: Mapping[str, str] | None = None) -> str:
    """All values as a reader needs them: side by side where there are several profiles, then one row a value.

    `summaries` says of each profile, by name, what it is; those it lacks are not explained.
    """
    profiles = list(dict.fromkeys(metric.profile for metric in metrics))
    parts = [_side_by_side(metrics, profiles)] if len(profiles) > 1 else []
    detailed = profiles if len(profiles) <= SHOWN_WITH_INTERVALS else profiles[:1]
    parts.append(_detailed([metric for metric in metrics if metric.profile in detailed]))
    notes = [READING]
    if len(detailed) < len(profiles):
        notes.append(f"Intervals are those under {detailed[0]}; --json and --out DIR have those under every profile.")
    notes += [f"Profile {name}: {summaries[name]}." for name in profiles if summaries and summaries.get(name)]
    parts.append("\n".join(notes))
    missing = _not_computed(metrics)
    return "\n\n".join([*parts, *([missing] if missing else [])])


def _detailed(metrics: Sequence[MetricRecord]) -> str:
    """One row a value: interval, samples, how to read it, profile, what it is."""
    rows, remarks = [], []
    for metric in metrics:
        for score in metric.values:
            is_computed = score.value is not None
            remark = "provisional" if metric.provisional and is_computed else ""
            if score.worst_case is not None:
                remark = f"{remark}; {number(score.worst_case)} with the unanswered at the floor".strip("; ")
            remarks.append(remark)
            rows.append(
                [
                    score.name,
                    number(score.value),
                    f"{number(score.low)} to {number(score.high)}" if score.low is not None else "—",
                    str(score.samples),
                    reading(score),
                    metric.profile,
                    score.summary,
                ]
            )
    headers = ["metric", "value", "95 % interval", "n", "how to read it", "profile", "what it is"]
    if any(remarks):
        headers.append("")
        rows = [[*row, remark] for row, remark in zip(rows, remarks, strict=True)]
    return table(headers, rows, right={1, 3})


def reading(score: ScoreRecord) -> str:
    """Range and direction, such as `0 to 1, higher is better`; records of version 1 know no range."""
    direction = direction_text(score.higher_is_better)
    if not score.summary:
        return direction
    return f"{range_text(score.floor, score.ceiling, score.higher_is_better)}, {direction}"


def _side_by_side(metrics: Sequence[MetricRecord], profiles: Sequence[str]) -> str:
    """One row a value, one column a profile; what differs from the first profile is marked."""
    found: dict[str, dict[str, ScoreRecord]] = {}
    for metric in metrics:
        for score in metric.values:
            found.setdefault(score.name, {})[metric.profile] = score
    rows = []
    for name, scores in found.items():
        # As shown: what agrees to three digits is no difference that a reader could see.
        shown = {profile: number(score.value) for profile, score in scores.items()}
        first = shown.get(profiles[0], "—")
        known = [float(text) for text in shown.values() if text != "—"]
        spread = max(known) - min(known) if len(known) > 1 else 0.0
        cells = [
            f"{text} {'≠' if '—' not in (text, first) and text != first else ' '}"
            for text in (shown.get(profile, "—") for profile in profiles)
        ]
        rows.append([name, *cells, f"{spread:.3f}" if spread else "same" if len(known) > 1 else "—"])
    headers = ["metric", *[f"{profile}  " for profile in profiles], "differ by"]
    legend = f"≠: another value than under {profiles[0]}. differ by: the highest less the lowest."
    return f"{table(headers, rows, right=set(range(1, len(profiles) + 2)))}\n\n{legend}"


def _not_computed(metrics: Sequence[MetricRecord]) -> str:
    """The reason of every dash, once a metric, profile and reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for metric in metrics:
        for score in metric.values:
            if score.value is None:
                found.setdefault((score.reason or "no reason is recorded", metric.profile), []).append(score.name)
    lines = [f"  {', '.join(names)} ({profile}): {reason}" for (reason, profile), names in found.items()]
    return "\n".join(["Not computed:", *lines]) if lines else ""


def groups_table(metrics: Sequence[MetricRecord], primary: str) -> str:
    """The values of the metric that has the primary one, by group, under the first profile; nothing without groups."""
    for metric in metrics:
        if primary not in {score.name for score in metric.values}:
            continue
        labels = {(group, label) for score in metric.values for group, found in score.groups.items() for label in found}
        order = list(next((score.groups for score in metric.values if score.groups), {}))
        rows = [
            [group, label, *[number(score.groups.get(group, {}).get(label)) for score in metric.values]]
            for group, label in sorted(labels, key=lambda pair: (order.index(pair[0]), pair[1]))
        ]
        if not rows:
            return ""
        headers = ["group", "", *[score.name for score in metric.values]]
        return f"By group, under {metric.profile}:\n\n{table(headers, rows, right=set(range(2, len(headers))))}"
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
