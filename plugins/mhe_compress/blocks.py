"""Blocks that can be made smaller: an attention with its heads, a feed-forward network with its neurons.

A block is found by the table of architectures, measured by its weights, and cut by taking rows out of the layers that
lead in and columns out of the one that leads out. What is left computes what the whole block would with the outputs
of the missing heads or neurons set to zero.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from mhe import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel

    from mhe import Architecture, HeadsPlace, NeuronsPlace

_HEAD_COUNTS = ("num_heads", "num_attention_heads")
_WIDTHS = ("split_size", "all_head_size")
"""Attributes that some attention classes keep for heads times head size."""


@dataclass(frozen=True, slots=True)
class Heads:
    """An attention of a model, with the numbers that its weights have."""

    name: str
    """Dotted name in the model."""
    place: HeadsPlace
    heads: int
    key_value_heads: int
    size: int
    """Of a head."""

    kind: ClassVar[Literal["heads"]] = "heads"

    @property
    def group(self) -> int:
        """Query heads that share one key and value."""
        return self.heads // self.key_value_heads

    @property
    def units(self) -> int:
        """Things that can be taken out one by one."""
        return self.heads

    @property
    def unit_size(self) -> int:
        """Neighbouring inputs of the output layer that belong to one head."""
        return self.size


@dataclass(frozen=True, slots=True)
class Neurons:
    """A feed-forward network of a model."""

    name: str
    place: NeuronsPlace
    width: int

    kind: ClassVar[Literal["neurons"]] = "neurons"

    @property
    def units(self) -> int:
        """Things that can be taken out one by one."""
        return self.width

    @property
    def unit_size(self) -> int:
        """Inputs of the output layer that belong to one neuron."""
        return 1


Block = Heads | Neurons


def find_blocks(model: torch.nn.Module, architecture: Architecture) -> list[Block]:
    """Every attention and feed-forward network of the table that this model has, in the model's order.

    Raises `UserError` where the table has no places for the model's type, or the model has none of them.
    """
    if not architecture.heads and not architecture.neurons:
        raise UserError(
            f"where heads and neurons live in models of type {architecture.model_type!r} is not known, so they cannot "
            "be pruned. A plugin says it with the fields `heads` and `neurons` of register_architectures()."
        )
    modules = dict(model.named_modules())
    found: list[Block] = []
    for name in modules:
        found += [
            _heads_at(modules, name, place)
            for place in architecture.heads
            if _fits(name, place.path) and f"{name}.{place.output}" in modules
        ]
        found += [
            Neurons(name, place, layer_size(modules[f"{name}.{place.output}"])[1])
            for place in architecture.neurons
            if _fits(name, place.path) and f"{name}.{place.output}" in modules
        ]
    if not found:
        raise UserError(
            f"this {architecture.model_type} model has none of the attention and feed-forward layers that are known of "
            "its type (other encoders or decoders than usual), so they cannot be pruned."
        )
    return found


def _fits(name: str, path: str) -> bool:
    names, parts = name.split("."), path.split(".")
    return len(names) == len(parts) and all(p in ("*", n) for p, n in zip(parts, names, strict=True))


def _heads_at(modules: Mapping[str, torch.nn.Module], name: str, place: HeadsPlace) -> Heads:
    core = _core(modules, name, place)
    size = int(getattr(core, "head_dim", None) or core.attention_head_size)  # type: ignore[arg-type]
    heads = layer_size(modules[f"{name}.{place.output}"])[1] // size
    key = place.projections[1]
    shares = place.projections.count(key)
    rows = layer_size(modules[f"{name}.{key}"])[0]
    return Heads(name, place, heads, heads if shares > 1 else rows // size, size)


def _core(modules: Mapping[str, torch.nn.Module], name: str, place: HeadsPlace) -> torch.nn.Module:
    """What holds the counts of heads: the module itself, or the one inside it that the query lies in."""
    return modules[f"{name}.{place.projections[0]}".rpartition(".")[0]]


def layer_size(layer: torch.nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    rows, columns = weight.shape
    return (columns, rows) if is_transposed(layer) else (rows, columns)


def is_transposed(layer: torch.nn.Module) -> bool:
    """GPT-2's `Conv1D` keeps inputs in rows."""
    return type(layer).__name__ == "Conv1D"


# ---------------------------------------------------------------- cutting


def cut_heads(model: torch.nn.Module, block: Heads, query: Sequence[int], key_value: Sequence[int]) -> None:
    """Keep these query heads and these heads of key and value, in place. The query heads left must share evenly."""
    assert query
    assert key_value
    assert len(query) % len(key_value) == 0
    for name, rows in head_rows(block, query, key_value).items():
        _replace(model, f"{block.name}.{name}", rows=rows)
    _replace(model, f"{block.name}.{block.place.output}", columns=_spread(query, block.size))
    core = _core(dict(model.named_modules()), block.name, block.place)
    _set_counts(core, len(query), len(key_value), block.size)


def head_rows(block: Heads, query: Sequence[int], key_value: Sequence[int]) -> dict[str, torch.Tensor]:
    """Rows of each projection that make these heads, by the projection's name."""
    rows: dict[str, list[torch.Tensor]] = {}
    starts: Counter[str] = Counter()
    for part, name in enumerate(block.place.projections):
        heads, count = (key_value, block.key_value_heads) if part else (query, block.heads)
        rows.setdefault(name, []).append(_spread(heads, block.size) + starts[name])
        starts[name] += count * block.size
    return {name: torch.cat(parts) for name, parts in rows.items()}


