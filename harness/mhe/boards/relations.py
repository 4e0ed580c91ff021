"""Entrants beside another one, such as students beside their teacher: the difference in quality, the shares of cost.

The difference is paired, both being resampled by the same draws, so that its interval is narrower than those of the
two values let one think.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.boards.markdown import DASH, code, escaped, fixed, table, three_digits
from mhe.boards.results import difference_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.boards.results import Cell, Row
    from mhe.boards.verification import MetricShelf
    from mhe.documents.board import BoardSpec, BoardTask, CostName

OF_A_DEVICE: frozenset[CostName] = frozenset({"samples/s", "latency p50", "peak memory"})
"""Costs of the run, which say nothing of models where device or batch size differ."""


@dataclass(frozen=True, slots=True)
class Beside:
    """One entrant beside the reference."""

    row: Row
    difference: Cell
    """Of the value that ranks."""
    shares: Mapping[CostName, float | None]
    """Cost by the reference's; None where one of the two is not known, or they were measured in different ways."""


@dataclass(frozen=True, slots=True)
class Relation:
    """A reference and those beside it."""

    reference: str
    beside: tuple[Beside, ...] | None
    """In the order of the main table; None where the reference has no entry."""


def relations_of(spec: BoardSpec, task: BoardTask, rows: Sequence[Row], shelf: MetricShelf) -> list[Relation]:
    """What `relative_to` asks for, over one task; without those that nobody with an entry is beside."""
    by_name = {row.entrant.name: row for row in rows}
    found = []
    for name, named in spec.relative_to.items():
        others = [row for row in rows if _is_beside(row, name, named)]
        reference = by_name.get(name)
        if others:
            beside = None if reference is None else tuple(_beside(spec, task, row, reference, shelf) for row in others)
            found.append(Relation(name, beside))
    return found


def _is_beside(row: Row, reference: str, named: Sequence[str]) -> bool:
    if named:
        return row.entrant.name in named
    return row.entrant.name != reference and row.entrant.kind != "baseline"


def _beside(spec: BoardSpec, task: BoardTask, row: Row, reference: Row, shelf: MetricShelf) -> Beside:
    shares = {cost: _share(cost, row, reference) for cost in spec.costs}
    return Beside(row, difference_of(row, reference, task.primary, task, shelf), shares)


def _share(cost: CostName, row: Row, reference: Row) -> float | None:
    own, other = row.costs[cost].value, reference.costs[cost].value
    if own is None or not other or (cost in OF_A_DEVICE and row.devices != reference.devices):
        return None
    return own / other


def relation_lines(spec: BoardSpec, task: BoardTask, relations: Sequence[Relation]) -> list[str]:
    """A table for each reference; nothing where there is none."""
    lines: list[str] = []
    for relation in relations:
        lines += [f"### Relative to {escaped(relation.reference)}", ""]
        if relation.beside is None:
            lines += [f"{code(relation.reference)} has no entry here yet.", ""]
            continue
        cells = [
            [
                escaped(beside.row.entrant.name),
                _signed(beside.difference),
                *[_times(beside.shares[cost]) for cost in spec.costs],
            ]
            for beside in relation.beside
        ]
        head = ["Entrant", escaped(task.primary), *spec.costs]
        lines += [*table(head, cells, [False, *[True] * (len(head) - 1)]), ""]
    if not lines:
        return []
    about = (
        f"{code(task.primary)} less the other's, in brackets the paired 95 % bootstrap interval (no 0 in it: the two "
        "can be told apart, one comparison taken alone); costs divided by the other's. "
        f"{DASH}: not known of one of the two, or not measured on one device with one batch size."
    )
    return [*lines, about, ""]


def _signed(cell: Cell) -> str:
    if cell.value is None:
        return DASH
    text = _plus(cell.value)
    return text if cell.low is None or cell.high is None else f"{text} ({_plus(cell.low)} to {_plus(cell.high)})"


def _plus(value: float) -> str:
    text = fixed(value)
    return f"+{text}" if float(text) > 0 else text


def _times(share: float | None) -> str:
    return DASH if share is None else f"{three_digits(share)} x"
