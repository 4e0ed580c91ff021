"""Learned prefixes: keys and values of virtual tokens that stand before those of a self-attention layer.

Every query sees them, whatever the mask says of the tokens' own places, and they have no position: rotary embedding is
applied to the tokens alone. They are put on a layer in place, so that all modules keep their names, and are no part of
the cache of generation, so that positions are those of the base.

Layers that go through transformers' `AttentionInterface` (all families here but BLIP) get an attention function that
puts the prefix first and calls the one of the model. BLIP's text layers get them where their cache is read, and the
layers of BLIP's image encoder are computed here.

A prefix is stored as `adapter_config.json` (its kind, its tokens, the layers and the base) and
`adapter_model.safetensors` (`LAYER.keys` and `LAYER.values`, each key-value heads x tokens x head width). PEFT has no
such kind: its own prefix is for causal language models alone.
"""

from __future__ import annotations

import copy
import inspect
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import nn
from transformers import AttentionInterface, EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mhe import ModelUnusableError
from mhe_hf.adapter_sets import PREFIX_KIND
from mhe_hf.parts import ADAPTER_FILE, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

States = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one layer, each (key-value heads, tokens, head width)."""

PREFIX = "learned_prefix"
"""What the prefix is called inside the layer it is put on."""
COMPUTED_BY = ("sdpa", "eager")
"""Attention functions that a prefix can be put before."""
_ONE_LAYER = (("k_proj", 1), ("key", 1), ("c_attn", 3), ("qkv", 3))
"""What makes the keys, and how many equal parts its output has: keys alone, or with queries and values."""


class PrefixSource(Protocol):
    """A module whose call returns the keys and values of a layer."""

    def __call__(self) -> States:
        """Keys and values, each (key-value heads, tokens, head width)."""
        ...


class KeysAndValues(nn.Module):
    """Keys and values as they stand: what is trained by P-tuning v2, and what is loaded."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys)
        self.values = nn.Parameter(values)

    def forward(self) -> States:
        """Both, each (key-value heads, tokens, head width)."""
        return self.keys, self.values


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What a prefix of one layer looks like."""

    heads: int
    """Of keys and values, which several heads of queries may share."""
    width: int
    """Of one head."""


# ---------------------------------------------------------------- which layers


def attention_layers(model: nn.Module) -> dict[str, AttentionShape]:
    """Self-attention layers that a prefix can be put on, by dotted name, in the model's order; no cross-attention."""
    found = {}
    for name, layer in model.named_modules():
        if "cross" in name or getattr(layer, "is_cross_attention", False):
            continue
        if type(layer).__name__ in _OTHER_WAYS or _uses_interface(layer):
            shape = _shape_of(layer)
            if shape is not None:
                found[name] = shape
    return found


