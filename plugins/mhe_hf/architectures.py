"""Where vision, fusion and language live in each model class, and how many parameters lie there.

Paths are dotted names as `named_modules()` gives them, with `*` for one name (a layer's number). A parameter belongs
to the module whose path matches the most names of it, so that cross-attention inside a language model counts as
fusion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import Architecture, ModelUnusableError
from mhe_hf import pruning_places as places

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

MODULES = ("vision", "fusion", "language")

_LLAVA_NOTES = "A Llama text model with fewer heads must be written with a Mistral text configuration."

ARCHITECTURES: Mapping[str, Architecture] = {
    spec.model_type: spec
    for spec in (
        Architecture(
            model_type="llava",
            vision=("model.vision_tower",),
            fusion=("model.multi_modal_projector",),
            language=("model.language_model", "lm_head"),
            notes=_LLAVA_NOTES,
            heads=places.LLAVA_HEADS,
            neurons=places.LLAVA_NEURONS,
        ),
        Architecture(
            model_type="llava_next",
            vision=("model.vision_tower",),
            fusion=("model.multi_modal_projector", "model.image_newline"),
            language=("model.language_model", "lm_head"),
            notes=_LLAVA_NOTES,
            heads=places.LLAVA_HEADS,
            neurons=places.LLAVA_NEURONS,
        ),
        Architecture(
            model_type="qwen2_vl",
            vision=("model.visual",),
            fusion=("model.visual.merger",),
            language=("model.language_model", "lm_head"),
            notes="Vision attn.qkv is fused; the text configuration has no head_dim, so heads cannot be fewer.",
            heads=places.QWEN2_VL_HEADS,
            neurons=places.QWEN2_VL_NEURONS,
        ),
        Architecture(
            model_type="mllama",
            vision=("model.vision_model",),
            fusion=(
                "model.multi_modal_projector",
                "model.language_model.layers.*.cross_attn",
                "model.language_model.layers.*.cross_attn_attn_gate",
                "model.language_model.layers.*.cross_attn_mlp_gate",
            ),
            language=("model.language_model", "lm_head"),
            notes="The gates of cross-attention start at 0; the text configuration ignores head_dim.",
            heads=places.MLLAMA_HEADS,
            neurons=places.MLLAMA_NEURONS,
        ),
        Architecture(
            model_type="vision-encoder-decoder",
            vision=("encoder",),
            fusion=(
                "decoder.transformer.h.*.crossattention",
                "decoder.transformer.h.*.ln_cross_attn",
                "enc_to_dec_proj",
            ),
            language=("decoder",),
            notes="ViT and GPT-2: attn.c_attn of the decoder is fused.",
            heads=places.VISION_DECODER_HEADS,
            neurons=places.VISION_DECODER_NEURONS,
        ),
        Architecture(
            model_type="blip",
            vision=("vision_model",),
            fusion=("text_encoder",),
            language=("text_decoder",),
            notes="Question answering: the joint text-multimodal encoder is fusion, all of the decoder language, as in "
            "MILE. A captioner has no such encoder, so no fusion. Vision self_attn.qkv is fused.",
            heads=places.BLIP_HEADS,
            neurons=places.BLIP_NEURONS,
        ),
        Architecture(
            model_type="blip-2",
            vision=("vision_model",),
            fusion=("query_tokens", "qformer", "language_projection"),
            language=("language_model",),
            notes="The Q-Former stays in float32. Vision self_attn.qkv is fused.",
            heads=places.BLIP2_HEADS,
            neurons=places.BLIP2_NEURONS,
        ),
    )
}


def architecture_of(model_type: str, known: Mapping[str, Architecture] | None = None) -> Architecture:
    """The table's row for `config.model_type`; `known` defaults to the models of this plugin.

    Raises `ModelUnusableError` naming what is known.
    """
    table = ARCHITECTURES if known is None else known
    if model_type not in table:
        raise ModelUnusableError(
            f"where vision, fusion and language live in models of type {model_type!r} is not known. "
            f"Known types: {', '.join(sorted(table))}. A plugin adds one with register_architectures()."
        )
    return table[model_type]


def module_of(parameter: str, architecture: Architecture) -> str | None:
    """`vision`, `fusion` or `language` for a parameter's (or module's) dotted name; None where none matches."""
    best, found = 0, None
    # PEFT's wrapper around a module adds two names, around one with a prefix the first of them.
    for name in {parameter, parameter.replace("base_model.model.", ""), parameter.replace("base_model.", "")}:
        names = name.split(".")
        for module in MODULES:
            for path in getattr(architecture, module):
                parts = path.split(".")
                matches = len(parts) <= len(names) and all(p in ("*", n) for p, n in zip(parts, names, strict=False))
                if matches and len(parts) > best:
                    best, found = len(parts), module
    return found


def module_names(model: torch.nn.Module, architecture: Architecture, module: str) -> list[str]:
    """Names of all sub-modules that belong to `vision`, `fusion` or `language`, in the model's order."""
    return [name for name, _ in model.named_modules() if name and module_of(name, architecture) == module]


def parameter_size(parameter: torch.nn.Parameter) -> int:
    """Number of weights, also where several are packed into a byte (4 bits)."""
    state = getattr(parameter, "quant_state", None)
    if state is not None and getattr(state, "shape", None) is not None:
        return int(state.shape.numel())
    return int(parameter.numel())


def module_parameters(model: torch.nn.Module, architecture: Architecture | None = None) -> dict[str, int]:
    """Parameters of vision, fusion and language, tied ones once; `other` where the table leaves some out.

    Without `architecture` the table's row for the model's type is used; empty where there is none.
    """
    if architecture is None:
        architecture = ARCHITECTURES.get(str(getattr(getattr(model, "config", None), "model_type", "")))
    if architecture is None:
        return {}
    counts = dict.fromkeys(MODULES, 0)
    for name, parameter in model.named_parameters():
        module = module_of(name, architecture) or "other"
        counts[module] = counts.get(module, 0) + parameter_size(parameter)
    return counts
