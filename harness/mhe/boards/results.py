"""What a board shows of its entries: values over seeds with intervals, places, and cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.boards.ranking import Contender, places
from mhe.documents.board import USUAL_COSTS
from mhe.statistics import mean_and_std, percentile_interval, resampled_values, unit_sums

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.boards.entries import Entry
    from mhe.boards.verification import MetricShelf
    from mhe.documents.board import BoardTask, CostName, Entrant, MetricPin
    from mhe.documents.run import ModelRecord, ScoreRecord
    from mhe.protocols import FloatArray


@dataclass(frozen=True, slots=True)
class Cell:
    """One value of one entrant, over its seeds."""

    value: float | None
    """Mean over seeds."""
    std: float | None = None
    """Sample standard deviation over seeds; None for one seed."""
    low: float | None = None
    high: float | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One entrant on one task."""

    entrant: Entrant
    entries: tuple[Entry, ...]
    """By seed."""
    place: int | None
    """None where the value that ranks is null."""
    cells: Mapping[str, Cell]
    costs: Mapping[str, Cell]
    devices: tuple[str, ...]
    """Device and batch size of each measurement, distinct and sorted."""


def rows_of(
    task: BoardTask,
    entrants: Sequence[Entrant],
    entries: Sequence[Entry],
    shelf: MetricShelf,
    costs: Sequence[CostName] = USUAL_COSTS,
) -> list[Row]:
    """The table of one task, best first; entrants without an entry on it are left out.

    Raises `UserError` and its kin where a metric is not installed here: ranks need it.
    """
    of_entrant = {
        entrant.name: sorted(
            (e for e in entries if (e.entrant, e.task) == (entrant.name, task.name)), key=lambda entry: entry.seed
        )
        for entrant in entrants
    }
    present = [entrant for entrant in entrants if of_entrant[entrant.name]]
    cells = {
        entrant.name: {name: _cell(name, task, of_entrant[entrant.name], shelf) for name in task.metrics}
        for entrant in present
    }
    contenders = [
        _contender(entrant.name, task, of_entrant[entrant.name], cells[entrant.name][task.primary])
        for entrant in present
    ]
    found = _places(task, contenders, of_entrant, shelf)
    rows = [
        Row(
            entrant=entrant,
            entries=tuple(of_entrant[entrant.name]),
            place=found.get(entrant.name),
            cells=cells[entrant.name],
            costs={cost: _cost(cost, of_entrant[entrant.name]) for cost in costs},
            devices=tuple(sorted({_device(entry) for entry in of_entrant[entrant.name]})),
        )
        for entrant in present
    ]
    sign = {True: -1.0, False: 1.0, None: 0.0}[_is_higher_better(task, of_entrant)]
    return sorted(rows, key=lambda row: _sort_key(row, task.primary, sign))


def _sort_key(row: Row, primary: str, sign: float) -> tuple[bool, int, float, str]:
    value = row.cells[primary].value
    return row.place is None, row.place or 0, sign * (value or 0.0), row.entrant.name


def score_of(entry: Entry, task: BoardTask, value: str) -> ScoreRecord | None:
    """The score of an entry under the task's profile."""
    wanted = _pin(task, value).metric, task.profile
    metric = next((m for m in entry.record.metrics if (m.metric, m.profile) == wanted), None)
    return next((s for s in metric.values if s.name == value), None) if metric else None


def _pin(task: BoardTask, value: str) -> MetricPin:
    return next(pin for pin in task.pins if value in pin.values)


def _is_higher_better(task: BoardTask, entries: Mapping[str, Sequence[Entry]]) -> bool | None:
    scores = (score_of(entry, task, task.primary) for found in entries.values() for entry in found)
    return next((score.higher_is_better for score in scores if score is not None), True)


def _cell(value: str, task: BoardTask, entries: Sequence[Entry], shelf: MetricShelf) -> Cell:
    scores = [score_of(entry, task, value) for entry in entries]
    known = [s for s in scores if s is not None and s.value is not None]
    if len(known) < len(entries) or not known:
        reason = next((s.reason for s in scores if s is not None and s.reason), "not computed")
        return Cell(None, reason=reason)
    mean, std = mean_and_std([s.value for s in known if s.value is not None])
    if len(entries) == 1:
        return Cell(mean, None, known[0].low, known[0].high)
    resampled = _resampled_over_seeds(value, task, entries, shelf)
    low, high = (percentile_interval(resampled) if resampled is not None else None) or (None, None)
    return Cell(mean, std, low, high)


