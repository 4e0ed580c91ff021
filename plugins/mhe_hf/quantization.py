"""What bitsandbytes is told: kind, scales, and exactly which layers to leave alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mhe_hf.architectures import MODULES, architecture_of, module_of
from mhe_hf.versions import library_version

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

    from mhe_hf.options import HfOptions

HEADS = ("lm_head", "text_decoder.cls")
"""The layer that scores the vocabulary: often tied to the embedding, which is not quantised."""
PACKED_OUTPUTS = 32
"""Rows of a weight that bitsandbytes packs together on a CPU."""


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


def stored_quantization(configuration: PreTrainedConfig) -> str | None:
    """How a checkpoint lies on disk: `nf4`, `fp4`, `int8`, the name of another method, or None for whole weights."""
    return _kind_of(getattr(configuration, "quantization_config", None))


def quantization_on_disk(folder: Path) -> str | None:
    """`stored_quantization` of a folder's config.json, without transformers; None where there is none."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Whoever loads the model says what is wrong with the file.
        return None
    return _kind_of(found.get("quantization_config")) if isinstance(found, dict) else None


def make_whole(model: PreTrainedModel) -> PreTrainedModel:
    """The model with every weight of few bits turned into a whole one of the same value; others as they are.

    An adapter is merged exactly only into such a model: merged into 4 bits it is rounded away, with no error.
    """
    return model.dequantize() if stored_quantization(model.config) is not None else model


def restore_layer_classes(model: PreTrainedModel) -> None:
    """Turn linear layers that stand in the place of GPT-2's transposed ones back, in place.

    bitsandbytes has no such layer, and what is saved without this reads as the transposed weight.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    with torch.device("meta"):
        own = type(model)._from_config(model.config)
    for name, layer in own.named_modules():
        found = model.get_submodule(name)
        if isinstance(layer, Conv1D) and isinstance(found, torch.nn.Linear):
            turned = Conv1D(found.out_features, found.in_features)
            turned.weight = torch.nn.Parameter(found.weight.data.T.contiguous(), requires_grad=False)
            if found.bias is not None:
                turned.bias = torch.nn.Parameter(found.bias.data, requires_grad=False)
            model.set_submodule(name, turned)


def keep_odd_layers_unpacked(model: PreTrainedModel) -> None:
    """Keep bitsandbytes on a CPU with bfloat16 from packing 4-bit layers anew that its packed form cannot hold.

    It holds outputs by 32 and inputs by the weights of one scale (64); at other widths the first answer would fail.
    As they are they give the same numbers, more slowly.
    """
    for layer in model.modules():
        if not hasattr(layer, "support_avx512bf16_for_cpu"):
            continue
        state = getattr(layer.weight, "quant_state", None)
        if state is not None and (state.shape[0] % PACKED_OUTPUTS or state.shape[1] % state.blocksize):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _kind_of(found: object) -> str | None:
    if found is None:
        return None
    settings = found if isinstance(found, dict) else vars(found)
    method = settings.get("quant_method")
    method = str(getattr(method, "value", method))
    if method != "bitsandbytes":
        return method
    if settings.get("load_in_8bit", settings.get("_load_in_8bit")):
        return "int8"
    return str(settings.get("bnb_4bit_quant_type", "fp4"))


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
