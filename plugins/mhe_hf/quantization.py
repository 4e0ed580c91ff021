"""What bitsandbytes is told: kind, scales, and exactly which layers to leave alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_hf.architectures import MODULES, architecture_of, module_of
from mhe_hf.versions import library_version

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

    from mhe_hf.options import HfOptions

HEADS = ("lm_head", "text_decoder.cls")
"""The layer that scores the vocabulary: often tied to the embedding, which is not quantised."""


def quantization_of(
    options: HfOptions, configuration: PreTrainedConfig, model_class: type[PreTrainedModel]
) -> BitsAndBytesConfig:
    """Settings for loading a model of that class and configuration.

    Raises `MissingExtraError`, and `ModelUnusableError` where modules are to be left alone and it is not known
    where they live.
    """
    import torch
    from transformers import BitsAndBytesConfig

    library_version("bitsandbytes", extra="quant", needed_for=f"quantization {options.quantization}")
    skipped = [*HEADS, *_left_alone(options, configuration, model_class)]
    if options.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.quantization,
        bnb_4bit_use_double_quant=options.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, options.dtype)
        if options.dtype != "auto"
        else _saved_dtype(configuration),
        llm_int8_skip_modules=skipped,
    )


def _left_alone(options: HfOptions, configuration: PreTrainedConfig, model_class: type[PreTrainedModel]) -> list[str]:
    """Full names of the layers outside `quantized_modules`.

    One by one: a module's path would take others inside it along (cross-attention inside the language model), and a
    path that matches nothing is passed over without a word.
    """
    import torch

    if set(options.quantized_modules) >= set(MODULES):
        return []
    architecture = architecture_of(str(configuration.model_type))
    with torch.device("meta"):
        empty = model_class._from_config(configuration)
    return [
        name
        for name, module in empty.named_modules()
        if name and not any(module.children()) and module_of(name, architecture) not in options.quantized_modules
    ]


def _saved_dtype(configuration: PreTrainedConfig) -> torch.dtype:
    import torch

    saved = getattr(configuration, "dtype", None)
    return saved if isinstance(saved, torch.dtype) else torch.float32
