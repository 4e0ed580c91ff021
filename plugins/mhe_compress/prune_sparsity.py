"""Single weights set to zero: Wanda, unstructured or 2 of 4. For comparison with what really shrinks.

Sun et al., A Simple and Effective Pruning Approach for Large Language Models (ICLR 2024): of the weights that lead to
one output those with the smallest |weight| x norm of the input leave. The norms are those of the whole model on the
calibration samples, measured once; the paper measures them layer after layer behind what is pruned already.

Nothing shrinks: the zeros are stored and multiplied as any other number. A GPU with sparse tensor cores can be faster
with 2 of 4, in a library that uses them; transformers and vLLM do not do so for such a checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from mhe_compress.blocks import Block, Heads
from mhe_compress.importance import Batch, mean_squares, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedModel

Pattern = Literal["unstructured", "2:4"]


def zero_weights(
    model: PreTrainedModel, blocks: Sequence[Block], pattern: Pattern, sparsity: float, batches: Iterable[Batch]
) -> tuple[int, int]:
    """Set weights of the blocks' layers to zero, in place: how many, of how many.

    `sparsity` is the share of each output's weights; `2:4` takes two of every four neighbours whatever it says, and
    leaves the rest of a row that is no multiple of four alone.
    """
    layers = {name: model.get_submodule(name) for block in blocks for name in layer_names(block)}
    seen = mean_squares(model, layers, batches)
    zeroed = total = 0
    for name, layer in layers.items():
        weight = rows_of(layer)
        scores = weight.float().abs() * seen[name].sqrt().float().to(weight.device)
        out = weakest_of_four(scores) if pattern == "2:4" else weakest_of_row(scores, sparsity)
        # `rows_of` is a view, transposed where the layer keeps inputs in rows.
        weight.masked_fill_(out, 0)
        zeroed += int(out.sum())
        total += weight.numel()
    return zeroed, total


def layer_names(block: Block) -> list[str]:
    """The linear layers of a block."""
    names = block.place.projections if isinstance(block, Heads) else block.place.inputs
    return [f"{block.name}.{name}" for name in dict.fromkeys((*names, block.place.output))]


def weakest_of_row(scores: torch.Tensor, sparsity: float) -> torch.Tensor:
    """Of each row the share with the lowest scores: booleans of the same shape."""
    number = round(scores.shape[1] * sparsity)
    found = torch.zeros_like(scores, dtype=torch.bool)
    lowest = scores.sort(dim=1, stable=True).indices[:, :number]
    return found.scatter_(1, lowest, torch.ones_like(lowest, dtype=torch.bool))


def weakest_of_four(scores: torch.Tensor) -> torch.Tensor:
    """Of every four neighbours in a row the two lowest: booleans of the same shape."""
    rows, columns = scores.shape
    whole = columns - columns % 4
    found = torch.zeros_like(scores, dtype=torch.bool)
    groups = scores[:, :whole].reshape(rows, -1, 4)
    lowest = groups.sort(dim=2, stable=True).indices[..., :2]
    chosen = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, lowest, torch.ones_like(lowest, dtype=torch.bool))
    found[:, :whole] = chosen.reshape(rows, whole)
    return found
