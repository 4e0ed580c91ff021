"""From options and scores to a plan: what each block keeps, and what of it stays as zeros for the sake of plainness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe import UserError
from mhe_compress.blocks import Block, Heads, Neurons, cut_heads, cut_neurons, key_of, zero_others
from mhe_compress.prune_budget import (
    counts_within,
    removals_of,
    removed_parameters,
    token_seconds,
    unit_parameters,
    unit_seconds,
)
from mhe_compress.prune_choice import Count, Kept, choose_units, legal_count
from mhe_compress.prune_expression import can_have_fewer_heads, part_of
from mhe_compress.scan_results import ratios_by_block

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedConfig, PreTrainedModel

    from mhe_compress.importance import Scores
    from mhe_compress.prune_options import PruneOptions


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to each block, by `key_of` it."""

    blocks: tuple[Block, ...]
    counts: Mapping[str, Count]
    """What does something afterwards."""
    saved: Mapping[str, Count]
    """What is there afterwards; more than `counts` where zeros stay."""
    kept: Mapping[str, Kept]
    """The units of `counts`; empty where no scores were given."""
    saved_units: Mapping[str, Kept]
    notes: tuple[str, ...] = ()

    @property
    def has_zeros(self) -> bool:
        """Whether some units stay as zeros."""
        return any(self.counts[key] != self.saved[key] for key in self.counts)


def plan_pruning(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    options: PruneOptions,
    fingerprint: str,
    scores: Scores | None,
    timings: Path | None,
) -> Plan:
    """The plan for these blocks. Without scores only the numbers, which for a budget are those of an even ratio.

    `timings` is where measured seconds are kept. Raises `UserError` for ratios that leave nothing, a budget that cannot
    be kept and a scan of another model.
    """
    counts, notes = _counts(model, blocks, options, fingerprint, scores, timings)
    saved = plain_counts(model.config, blocks, counts) if options.only_plain else counts
    kept: dict[str, Kept] = {}
    units: dict[str, Kept] = {}
    for block in blocks:
        key = key_of(block)
        if scores is not None:
            kept[key] = choose_units(block, counts[key], scores[key])
            # Of one order of scores the larger choice holds the smaller one.
            units[key] = choose_units(block, saved[key], scores[key])
    return Plan(tuple(blocks), counts, saved, kept, units, notes)


def apply_plan(model: PreTrainedModel, plan: Plan) -> None:
    """Set to zero and cut, in place. Without chosen units the first ones stay, for their shape."""
    for block in plan.blocks:
        key = key_of(block)
        count = plan.saved[key]
        if key in plan.kept and plan.counts[key] != count:
            zero_others(model, block, plan.kept[key].units, plan.kept[key].key_value_heads)
        if key in plan.saved_units:
            units = plan.saved_units[key]
        else:
            units = Kept(tuple(range(count.units)), tuple(range(count.key_value_heads)))
        if isinstance(block, Neurons):
            cut_neurons(model, block, units.units)
        else:
            cut_heads(model, block, units.units, units.key_value_heads)


# ---------------------------------------------------------------- numbers


def _counts(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    options: PruneOptions,
    fingerprint: str,
    scores: Scores | None,
    timings: Path | None,
) -> tuple[dict[str, Count], tuple[str, ...]]:
    if options.parameters is not None or options.latency is not None:
        if scores is None:
            return _even_counts(model, blocks, options)
        return _budget_counts(model, blocks, options, scores, timings)
    if options.scan is not None:
        return _scan_counts(blocks, options, fingerprint)
    ratios = options.ratios()
    return {
        key_of(block): legal_count(
            block, ratios[f"{block.place.module} {block.kind}"], options.groups, options.multiple
        )
        for block in blocks
    }, ()


def _scan_counts(
    blocks: Sequence[Block], options: PruneOptions, fingerprint: str
) -> tuple[dict[str, Count], tuple[str, ...]]:
    scan = options.scan
    assert scan is not None
    ratios = options.ratios()
    by_block: dict[str, float] = {}
    for module in ("language", "vision"):
        for kind in ("heads", "neurons"):
            by_block |= ratios_by_block(scan, module, kind, ratios[f"{module} {kind}"], options.scan_spread)
    units = {block.key: block.units for block in scan.blocks}
    lacking = [key_of(block) for block in blocks if units.get(key_of(block)) != block.units]
    if lacking:
        raise UserError(
            f"the scan of {scan.model} does not fit this model: {', '.join(lacking[:3])}"
            f"{', …' if len(lacking) > 3 else ''} were not scanned, or had another size. "
            "Scan this one: mhe scan-layers MODEL --task TASK."
        )
    counts = {
        key_of(block): legal_count(block, by_block[key_of(block)], options.groups, options.multiple) for block in blocks
    }
    note = f"ratios by layer from the scan of {scan.model} on {scan.samples} samples of {scan.task}"
    others = () if scan.fingerprint == fingerprint else ("the scan was made of other weights than these",)
    return counts, (note, *others)


