"""How much each head and each neuron matters: by its weights, by what flows through it, or by the loss.

- `magnitude`: the squared norm of its weights, into it and out of it (Li et al., Pruning Filters for Efficient
  ConvNets, ICLR 2017, for the group of weights that leave together).
- `activation`: the squared norm of its output weights, each weighted by the root mean square of what flows through it
  on calibration samples (the measure of Sun et al., A Simple and Effective Pruning Approach for LLMs (Wanda), ICLR
  2024, summed over a unit).
- `taylor`: how much the loss changes, to first order, when its output is set to zero: the mean over calibration
  samples of |sum of output times gradient| (Michel et al., Are Sixteen Heads Really Better than One?, NeurIPS 2019,
  for heads; Molchanov et al., CVPR 2019, for neurons).

All three add up: what several heads are worth together is taken to be the sum.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

from mhe_compress.blocks import Block, Heads, is_transposed, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from transformers import PreTrainedModel

Importance = Literal["magnitude", "activation", "taylor"]
Scores = dict[str, torch.Tensor]
"""By `key_of` a block: float64 of shape (heads,) or (neurons,) on the CPU, none below 0."""

Batch = dict[str, torch.Tensor]


def measure_importance(
    model: PreTrainedModel, blocks: Sequence[Block], kind: Importance, batches: Iterable[Batch] = ()
) -> Scores:
    """The importance of every unit of these blocks.

    `batches` are single calibration samples with labels, and not read for `magnitude`. The model is left as it was.
    """
    if kind == "magnitude":
        return {key_of(block): _magnitudes(model, block) for block in blocks}
    if kind == "activation":
        layers = {key_of(block): output_of(model, block) for block in blocks}
        seen = mean_squares(model, layers, batches)
        return {key_of(block): _weighted_outputs(model, block, seen[key_of(block)]) for block in blocks}
    return _loss_changes(model, blocks, batches)


def output_of(model: torch.nn.Module, block: Block) -> torch.nn.Module:
    """The layer that leads out of a block; what flows through its units is its input."""
    return model.get_submodule(f"{block.name}.{block.place.output}")


def rows_of(layer: torch.nn.Module) -> torch.Tensor:
    """The weights, of shape (outputs, inputs)."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return weight.detach().T if is_transposed(layer) else weight.detach()


# ---------------------------------------------------------------- by weights


def _magnitudes(model: torch.nn.Module, block: Block) -> torch.Tensor:
    total = _by_unit(_squares(output_of(model, block), 0), block.unit_size)
    if not isinstance(block, Heads):
        for name in block.place.inputs:
            total += _squares(model.get_submodule(f"{block.name}.{name}"), 1)
        return total
    starts: dict[str, int] = {}
    for part, name in enumerate(block.place.projections):
        count = block.heads if part == 0 else block.key_value_heads
        start = starts.get(name, 0)
        starts[name] = start + count * block.size
        squares = _squares(model.get_submodule(f"{block.name}.{name}"), 1)[start : starts[name]]
        by_head = _by_unit(squares, block.size)
        # Heads of a group share their key and value: each is given its part.
        total += by_head if part == 0 else by_head.repeat_interleave(block.group) / block.group
    return total


def _squares(layer: torch.nn.Module, kept: int) -> torch.Tensor:
    """Sums of squared weights over outputs (`kept` 0: one number an input) or over inputs (1: one an output)."""
    return rows_of(layer).float().square().sum(kept, dtype=torch.float64).cpu()


def _by_unit(values: torch.Tensor, size: int) -> torch.Tensor:
    return values.reshape(-1, size).sum(1)


# ---------------------------------------------------------------- by what flows


def mean_squares(
    model: PreTrainedModel, layers: Mapping[str, torch.nn.Module], batches: Iterable[Batch]
) -> dict[str, torch.Tensor]:
    """The mean square of each input of these layers, over all places of all batches: float64 of shape (inputs,).

    Zeros for a layer that nothing ran through.
    """
    sums: dict[str, torch.Tensor] = {}
    places = dict.fromkeys(layers, 0)

    def watch(key: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def look(_layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            flat = given[0].detach().reshape(-1, given[0].shape[-1])
            sums[key] = sums.get(key, 0) + flat.float().square().sum(0, dtype=torch.float64).cpu()
            places[key] += len(flat)

        return look

    handles = [layer.register_forward_pre_hook(watch(key)) for key, layer in layers.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    nothing = {key: torch.zeros(rows_of(layer).shape[1], dtype=torch.float64) for key, layer in layers.items()}
    return {key: sums.get(key, nothing[key]) / max(1, places[key]) for key in layers}


def _weighted_outputs(model: torch.nn.Module, block: Block, seen: torch.Tensor) -> torch.Tensor:
    return _by_unit(_squares(output_of(model, block), 0) * seen, block.unit_size)


# ---------------------------------------------------------------- by the loss


def _loss_changes(model: PreTrainedModel, blocks: Sequence[Block], batches: Iterable[Batch]) -> Scores:
    sums = {key_of(block): torch.zeros(block.units, dtype=torch.float64) for block in blocks}
    needs = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    gates = {key_of(block): torch.ones(block.units, device=_device_of(model, block)) for block in blocks}
    for gate in gates.values():
        gate.requires_grad_()
    samples = 0
    try:
        model.requires_grad_(requires_grad=False)
        with gated(model, blocks, gates), torch.enable_grad():
            for batch in batches:
                samples += 1
                found = torch.autograd.grad(model(**batch).loss, list(gates.values()), allow_unused=True)
                for key, gradient in zip(gates, found, strict=True):
                    if gradient is not None:
                        sums[key] += gradient.abs().double().cpu()
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(needs[name])
    return {key: total / max(1, samples) for key, total in sums.items()}


def _device_of(model: torch.nn.Module, block: Block) -> torch.device:
    return rows_of(output_of(model, block)).device


@contextmanager
def gated(model: torch.nn.Module, blocks: Sequence[Block], gates: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """While it lasts, the output of each unit is multiplied by its gate; blocks without gates are left alone.

    A gate of 0 is what taking the unit out does.
    """

    def gate(values: torch.Tensor, size: int) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], object]:
        def apply(_layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> object:
            spread = values.repeat_interleave(size) if size > 1 else values
            return (given[0] * spread.to(given[0].dtype), *given[1:])

        return apply

    handles = []
    for block in blocks:
        if (values := gates.get(key_of(block))) is not None:
            layer = output_of(model, block)
            handles.append(layer.register_forward_pre_hook(gate(values, block.unit_size)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
