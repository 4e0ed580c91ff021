"""Presets of the recipes `instruction` and `staged`; how presets work is in `mhe_hf.training.presets`."""

from __future__ import annotations

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