def _budget_counts(
    model: PreTrainedModel, blocks: Sequence[Block], options: PruneOptions, scores: Scores, timings: Path | None
) -> tuple[dict[str, Count], tuple[str, ...]]:
    """Ranked together under the budget."""
    costs: dict[str, tuple[float, float]]
    if options.latency is not None:
        assert timings is not None
        costs = unit_seconds(model, blocks, timings)
        whole = token_seconds(model, costs, blocks)
        to_save = whole * (1 - options.latency)
        note = (
            f"estimated from timings on {model.device}: {whole:.3g} s a token at batch 1 before, "
            f"{whole * options.latency:.3g} s asked for"
        )
    else:
        costs = {key_of(block): unit_parameters(model, block) for block in blocks}
        to_save = _to_save(model, options)
        note = f"a budget of {_total(model) - to_save:,.0f} parameters; heads and neurons of all layers ranked together"
    removals = {
        key_of(block): removals_of(
            block,
            scores[key_of(block)],
            costs[key_of(block)],
            whole_groups=options.groups == "whole",
            multiple=options.multiple,
            raw=options.importance == "taylor",
        )
        for block in blocks
    }
    return counts_within(blocks, removals, to_save, options.most), (note,)


def _even_counts(
    model: PreTrainedModel, blocks: Sequence[Block], options: PruneOptions
) -> tuple[dict[str, Count], tuple[str, ...]]:
    """About what a budget leaves, where the weights that decide are not at hand: an even ratio that will do."""
    notes = ("which layers give how much is known with the weights only; shown is an even ratio within the budget",)
    for percent in range(1, 100):
        counts = {
            key_of(b): legal_count(b, min(percent / 100, options.most), options.groups, options.multiple)
            for b in blocks
        }
        if options.latency is not None:
            weights = sum(unit_parameters(model, block)[0] * block.units for block in blocks)
            if removed_parameters(model, blocks, counts) >= weights * (1 - options.latency):
                return counts, notes
        elif removed_parameters(model, blocks, counts) >= _to_save(model, options):
            return counts, notes
    raise UserError(
        f"the budget cannot be kept: with at most {options.most:.0%} of each layer fewer parameters leave than that. "
        "Give a larger budget, or a larger `most`."
    )


def _total(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _to_save(model: PreTrainedModel, options: PruneOptions) -> float:
    assert options.parameters is not None
    total = _total(model)
    left = options.parameters * total if options.parameters < 1 else options.parameters
    if left >= total:
        raise UserError(f"the model has {total:,} parameters already, no more than the budget of {left:,.0f}.")
    return total - left


# ---------------------------------------------------------------- plainness


def plain_counts(
    configuration: PreTrainedConfig, blocks: Sequence[Block], counts: Mapping[str, Count]
) -> dict[str, Count]:
    """The smallest counts at least as large as these that a configuration of the library can say."""
    saved = dict(counts)
    for path in dict.fromkeys(block.place.configuration for block in blocks):
        heads = [b for b in blocks if b.place.configuration == path and isinstance(b, Heads)]
        neurons = [b for b in blocks if b.place.configuration == path and isinstance(b, Neurons)]
        if heads:
            saved |= _plain_heads(configuration, path, heads, counts)
        if neurons:
            width = max(counts[key_of(block)].units for block in neurons)
            if neurons[0].place.width.endswith("_ratio"):
                states = int(part_of(configuration, path).embed_dim)
                width = min(neurons[0].width, -(-width // states) * states)
            saved |= {key_of(block): Count(width) for block in neurons}
    return saved


def _plain_heads(
    configuration: PreTrainedConfig, path: str, blocks: Sequence[Heads], counts: Mapping[str, Count]
) -> dict[str, Count]:
    whole = {key_of(block): Count(block.heads, block.key_value_heads) for block in blocks}
    if not can_have_fewer_heads(configuration, path):
        return whole
    own = [counts[key_of(block)] for block in blocks]
    largest = max(own, key=lambda count: (count.units, count.key_value_heads))
    # Where some layers lost whole groups and others not, only all of them hold both.
    if any(count.key_value_heads != blocks[0].key_value_heads for count in own) and blocks[0].group > 1:
        shares = {count.units // count.key_value_heads for count in own}
        if shares != {blocks[0].group}:
            return whole
    return dict.fromkeys(whole, largest)
