"""Which units leave where a budget is set for the whole model instead of a ratio for each layer.

All units of all layers are ranked together by what they are worth for what they cost, and the cheapest leave until the
budget holds. `taylor` scores are changes of one loss and compared as they are; the others have a scale of their own in
each block, so that a unit counts by its score relative to its block's mean. Cost is parameters or, for a budget of
time, measured seconds of a token.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mhe import UserError
from mhe_compress.blocks import Block, Heads, key_of, layer_size
from mhe_compress.prune_choice import Count, step_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

TIMED_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class Removal:
    """A smallest legal removal from one block."""

    key: str
    worth: float
    """What is lost, in a measure that all blocks share."""
    units: int
    key_value_heads: int
    cost: float
    """What is saved: parameters, or seconds a token."""


def unit_parameters(model: torch.nn.Module, block: Block) -> tuple[int, int]:
    """Parameters that leave with one query head or neuron, and with one key and value head; biases included."""

    def row(name: str) -> int:
        layer = model.get_submodule(f"{block.name}.{name}")
        return layer_size(layer)[1] + int(isinstance(layer.bias, torch.Tensor))

    out = layer_size(model.get_submodule(f"{block.name}.{block.place.output}"))[0]
    if isinstance(block, Heads):
        query, key, value = block.place.projections
        return block.size * (row(query) + out), block.size * (row(key) + row(value))
    return sum(row(name) for name in block.place.inputs) + out, 0


def removed_parameters(model: torch.nn.Module, blocks: Sequence[Block], counts: Mapping[str, Count]) -> int:
    """Parameters that leave with these counts, computed from shapes."""
    total = 0
    for block in blocks:
        unit, own = unit_parameters(model, block)
        count = counts[key_of(block)]
        total += unit * (block.units - count.units)
        if isinstance(block, Heads):
            total += own * (block.key_value_heads - count.key_value_heads)
    return total


def removals_of(
    block: Block,
    scores: torch.Tensor,
    costs: tuple[float, float],
    *,
    whole_groups: bool,
    multiple: int | None,
    raw: bool,
) -> list[Removal]:
    """Every removal from a block, the least important first; at least one head of each group or one step stays.

    `costs` are of one query head or neuron, and of one key and value head. `raw` scores are comparable between blocks.
    """
    worth = scores if raw else scores / scores.mean().clamp_min(1e-30) * (costs[0] + costs[1])
    if isinstance(block, Heads):
        grouped = worth.reshape(block.key_value_heads, block.group)
        if block.group == 1 or whole_groups:
            values = grouped.sum(1).sort().values.tolist()[:-1]
            step, own = block.group, 1
        else:
            values = grouped.sort(1).values.sum(0).tolist()[:-1]
            step, own = block.key_value_heads, 0
    else:
        step, own = step_of(block.width, multiple), 0
        # What is left over where the width is no multiple goes first, so that multiples are left.
        spare = block.width % step
        ordered = worth.sort().values
        firsts = [ordered[:spare].sum().item()] if spare else []
        whole = ordered[spare:].reshape(-1, step).sum(1).tolist()[:-1]
        first = [Removal(key_of(block), value, spare, 0, spare * costs[0]) for value in firsts]
        return first + [Removal(key_of(block), value, step, 0, step * costs[0]) for value in whole]
    return [Removal(key_of(block), value, step, own, step * costs[0] + own * costs[1]) for value in values]


def counts_within(
    blocks: Sequence[Block], removals: Mapping[str, Sequence[Removal]], to_save: float, most: float
) -> dict[str, Count]:
    """What each block keeps once enough is saved; no block loses more than the share `most` of its units.

    Raises `UserError` where that is not to be had.
    """
    left = {key_of(block): [block.units, block.key_value_heads if isinstance(block, Heads) else 0] for block in blocks}
    floors = {key_of(block): block.units * (1 - most) for block in blocks}
    queue = sorted(
        (removal.worth / removal.cost, key, place) for key, own in removals.items() for place, removal in enumerate(own)
    )
    saved, stopped, taken = 0.0, set[str](), dict.fromkeys(left, 0)
    for _, key, place in queue:
        if saved >= to_save:
            break
        removal = removals[key][place]
        # The order within a block must hold, also where spare neurons make a first step of another size.
        if key in stopped or place != taken[key] or left[key][0] - removal.units < floors[key]:
            stopped.add(key)
            continue
        taken[key] += 1
        left[key][0] -= removal.units
        left[key][1] -= removal.key_value_heads
        saved += removal.cost
    if saved < to_save:
        share = saved / to_save
        raise UserError(
            f"the budget asks to save more than can leave: with at most {most:.0%} of each layer {share:.1%} of it is "
            "reached. Give a larger budget, or a larger `most`."
        )
    return {key: Count(units, own) for key, (units, own) in left.items()}


# ---------------------------------------------------------------- seconds


def unit_seconds(model: torch.nn.Module, blocks: Sequence[Block], path: Path) -> dict[str, tuple[float, float]]:
    """Seconds that one unit of each block takes for a token at batch 1, and one key and value head.

    The layers of one shape are timed once, on this device, whole and at half their units; the slope counts. Kept in
    `path`, so that an interrupted step goes on with the numbers it began with.
    """
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {key: (float(unit), float(own)) for key, (unit, own) in kept.items()}
    by_shape: dict[tuple[object, ...], float] = {}
    found: dict[str, tuple[float, float]] = {}
    for block in blocks:
        parameters, own = unit_parameters(model, block)
        weight = model.get_submodule(f"{block.name}.{block.place.output}").weight
        assert isinstance(weight, torch.Tensor)
        whole = parameters * block.units + (own * block.key_value_heads if isinstance(block, Heads) else 0)
        out = layer_size(model.get_submodule(f"{block.name}.{block.place.output}"))[0]
        shape = (whole // out, out, str(weight.dtype), str(weight.device))
        if shape not in by_shape:
            by_shape[shape] = _slope(whole // out, out, weight)
        found[key_of(block)] = (by_shape[shape] * parameters, by_shape[shape] * own)
    draft = path.with_suffix(".tmp")
    draft.write_text(json.dumps(found) + "\n", encoding="utf-8")
    draft.replace(path)
    return found


def _slope(rows: int, columns: int, like: torch.Tensor) -> float:
    """Seconds a weight: of a matrix that holds as many as the block, against half of it."""
    with torch.no_grad():
        matrix = torch.ones(rows, columns, dtype=like.dtype, device=like.device)
        states = torch.ones(1, columns, dtype=like.dtype, device=like.device)
        whole, half = (_seconds(states, part) for part in (matrix, matrix[: max(1, rows // 2)].contiguous()))
    return max(whole - half, 1e-12) / (columns * (rows - max(1, rows // 2)) or 1)


def _seconds(states: torch.Tensor, matrix: torch.Tensor) -> float:
    times = []
    for _ in range(TIMED_ROUNDS):
        started = time.perf_counter()
        torch.nn.functional.linear(states, matrix)
        if matrix.device.type == "cuda":
            torch.cuda.synchronize(matrix.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[TIMED_ROUNDS // 3 :])


def token_seconds(model: PreTrainedModel, seconds: Mapping[str, tuple[float, float]], blocks: Sequence[Block]) -> float:
    """Estimated seconds of a token: the timed blocks, and all other weights of the language model at their rate."""
    timed = {
        key_of(block): seconds[key_of(block)][0] * block.units
        + (seconds[key_of(block)][1] * block.key_value_heads if isinstance(block, Heads) else 0)
        for block in blocks
    }
    weights = sum(
        unit_parameters(model, block)[0] * block.units
        + (unit_parameters(model, block)[1] * block.key_value_heads if isinstance(block, Heads) else 0)
        for block in blocks
    )
    head = model.get_output_embeddings()
    rows = None if head is None else head.weight
    others = rows.numel() if isinstance(rows, torch.Tensor) else 0
    return sum(timed.values()) * (1 + others / max(1, weights))
