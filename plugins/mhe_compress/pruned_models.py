"""Models whose layers have fewer heads or neurons than their library's configuration can say.

Each class is the library's own, made as its configuration says and then cut, block by block, to the counts that stand
under `pruned_blocks` in config.json. Weights, tokenizer, processor and `model_type` are as before; transformers alone
refuses such a folder (its shapes do not fit), `mhe` finds the class by the name under `architectures`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers

from mhe_compress.blocks import BLOCKS_KEY, shrink_to
from mhe_hf import architecture_of

if TYPE_CHECKING:
    from mhe import Architecture


class Pruned:
    """Cuts the model that the class beside it makes."""

    def __init__(self: Any, config: transformers.PreTrainedConfig, *parts: object, **more: object) -> None:
        super().__init__(config, *parts, **more)  # type: ignore[call-arg]
        shrink_to(self, _architecture(config), getattr(config, BLOCKS_KEY, None) or {})


def _architecture(config: transformers.PreTrainedConfig) -> Architecture:
    return architecture_of(str(config.model_type))


class PrunedLlavaForConditionalGeneration(Pruned, transformers.LlavaForConditionalGeneration):
    """LLaVA."""


class PrunedLlavaNextForConditionalGeneration(Pruned, transformers.LlavaNextForConditionalGeneration):
    """LLaVA-NeXT."""


class PrunedQwen2VLForConditionalGeneration(Pruned, transformers.Qwen2VLForConditionalGeneration):
    """Qwen2-VL."""


class PrunedMllamaForConditionalGeneration(Pruned, transformers.MllamaForConditionalGeneration):
    """Llama 3.2 Vision."""


class PrunedVisionEncoderDecoderModel(Pruned, transformers.VisionEncoderDecoderModel):
    """ViT and GPT-2."""


class PrunedBlipForConditionalGeneration(Pruned, transformers.BlipForConditionalGeneration):
    """BLIP's captioner."""


class PrunedBlipForQuestionAnswering(Pruned, transformers.BlipForQuestionAnswering):
    """BLIP for question answering."""


class PrunedBlip2ForConditionalGeneration(Pruned, transformers.Blip2ForConditionalGeneration):
    """BLIP-2."""


CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        PrunedLlavaForConditionalGeneration,
        PrunedLlavaNextForConditionalGeneration,
        PrunedQwen2VLForConditionalGeneration,
        PrunedMllamaForConditionalGeneration,
        PrunedVisionEncoderDecoderModel,
        PrunedBlipForConditionalGeneration,
        PrunedBlipForQuestionAnswering,
        PrunedBlip2ForConditionalGeneration,
    )
}


def pruned_class(model_class: type) -> type | None:
    """The class that stands for a library's one, itself where it is one of ours; None where there is none."""
    return CLASSES.get(model_class.__name__) or CLASSES.get(f"Pruned{model_class.__name__}")
