"""What the small LLaVA and LLaVA-NeXT have in common: the vision tower and its beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_tiny.initial import set_patch_filters, set_positions

if TYPE_CHECKING:
    from transformers import (
        CLIPVisionConfig,
        LlavaForConditionalGeneration,
        LlavaNextForConditionalGeneration,
        PreTrainedTokenizerBase,
    )


def vision_tower(*, width: int, inner: int, layers: int, image: int, patch: int) -> CLIPVisionConfig:
    """Return CLIP's tower with four heads over square images of `image` pixels."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=image,
        patch_size=patch,
        projection_dim=width,
    )


def begin(
    model: LlavaForConditionalGeneration | LlavaNextForConditionalGeneration, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Set patches and positions as `mhe_tiny.initial` says, and the ids that generation stops and pads by, in place.

    The text model has those ids in its configuration; the outer one has none of its own.
    """
    embeddings = model.model.vision_tower.embeddings
    set_patch_filters(embeddings.patch_embedding.weight)
    set_positions(embeddings.position_embedding.weight)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
