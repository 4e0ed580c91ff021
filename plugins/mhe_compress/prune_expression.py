"""How a pruned model is saved: in a configuration of the library where one can say it, as a class of ours else.

What the libraries take (transformers 5.23, run): every feed-forward width, where it is the same in all layers of a
configuration (in the image encoder of Qwen2-VL a whole multiple of its states only). Fewer heads, where it is the same
in all layers, for text models of Mistral and Qwen2, whose configurations have a `head_dim` of its own; for Llama, which
computes what Mistral does, as Mistral; for ViT. All others (Qwen2-VL, mllama, GPT-2, OPT, CLIP, BLIP) derive a head's
size from the number of heads.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mhe import UserError
from mhe_compress.blocks import BLOCKS_KEY, Block, Heads, counts_of, find_blocks, key_of
from mhe_hf import empty_model

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from mhe import Architecture

HEAD_SIZE_STAYS = ("llama", "mistral", "qwen2", "vit")
"""Types of sub-configurations that can say how many heads there are without changing the size of one."""


@dataclass(frozen=True, slots=True)
class Expression:
    """A configuration that makes a model of these shapes."""

    configuration: PreTrainedConfig
    class_name: str
    """Of the library, or of this package."""
    is_plain: bool
    """Whether the library's own class will do."""
    reasons: tuple[str, ...] = ()
    """Why not, where it will not."""


def express(model: PreTrainedModel, architecture: Architecture) -> Expression:
    """The configuration for the model as it is cut now, plain where that can be.

    Raises `UserError` where neither can be: a class of the library that has no counterpart here.
    """
    blocks = find_blocks(model, architecture)
    plain = without_blocks(model.config)
    reasons = _state_counts(plain, blocks)
    if not reasons:
        name = _library_class(type(model)).__name__
        plain.architectures = [name]
        return Expression(plain, name, is_plain=True)
    stated, name = _with_blocks(model, architecture, blocks)
    return Expression(stated, name, is_plain=False, reasons=tuple(reasons))


def without_blocks(configuration: PreTrainedConfig) -> PreTrainedConfig:
    """A copy that says nothing of single blocks."""
    plain = copy.deepcopy(configuration)
    if hasattr(plain, BLOCKS_KEY):
        delattr(plain, BLOCKS_KEY)
    return plain


def can_have_fewer_heads(configuration: PreTrainedConfig, path: str) -> bool:
    """Whether the sub-configuration at this path can say it in the library's own words."""
    part = part_of(configuration, path)
    kind = str(part.model_type)
    if kind == "llama" and (getattr(part, "attention_bias", False) or getattr(part, "mlp_bias", False)):
        return False
    return kind in HEAD_SIZE_STAYS


def _state_counts(configuration: PreTrainedConfig, blocks: Sequence[Block]) -> list[str]:
    """Write the counts of blocks into the configuration; returns what it cannot say."""
    reasons: list[str] = []
    for path in dict.fromkeys(block.place.configuration for block in blocks):
        own = [block for block in blocks if block.place.configuration == path]
        reasons += _state_heads(configuration, path, [block for block in own if isinstance(block, Heads)])
        widths = {block.width: block for block in own if not isinstance(block, Heads)}
        if len(widths) > 1:
            reasons.append(f"{path} has one width for all layers, and they have {min(widths)} to {max(widths)} neurons")
        for width, block in widths.items():
            reasons += _state_width(part_of(configuration, path), block.place.width, width)
    return reasons


def _state_heads(configuration: PreTrainedConfig, path: str, blocks: Sequence[Heads]) -> list[str]:
    found = {(block.heads, block.key_value_heads, block.size) for block in blocks}
    if not found:
        return []
    part = part_of(configuration, path)
    name = blocks[0].place.heads
    stated = int(getattr(part, name))
    stated_own = int(getattr(part, "num_key_value_heads", None) or stated)
    if {(heads, own) for heads, own, _ in found} == {(stated, stated_own)}:
        return []
    if len(found) > 1:
        return [f"{path} has one number of heads for all layers, and they have {len(found)} different ones"]
    if not can_have_fewer_heads(configuration, path):
        return [f"the configuration of {part.model_type} divides its width by the number of heads"]
    heads, own, size = found.pop()
    if part.model_type == "llama":
        part = as_mistral(part)
        _put_part(configuration, path, part)
    part.head_dim = size
    if hasattr(part, "num_key_value_heads"):
        part.num_key_value_heads = own
    setattr(part, name, heads)
    return []


def as_mistral(llama: PreTrainedConfig) -> PreTrainedConfig:
    """A Llama text configuration in Mistral's words: the same mathematics, with no sliding window and a `head_dim`."""
    from transformers import MistralConfig

    stated = llama.to_dict()
    kept_out = {"model_type", "architectures", "attention_bias", "mlp_bias", "pretraining_tp", "transformers_version"}
    kept = {key: value for key, value in stated.items() if key not in kept_out}
    if kept.get("head_dim") is None:
        kept["head_dim"] = llama.hidden_size // llama.num_attention_heads
    return MistralConfig(**{**kept, "sliding_window": None})


def _state_width(part: Any, name: str, width: int) -> list[str]:  # noqa: ANN401 - configurations are open by design
    if not name.endswith("_ratio"):
        setattr(part, name, width)
    elif width % part.embed_dim == 0:
        setattr(part, name, width // part.embed_dim)
    else:
        return [f"{name} of {part.model_type} must be whole, and {width} neurons are no multiple of {part.embed_dim}"]
    return []


def part_of(configuration: PreTrainedConfig, path: str) -> Any:  # noqa: ANN401 - configurations are open by design
    """The sub-configuration at a dotted path."""
    for name in path.split("."):
        configuration = getattr(configuration, name)
    return configuration


def _put_part(configuration: PreTrainedConfig, path: str, part: PreTrainedConfig) -> None:
    head, _, name = path.rpartition(".")
    setattr(part_of(configuration, head) if head else configuration, name, part)


def _with_blocks(
    model: PreTrainedModel, architecture: Architecture, blocks: Sequence[Block]
) -> tuple[PreTrainedConfig, str]:
    """The configuration for a class of ours: the library's numbers, and the counts of the blocks that have others."""
    from mhe_compress.pruned_models import pruned_class

    kind = pruned_class(type(model))
    if kind is None:
        raise UserError(
            f"no configuration of transformers can say what is left of this {type(model).__name__}, and there is no "
            "class of ours for it. Set only_plain=true, which keeps the number of heads and takes neurons out."
        )
    whole = without_blocks(model.config)
    whole.architectures = [_library_class(type(model)).__name__]
    uncut = {key_of(block): block for block in find_blocks(empty_model(whole), architecture)}
    stated = without_blocks(model.config)
    stated.architectures = [kind.__name__]
    setattr(
        stated,
        BLOCKS_KEY,
        {key_of(block): counts_of(block) for block in blocks if counts_of(block) != counts_of(uncut[key_of(block)])},
    )
    return stated, kind.__name__


def _library_class(kind: type) -> type:
    return next(base for base in kind.__mro__ if base.__module__.startswith("transformers."))


def rebuilt(
    model: PreTrainedModel, configuration: PreTrainedConfig, weights: Mapping[str, torch.Tensor] | None = None
) -> PreTrainedModel:
    """The model's weights in a fresh model of that configuration, which they must fit to the last one."""
    fresh = empty_model(configuration)
    fresh.load_state_dict(weights or model.state_dict(), strict=True, assign=True)
    fresh.tie_weights()
    if model.can_generate():
        fresh.generation_config = model.generation_config
    fresh.config.dtype = model.dtype
    return fresh