def _uses_interface(layer: nn.Module) -> bool:
    code = getattr(inspect.unwrap(type(layer).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names and hasattr(layer, "config")


def _shape_of(layer: nn.Module) -> AttentionShape | None:
    width = getattr(layer, "head_dim", None) or getattr(layer, "attention_head_size", None)
    for name, parts in _ONE_LAYER:
        made_by: Any = getattr(layer, name, None)
        # GPT-2's linear layer names its width otherwise.
        out = getattr(made_by, "out_features", getattr(made_by, "nf", None))
        if isinstance(out, int) and isinstance(width, int):
            return AttentionShape(out // parts // width, width)
    return None


# ---------------------------------------------------------------- on a layer and off it


def put_prefix(model: nn.Module, name: str, source: nn.Module) -> None:
    """Put a prefix on the self-attention layer of that name, in place; `source` is a `PrefixSource`.

    Raises `ModelUnusableError` where there is one already, or the model computes attention in a way that takes none.
    """
    layer: Any = model.get_submodule(name)
    if hasattr(layer, PREFIX):
        raise ModelUnusableError(f"{name} has a learned prefix already, and takes no second one.")
    put = _OTHER_WAYS.get(type(layer).__name__, _put_before_interface)
    undo = put(layer, name)
    layer.register_module(PREFIX, source)
    layer._take_learned_prefix = undo


def take_prefixes(model: nn.Module) -> None:
    """Take all prefixes off, so that the model is the base again."""
    for layer in list(model.modules()):
        undo = layer.__dict__.pop("_take_learned_prefix", None)
        if undo is not None:
            delattr(layer, PREFIX)
            undo()


def prefix_states(model: nn.Module) -> dict[str, States]:
    """Keys and values of every layer that has a prefix, by the layer's name, as they are computed now."""
    with torch.no_grad():
        return {
            name: cast("PrefixSource", getattr(layer, PREFIX))()
            for name, layer in model.named_modules()
            if hasattr(layer, PREFIX)
        }


def _joined(layer: nn.Module, key: torch.Tensor, value: torch.Tensor) -> States:
    """The prefix before keys and values of (batch, heads, places, head width)."""
    states = cast("PrefixSource", getattr(layer, PREFIX))()
    before = [state.to(device=key.device, dtype=key.dtype).expand(key.shape[0], -1, -1, -1) for state in states]
    return torch.cat([before[0], key], dim=2), torch.cat([before[1], value.to(key.dtype)], dim=2)


def _opened(mask: torch.Tensor | None, tokens: int) -> torch.Tensor | None:
    """The mask with so many places more at its start, which every query sees."""
    if mask is None:
        return None
    shown = True if mask.dtype == torch.bool else 0
    return nn.functional.pad(mask, (tokens, 0), value=shown)


# ---------------------------------------------------------------- through transformers' AttentionInterface


def _before(base: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **given: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        own = key.shape[2]
        key, value = _joined(module, key, value)
        asked = given.get("is_causal")
        is_causal = getattr(module, "is_causal", True) if asked is None else asked
        if base == "sdpa" and attention_mask is None and is_causal and query.shape[2] > 1:
            # Left to itself it would take the prefix for the first tokens of the text.
            places = torch.ones(query.shape[2], own, dtype=torch.bool, device=query.device)
            attention_mask = places.tril(own - query.shape[2])[None, None]
        eager = sys.modules[type(module).__module__].__dict__.get("eager_attention_forward")
        compute: Any = ALL_ATTENTION_FUNCTIONS.get_interface(base, eager)  # type: ignore[arg-type]
        result: tuple[torch.Tensor, torch.Tensor | None] = compute(
            module, query, key, value, _opened(attention_mask, key.shape[2] - own), **given
        )
        return result

    return attend


_NAMES = {base: f"{base}_after_prefix" for base in COMPUTED_BY}
for _base, _name in _NAMES.items():
    AttentionInterface.register(_name, _before(_base))


def _put_before_interface(layer: Any, name: str) -> Callable[[], None]:  # noqa: ANN401 - a layer's attributes differ by family
    configuration = layer.config
    base = configuration._attn_implementation or "eager"
    if base not in _NAMES:
        raise ModelUnusableError(
            f"a learned prefix is for attention computed by {' or '.join(COMPUTED_BY)}, and {name} is computed by "
            f"{base!r}: attn_implementation=sdpa (--set backend.attn_implementation=sdpa when evaluating)"
        )
    # Of this layer alone: the model's masks, and its layers of cross-attention, go by the one it shares.
    own = copy.copy(configuration)
    own._attn_implementation = _NAMES[base]
    layer.config = own

    def undo() -> None:
        layer.config = configuration

    return undo


# ---------------------------------------------------------------- BLIP, which goes its own ways


class _CacheAfterPrefix:
    """Stands for the cache of a layer: what is read from it begins with the prefix, what is kept does not."""

    def __init__(self, layer: nn.Module, kept: Any) -> None:  # noqa: ANN401 - transformers' caches share no type
        self._layer = layer
        self._kept = kept.self_attention_cache if isinstance(kept, EncoderDecoderCache) else kept

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> States:
        """As transformers' caches do."""
        if self._kept is not None:
            key, value = self._kept.update(key, value, layer)
        return _joined(self._layer, key, value)


def _put_in_blip_text(layer: Any, name: str) -> Callable[[], None]:  # noqa: ANN401, ARG001 - one signature for all ways
    def hand_on(
        module: nn.Module, given: tuple[object, ...], named: dict[str, Any]
    ) -> tuple[tuple[object, ...], dict[str, Any]]:
        tokens = cast("PrefixSource", getattr(module, PREFIX))()[0].shape[1]
        named = dict(named)
        named["past_key_values"] = _CacheAfterPrefix(module, named.get("past_key_values"))
        named["attention_mask"] = _opened(named.get("attention_mask"), tokens)
        return given, named

    handle = layer.register_forward_pre_hook(hand_on, with_kwargs=True)
    return cast("Callable[[], None]", handle.remove)


def _put_in_blip_vision(layer: Any, name: str) -> Callable[[], None]:  # noqa: ANN401, ARG001 - one signature for all ways
    def forward(hidden_states: torch.Tensor, **given: object) -> tuple[torch.Tensor, None]:  # noqa: ARG001 - as the layer is called
        batch, places, width = hidden_states.shape
        made = layer.qkv(hidden_states).reshape(batch, places, 3, layer.num_heads, -1)
        query, key, value = made.permute(2, 0, 3, 1, 4)
        key, value = _joined(layer, key, value)
        dropout = layer.dropout.p if layer.training else 0.0
        seen = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=layer.scale)
        return layer.projection(seen.transpose(1, 2).reshape(batch, places, width)), None

    layer.forward = forward

    def undo() -> None:
        del layer.forward

    return undo


_OTHER_WAYS = {"BlipTextSelfAttention": _put_in_blip_text, "BlipAttention": _put_in_blip_vision}


# ---------------------------------------------------------------- in a folder


def write_prefix(folder: Path, states: Mapping[str, States], base: str) -> None:
    """Write keys and values by their layers' names in the sub-module that the folder is for; `base` may be empty."""
    from safetensors.torch import save_file

    tensors = {}
    for name, (keys, values) in states.items():
        tensors[f"{name}.keys"] = keys.detach().cpu().contiguous()
        tensors[f"{name}.values"] = values.detach().cpu().contiguous()
    about = {
        "kind": PREFIX_KIND,
        "base_model_name_or_path": base,
        "tokens": next(iter(states.values()))[0].shape[1],
        "layers": list(states),
    }
    folder.mkdir()
    (folder / ADAPTER_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / ADAPTER_WEIGHTS).chmod(0o644)


def load_prefix(target: nn.Module, folder: Path) -> None:
    """Put a stored prefix on the sub-module that it is for, in place.

    Raises `ModelUnusableError` where layers or shapes are not those of the base that it was trained on.
    """
    from safetensors.torch import load_file

    stored = load_file(folder / ADAPTER_WEIGHTS)
    shapes = attention_layers(target)
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in stored))
    if unknown := [name for name in names if name not in shapes]:
        raise ModelUnusableError(
            f"the prefix {folder} does not fit {type(target).__name__}, so it was trained on another base than this: "
            f"{len(unknown)} of its layers are not there ({', '.join(unknown[:2])}{', …' if len(unknown) > 2 else ''})."
        )
    for name in names:
        pair = [stored.get(f"{name}.{part}") for part in ("keys", "values")]
        shape = shapes[name]
        for state in pair:
            if state is None or state.ndim != 3 or (state.shape[0], state.shape[2]) != (shape.heads, shape.width):
                raise ModelUnusableError(
                    f"the prefix {folder} does not fit {type(target).__name__}, so it was trained on another base than "
                    f"this: {name} wants keys and values of {shape.heads} heads of width {shape.width}, and got "
                    f"{'none' if state is None else tuple(state.shape)}."
                )
        keys, values = (state for state in pair if state is not None)
        device = next(target.get_submodule(name).parameters()).device
        source = KeysAndValues(keys.to(device), values.to(device)).requires_grad_(requires_grad=False)
        put_prefix(target, name, source)