def difference_of(row: Row, other: Row, value: str, task: BoardTask, shelf: MetricShelf) -> Cell:
    """The mean of `row` less that of `other`, with the paired 95 % interval: both under the same draws of the units."""
    left, right = row.cells[value].value, other.cells[value].value
    if left is None or right is None:
        return Cell(None, reason=row.cells[value].reason or other.cells[value].reason)
    samples = [_resampled_over_seeds(value, task, each.entries, shelf) for each in (row, other)]
    paired = None if samples[0] is None or samples[1] is None else samples[0] - samples[1]
    low, high = (percentile_interval(paired) if paired is not None else None) or (None, None)
    return Cell(left - right, None, low, high)


def _resampled_over_seeds(
    value: str, task: BoardTask, entries: Sequence[Entry], shelf: MetricShelf
) -> FloatArray | None:
    """The mean over seeds in each resample of the units, the same draws for every seed; None for a single unit."""
    import numpy as np

    samples: list[FloatArray] = []
    for entry in entries:
        block = entry.scores.of(_pin(task, value).metric, task.profile)
        assert block is not None, "entries are checked before they are shown"
        sums = unit_sums(block.array(), entry.scores.samples.units)
        if len(sums) < 2:
            return None
        aggregate = shelf.of_block(block).aggregate
        samples.append(resampled_values(aggregate, sums, shelf.weights(len(sums)))[value])
    means: FloatArray = np.mean(samples, axis=0)
    return means


# ------------------------------------------------------------ places


def _contender(name: str, task: BoardTask, entries: Sequence[Entry], cell: Cell) -> Contender:
    """Statistics averaged over seeds, so that every sample has the same weight however many seeds ran."""
    import numpy as np

    metric = _pin(task, task.primary).metric
    order = entries[0].scores.samples.ids
    stacked = []
    for entry in entries:
        block = entry.scores.of(metric, task.profile)
        assert block is not None, "entries are checked before they are shown"
        place = {sample: index for index, sample in enumerate(entry.scores.samples.ids)}
        stacked.append(block.array()[[place[sample] for sample in order]])
    return Contender(name, cell.value, order, entries[0].scores.samples.units, np.mean(stacked, axis=0))


def _places(
    task: BoardTask, contenders: Sequence[Contender], entries: Mapping[str, Sequence[Entry]], shelf: MetricShelf
) -> dict[str, int]:
    if not contenders:
        return {}
    block = entries[contenders[0].name][0].scores.of(_pin(task, task.primary).metric, task.profile)
    assert block is not None, "entries are checked before they are shown"
    aggregate = shelf.of_block(block).aggregate
    return places(contenders, aggregate, task.primary, higher_is_better=_is_higher_better(task, entries))


# ------------------------------------------------------------ cost


def _cost(cost: CostName, entries: Sequence[Entry]) -> Cell:
    found = [_measured(cost, entry) for entry in entries]
    known = [value for value, _ in found if value is not None]
    if not known:
        return Cell(None, reason=next((reason for _, reason in found if reason), None))
    return Cell(*mean_and_std(known))


def _measured(cost: CostName, entry: Entry) -> tuple[float | None, str | None]:
    model, efficiency = entry.record.model, entry.record.efficiency
    if cost in {"trained share", "training memory", "training time"}:
        return _measured_in_training(cost, model)
    if cost == "parameters":
        return model.parameters, "the backend does not tell"
    if cost == "bytes":
        return model.bytes_on_disk, "no files on disk"
    if cost == "bits per weight":
        return model.bits_per_weight, "the backend does not tell"
    field = {"samples/s": "samples_per_second", "latency p50": "latency_p50"}.get(cost)
    if field is None:
        field = "peak_host_bytes" if efficiency.peak_device_bytes is None else "peak_device_bytes"
    value: float | None = getattr(efficiency, field)
    return value, efficiency.reasons.get(field, "not measured")


def _measured_in_training(cost: CostName, model: ModelRecord) -> tuple[float | None, str | None]:
    training = model.training
    if training is None:
        return None, "the run does not tell" if model.lineage else "no checkpoint of a recipe"
    if cost == "trained share":
        return (training.trainable_parameters / training.parameters if training.parameters else None), "not told"
    if cost == "training time":
        return training.seconds, None
    peak = training.peak_host_bytes if training.peak_device_bytes is None else training.peak_device_bytes
    return peak, "not measured"


def _device(entry: Entry) -> str:
    efficiency = entry.record.efficiency
    device = efficiency.device or entry.record.backend.device or "unknown device"
    return f"{device}, batch {efficiency.batch_size}" if efficiency.batch_size is not None else device
