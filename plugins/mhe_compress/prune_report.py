"""What a pruning says of itself: numbers before and after, how it is saved, what it needs, what it does not do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_compress.blocks import key_of
from mhe_compress.prune_choice import describe_counts
from mhe_hf import module_parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from transformers import PreTrainedModel

    from mhe import Architecture
    from mhe_compress.prune_expression import Expression
    from mhe_compress.prune_options import PruneOptions
    from mhe_compress.prune_plan import Plan


def parameters_by_module(model: torch.nn.Module, architecture: Architecture) -> dict[str, int]:
    """Parameters of vision, fusion and language, tied ones once."""
    return module_parameters(model, architecture)


def memory_of(model: PreTrainedModel) -> float:
    """Bytes of the weights as they are published; what is left of them is cut from these one layer at a time."""
    width = getattr(model.config.dtype, "itemsize", 4)
    return float(width * sum(parameter.numel() for parameter in model.parameters()))


def notes_of(
    plan: Plan, options: PruneOptions, before: Mapping[str, int], after: Mapping[str, int], expression: Expression
) -> tuple[str, ...]:
    """Sentences for the card, the terminal and `--dry-run`."""
    ways = (options.scan, options.parameters, options.latency)
    asked = {} if any(way is not None for way in ways) else options.ratios()
    was, left = sum(before.values()), sum(after.values())
    chosen = (
        "by magnitude" if options.importance == "magnitude" else f"by {options.importance} on {options.calibration}"
    )
    chosen += "" if options.importance == "magnitude" else " calibration samples at most"
    lines = [
        *describe_counts(plan.blocks, plan.counts, asked),
        f"which ones: {chosen}",
        *plan.notes,
        f"parameters: {was:,} to {left:,} ({1 - left / was:.2%} taken out)",
        *[f"{name}: {total:,} to {after[name]:,} parameters" for name, total in before.items() if after[name] != total],
    ]
    if options.only_plain:
        lines += _plainness(plan)
    kind = expression.class_name
    if expression.is_plain:
        lines.append(f"saved as {kind}, which transformers loads without this package")
    else:
        lines.append(f"saved as mhe_compress.{kind}, which only this package loads: {'; '.join(expression.reasons)}")
    return tuple(lines)


def _plainness(plan: Plan) -> list[str]:
    """What `only_plain` saved of what it set out to, and what stays as zeros."""
    if not plan.has_zeros:
        return ["only_plain: a plain configuration can say all of it, and nothing stays as zeros"]
    lines = []
    for kind in ("heads", "neurons"):
        own = [block for block in plan.blocks if block.kind == kind]
        total = sum(block.units for block in own)
        gone = total - sum(plan.saved[key_of(block)].units for block in own)
        zeros = total - gone - sum(plan.counts[key_of(block)].units for block in own)
        if own:
            what = f"{zeros:,} stay as zeros, which save neither memory nor time" if zeros else "none stay as zeros"
            lines.append(f"only_plain: of {total:,} {kind} {gone:,} left the matrices, and {what}")
    return lines


def notes_of_sparsity(options: PruneOptions, zeroed: int | None, total: int | None, samples: int) -> tuple[str, ...]:
    """Sentences for the patterns that shrink nothing."""
    share = "2 of every 4 weights" if options.pattern == "2:4" else f"{options.sparsity:.0%} of the weights"
    counted = "" if zeroed is None or total is None else f", {zeroed:,} of {total:,}"
    return (
        f"{options.pattern} by Wanda on {samples} calibration samples: {share} of the chosen layers are zero{counted}",
        "not faster and not smaller: the zeros are stored and multiplied as any other number"
        + (
            "; only kernels for 2:4, which transformers and vLLM do not use here, could be"
            if options.pattern == "2:4"
            else ""
        ),
        "heads and neurons stay; the ratios say which layers are looked at (above 0)",
    )