def cut_neurons(model: torch.nn.Module, block: Neurons, kept: Sequence[int]) -> None:
    """Keep these neurons, in place."""
    assert kept
    index = torch.tensor(list(kept))
    for name in block.place.inputs:
        _replace(model, f"{block.name}.{name}", rows=index)
    _replace(model, f"{block.name}.{block.place.output}", columns=index)


def zero_others(model: torch.nn.Module, block: Block, kept: Sequence[int], key_value: Sequence[int] = ()) -> None:
    """Set the weights of all heads or neurons but these to zero, in place: they stay, and do nothing."""
    if isinstance(block, Heads):
        rows = head_rows(block, kept, key_value)
        columns = _spread(kept, block.size)
    else:
        columns = torch.tensor(list(kept))
        rows = dict.fromkeys(block.place.inputs, columns)
    with torch.no_grad():
        for name, index in rows.items():
            layer = model.get_submodule(f"{block.name}.{name}")
            for values, axis in ((layer.weight, 1 if is_transposed(layer) else 0), (layer.bias, 0)):
                if isinstance(values, torch.Tensor):
                    _zero_all_but(values, axis, index)
        layer = model.get_submodule(f"{block.name}.{block.place.output}")
        assert isinstance(layer.weight, torch.Tensor)
        _zero_all_but(layer.weight, 0 if is_transposed(layer) else 1, columns)


def _zero_all_but(values: torch.Tensor, axis: int, kept: torch.Tensor) -> None:
    others = torch.ones(values.shape[axis], dtype=torch.bool, device=values.device)
    others[kept.to(values.device)] = False
    values.index_fill_(axis, others.nonzero().flatten(), 0)


def _spread(heads: Sequence[int], size: int) -> torch.Tensor:
    """Rows of these heads."""
    return (torch.tensor(list(heads))[:, None] * size + torch.arange(size)[None]).flatten()


def _replace(
    model: torch.nn.Module, name: str, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> None:
    """Leave a layer some of its rows or columns, in place."""
    layer: Any = model.get_submodule(name)
    weight: torch.Tensor = layer.weight
    bias: torch.Tensor | None = layer.bias
    trains = bool(weight.requires_grad)
    flipped = is_transposed(layer)
    with torch.no_grad():
        if rows is not None:
            weight = weight.index_select(1 if flipped else 0, rows.to(weight.device))
            bias = None if bias is None else bias.index_select(0, rows.to(bias.device))
        if columns is not None:
            weight = weight.index_select(0 if flipped else 1, columns.to(weight.device))
    layer.weight = torch.nn.Parameter(weight.contiguous(), requires_grad=trains)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=trains)
    outputs, inputs = layer_size(layer)
    if flipped:
        layer.nf, layer.nx = outputs, inputs
    else:
        layer.out_features, layer.in_features = outputs, inputs


def _set_counts(core: Any, heads: int, key_value_heads: int, size: int) -> None:  # noqa: ANN401 - a module's attributes
    for name in _HEAD_COUNTS:
        if hasattr(core, name):
            setattr(core, name, heads)
    if hasattr(core, "num_key_value_heads"):
        core.num_key_value_heads = key_value_heads
    if hasattr(core, "num_key_value_groups"):
        core.num_key_value_groups = heads // key_value_heads
    for name in _WIDTHS:
        if hasattr(core, name):
            setattr(core, name, heads * size)
    widen_reshape(core)


def widen_reshape(core: torch.nn.Module) -> None:
    """Give attention classes that divide the model's width by the number of heads a `forward` that does not."""
    from mhe_compress.narrow_attention import NARROW

    narrow = NARROW.get(type(core).__name__)
    if narrow is not None:
        core.__class__ = narrow


# ---------------------------------------------------------------- counts in a configuration

BLOCKS_KEY = "pruned_blocks"
"""Field of config.json: dotted name of a block to its counts."""


def key_of(block: Block) -> str:
    """The block's name under `pruned_blocks`; attention and feed-forward network may lie in one module."""
    return block.name if isinstance(block, Heads) else f"{block.name}.{block.place.output}"


def counts_of(block: Block) -> dict[str, int]:
    """The block's counts as they stand there."""
    if isinstance(block, Heads):
        return {"heads": block.heads, "key_value_heads": block.key_value_heads}
    return {"neurons": block.width}


def shrink_to(model: PreTrainedModel, architecture: Architecture, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Cut a newly made model to the counts of its configuration: the first heads and neurons are kept, for their shape.

    Raises `UserError` for counts that the model cannot have.
    """
    unknown = Counter(counts)
    for block in find_blocks(model, architecture):
        key = key_of(block)
        wanted = counts.get(key)
        if wanted is None:
            continue
        del unknown[key]
        if isinstance(block, Heads):
            heads, own = int(wanted["heads"]), int(wanted["key_value_heads"])
            if not (0 < own <= block.key_value_heads and 0 < heads <= block.heads and heads % own == 0):
                raise UserError(f"config.json: {key} of {BLOCKS_KEY} cannot have {heads} heads on {own}.")
            cut_heads(model, block, range(heads), range(own))
        else:
            width = int(wanted["neurons"])
            if not 0 < width <= block.width:
                raise UserError(f"config.json: {key} of {BLOCKS_KEY} cannot have {width} neurons.")
            cut_neurons(model, block, range(width))
    if unknown:
        raise UserError(f"config.json: {BLOCKS_KEY} names {', '.join(sorted(unknown)[:3])}, which the model lacks.")
