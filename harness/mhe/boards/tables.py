"""The part of a board's page that is about one task: the table, its legend, the front, what papers report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.boards.group_tables import group_lines
from mhe.boards.markdown import DASH, code, escaped, fixed, plain_line, short_number, table
from mhe.boards.pareto import Panel, Point, drawing, front_of
from mhe.boards.ranking import LEVEL
from mhe.boards.relations import relation_lines
from mhe.boards.results import score_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.boards.relations import Relation
    from mhe.boards.results import Cell, Row
    from mhe.documents.board import BoardSpec, BoardTask, CostName, ReportedRow

FRONT_COSTS: tuple[CostName, ...] = ("bytes", "parameters", "latency p50", "trained share", "training memory")


@dataclass(frozen=True, slots=True)
class Section:
    """Lines of the page, and files beside it by name."""

    lines: tuple[str, ...]
    files: Mapping[str, str]


def task_section(spec: BoardSpec, task: BoardTask, rows: Sequence[Row], relations: Sequence[Relation] = ()) -> Section:
    """Everything the page says about one task."""
    title = f"{code(task.task)} {escaped(task.title)}".strip()
    lines = [f"## {title}", ""]
    if task.phantom:
        lines += ["> **PHANTOM images, drawn by a program. These scores say nothing of medicine.**", ""]
    files: dict[str, str] = {}
    if rows:
        directions = _directions(task, rows)
        panels = _panels(spec, task, rows, higher=directions[task.primary])
        lines += [*_table(spec, task, rows, panels, directions), "", *_legend(spec, task, rows), ""]
        if panels:
            name = f"pareto-{task.name}.svg"
            drawn = {point.name for panel in panels for point in panel.points}
            names = [row.entrant.name for row in rows if row.entrant.name in drawn]
            files[name] = drawing(f"{task.task}: {task.primary} against cost", task.primary, panels, names)
            lines += _front_lines(spec, task, name, panels, rows)
        lines += relation_lines(spec, task, relations)
        lines += group_lines(task, rows)
    else:
        lines += ["No entry yet.", ""]
    if task.notes:
        lines += [*[f"- ⚠ {escaped(note)}" for note in task.notes], ""]
    reported = [row for row in spec.reported if row.task in {task.task, task.name}]
    return Section((*lines, *(_reported_lines(task, reported) if reported else [])), files)


COST_NOTES: dict[CostName, str] = {
    "bits per weight": "Bits per weight: 8 x bytes of the loaded weights, scales included, by parameters.",
    "peak memory": "Peak memory is the device's where it has its own, else the host's.",
    "trained share": "Trained share: parameters that the last training step moved, of all it held, adapters included.",
    "training memory": "Training memory: peak of the last training step, on the device where it has its own, else of "
    "the whole process on the host, Python and its libraries included.",
}

ARROWS = {True: " ↑", False: " ↓", None: ""}


def _directions(task: BoardTask, rows: Sequence[Row]) -> dict[str, bool | None]:
    """Whether more is better, for each shown value; None where neither is."""
    found = {}
    for value in task.metrics:
        scores = (score_of(entry, task, value) for row in rows for entry in row.entries)
        found[value] = next((score.higher_is_better for score in scores if score is not None), True)
    return found


def _table(
    spec: BoardSpec,
    task: BoardTask,
    rows: Sequence[Row],
    panels: Sequence[Panel],
    directions: Mapping[str, bool | None],
) -> list[str]:
    values = [
        f"{'**' if name == task.primary else ''}{escaped(name)}{'**' if name == task.primary else ''}"
        f"{ARROWS[directions[name]]}"
        for name in task.metrics
    ]
    head = ["Rank", "Entrant", "Seeds", *values, *spec.costs, "Front"]
    cells = []
    for row in rows:
        fronts = [panel.cost for panel in panels if row.entrant.name in panel.front]
        cells.append(
            [
                str(row.place) if row.place is not None else DASH,
                _name(row),
                f"{len(row.entries)} of {len(spec.seeds)}",
                *[_value(row.cells[name], is_primary=name == task.primary) for name in task.metrics],
                *[short_number(row.costs[cost].value, cost) for cost in spec.costs],
                ", ".join(fronts) or DASH,
            ]
        )
    return table(head, cells, [True, False, True, *[True] * len(values), *[True] * len(spec.costs), False])


def _name(row: Row) -> str:
    name = f"**{row.entrant.name}**"
    if row.entrant.kind == "baseline":
        name = f"*{row.entrant.name} (baseline)*"
    marks = [] if all(entry.record.model.verified for entry in row.entries) else ["weights unverified"]
    if any(entry.record.responses_from != "backend" for entry in row.entries):
        marks.append("predictions made elsewhere")
    needed = {entry.record.model.needs_class for entry in row.entries}
    marks += [f"needs {code(name)}" for name in sorted(name for name in needed if name is not None)]
    text = f"{name} ({', '.join(marks)})" if marks else name
    return f"{text}: {escaped(row.entrant.summary, 160)}" if row.entrant.summary.strip() else text


def _value(cell: Cell, *, is_primary: bool) -> str:
    if cell.value is None:
        return DASH
    text = fixed(cell.value)
    text = f"**{text}**" if is_primary else text
    if cell.std is not None:
        text += f" ± {fixed(cell.std)}"
    if cell.low is not None and cell.high is not None:
        text += f" ({fixed(cell.low)} to {fixed(cell.high)})"
    return text


def _legend(spec: BoardSpec, task: BoardTask, rows: Sequence[Row]) -> list[str]:
    """How to read the table, and the reason of every empty cell."""
    rule = (
        f"Ranked by {code(task.primary)}: who cannot be told from the best of a group by a paired randomisation test "
        f"({100 * LEVEL:.0f} %, Holm) shares its rank. In brackets 95 % bootstrap intervals, after ± the deviation "
        "over seeds."
    )
    if _directions(task, rows)[task.primary] is None:
        rule = (
            f"Not ranked: {code(task.primary)} has no direction, neither more nor less is better. In brackets 95 % "
            "bootstrap intervals, after ± the deviation over seeds."
        )
    lines = [rule, *[about for cost, about in COST_NOTES.items() if cost in spec.costs]]
    groups: dict[str, list[str]] = {}
    for row in rows:
        groups.setdefault("; ".join(row.devices), []).append(row.entrant.name)
    lines.append(f"Measured on: {'; '.join(f'{escaped(d)} ({_listed(n, rows)})' for d, n in sorted(groups.items()))}.")
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, cell in [*row.cells.items(), *row.costs.items()]:
            if cell.value is None:
                reasons.setdefault((name, plain_line(cell.reason or "not known")), []).append(row.entrant.name)
    empty = [
        f"- {DASH} {escaped(name)}, {_listed(names, rows)}: {escaped(reason)}"
        for (name, reason), names in sorted(reasons.items())
    ]
    prose = [f"{line}  " for line in lines[:-1]] + lines[-1:]
    return [*prose, *(["", *empty] if empty else [])]


FEW = 3
"""So many names are left out of "all but"."""


def _listed(names: Sequence[str], rows: Sequence[Row]) -> str:
    others = [row.entrant.name for row in rows if row.entrant.name not in names]
    if not others and len(rows) > 1:
        return "all"
    return f"all but {', '.join(others)}" if len(others) <= FEW < len(names) else ", ".join(names)


# ------------------------------------------------------------ the front


def _panels(spec: BoardSpec, task: BoardTask, rows: Sequence[Row], *, higher: bool | None) -> list[Panel]:
    found: list[Panel] = []
    if higher is None:
        return found
    for cost in (cost for cost in FRONT_COSTS if cost in spec.costs):
        if cost == "latency p50" and _latency_problem(spec, rows):
            continue
        points = []
        for row in rows:
            spent, quality = row.costs[cost].value, row.cells[task.primary].value
            # A baseline that costs nothing would stand on every front and stretch every axis.
            if spent and quality is not None and row.entrant.kind != "baseline":
                # Three digits, as the table shows: a few bytes of configuration are no difference in size.
                points.append(Point(row.entrant.name, float(f"{spent:.3g}"), quality))
        if points:
            found.append(Panel(cost, tuple(points), front_of(points, higher_is_better=higher)))
    return found


def _latency_problem(spec: BoardSpec, rows: Sequence[Row]) -> str | None:
    """Seconds of different devices or batch sizes say nothing of models."""
    if "latency p50" not in spec.costs:
        return None
    compared = [row for row in rows if row.costs["latency p50"].value is not None and row.entrant.kind != "baseline"]
    devices = {device for row in compared for device in row.devices}
    if len(devices) > 1:
        return "No front by latency: it was measured on different devices or batch sizes."
    return None


def _front_lines(
    spec: BoardSpec, task: BoardTask, file: str, panels: Sequence[Panel], rows: Sequence[Row]
) -> list[str]:
    lines = [f"![{escaped(task.primary)} of {task.name} against cost; the same in words below]({file})", ""]
    lines += [
        "On the Pareto front (no other entrant is at least as good and as cheap, and better in one; baselines apart):",
        "",
    ]
    quality = {row.entrant.name: row.cells[task.primary].value or 0.0 for row in rows}
    for panel in panels:
        spent = {row.entrant.name: row.costs[panel.cost].value for row in rows}
        steps = [f"{name} ({short_number(spent[name], panel.cost)}, {fixed(quality[name])})" for name in panel.front]
        lines.append(f"- by {panel.cost}: {', '.join(steps)}")
    problem = _latency_problem(spec, rows)
    return [*lines, *([f"- {problem}"] if problem else []), ""]


# ------------------------------------------------------------ what papers report


def _quoted(value: float) -> str:
    """With every digit that was printed, and not fewer than measured values have."""
    return max(fixed(value), str(value), key=len)


def _reported_lines(task: BoardTask, reported: Sequence[ReportedRow]) -> list[str]:
    """Quoted rows: in a table of their own, in the order of board.yaml, without ranks."""
    names = list(dict.fromkeys(name for row in reported for name in row.values))
    # The board's own values first, in its order; sorting keeps the paper's order for the others.
    names.sort(key=lambda name: task.metrics.index(name) if name in task.metrics else len(task.metrics))
    cells = [
        [
            escaped(row.name),
            *[_quoted(row.values[name]) if name in row.values else DASH for name in names],
            escaped(row.source),
            escaped(row.notes) or DASH,
        ]
        for row in reported
    ]
    return [
        "### Reported in papers, not measured here",
        "",
        "Quoted as printed. Data, prompts and scoring may differ: these rows are not ranked with the measured ones.",
        "",
        *table(
            ["Model", *[escaped(name) for name in names], "Source", "Notes"],
            cells,
            [False, *[True] * len(names), False, False],
        ),
        "",
    ]
