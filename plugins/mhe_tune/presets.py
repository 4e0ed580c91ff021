"""Presets: a recipe's options with the values of a paper, chosen by `--set preset=NAME`.

Each recipe has its own here, and names them in its options as `presets`. What is set besides a preset wins over it.
Where a paper is silent, the preset says so and where its value is taken from.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from mhe import Preset

if TYPE_CHECKING:
    from collections.abc import Mapping

INSTRUCTION_PRESETS: Mapping[str, Preset] = {
    "mile-instruction": Preset(
        source="Chen et al., Can LLMs' Tuning Methods Work in Medical Multimodal Domain? (MILE), MICCAI 2024, "
        "sections 3.2 and 3.3, Table 5",
        values={
            "vision": "full",
            "fusion": "full",
            "language": "full",
            "attribute": "question_type",
            "candidates": 4,
            "learning_rate": 2e-5,
            "weight_decay": 0.05,
            "scheduler": "cosine",
            "warmup": 0.0,
            "batch_size": 20,
            "epochs": 130,
            "keep": "last",
        },
        notes="The paper says which weights are trained (all) and on what. Rate, decay, schedule, batch, epochs and "
        "last weights are those of its published code (github.com/TIMMY-CHAN/MILE, train_instruction.py and "
        "configs/slake.yaml), four candidates those of its published data. The templates are our own.",
    ),
}

STAGED_PRESETS: Mapping[str, Preset] = {
    "visiongpt2-staged": Preset(
        source="LLaVA-1.6 with LoRA against VisionGPT-2 on ROCOv2, section III, training of VisionGPT-2",
        values={
            "stages": [
                {"trains": ["fusion"]},
                {"trains": ["fusion", "language"]},
                {"trains": ["fusion", "language", "vision:1/3"]},
                {"trains": ["fusion", "language", "vision:2/3"]},
                {"trains": ["fusion", "language", "vision"]},
            ],
            "learning_rate": 1e-4,
            "weight_decay": 0.0,
            "scheduler": "one_cycle",
            "warmup": 0.3,
            "batch_size": 8,
            "epochs": 5,
            "dtype": "fp16",
            "keep": "best",
        },
        notes="The paper gives cross-attention first, then GPT-2, then the ViT step by step, Adam, OneCycleLR, fp16, "
        "batch 8, 5 epochs, lowest validation perplexity. How the epochs are divided and in how many steps the ViT is "
        "unfrozen is ours; the peak rate is that of the code of the architecture's name "
        "(github.com/shreydan/VisionGPT2), the rise over 30 % of the steps OneCycleLR's own. Without a GPU add "
        "dtype=fp32.",
    ),
}


def with_preset(presets: Mapping[str, Preset], given: object) -> object:
    """The settings over the values of the preset they name; unchanged where they name none that exists."""
    if not isinstance(given, dict):
        return given
    preset = presets.get(str(given.get("preset")))
    return given if preset is None else {**preset.values, **given}


def checked_preset(presets: Mapping[str, Preset], name: str | None) -> str | None:
    """The name. Raises `ValueError` with a suggestion for one that is not there."""
    if name is None or name in presets:
        return name
    close = difflib.get_close_matches(name, presets, n=1, cutoff=0.4)
    suggestion = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"this recipe has no such preset.{suggestion} Presets: {', '.join(sorted(presets)) or 'none'}")
