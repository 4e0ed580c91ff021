"""Presets of the adapter recipes: the papers' values, chosen by `--set preset=NAME`; see `mhe_hf.training.presets`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import Preset

if TYPE_CHECKING:
    from collections.abc import Mapping

NETO = "Neto et al., QLoRA, distillation and pruning on ROCOv2, section III"
LLAVA16 = "LLaVA-1.6 with LoRA against VisionGPT-2 on ROCOv2, section III"
MILE = "Chen et al., Can LLMs' Tuning Methods Work in Medical Multimodal Domain? (MILE), MICCAI 2024"

_MILE_TRAINING: Mapping[str, object] = {
    "learning_rate": 2e-5,
    "weight_decay": 0.05,
    "scheduler": "cosine",
    "warmup": 0.0,
    "batch_size": 20,
    "epochs": 130,
    "keep": "last",
}
_MILE_NOTES = (
    "Which modules are frozen, trained or adapted is the table's row. Rate, decay, schedule, batch and epochs are "
    "those of the published code (github.com/TIMMY-CHAN/MILE), as the paper has its settings from MISS. "
)

LETTERS = {"F": "frozen", "T": "full"}
ATTENTION_QUERY_KEY = ("query", "key")
VIT_LINEARS = ("qkv", "projection", "fc1", "fc2")


def _row(vision: str, fusion: str, language: str) -> dict[str, object]:
    """`F`, `T`, or `A` for adapted, of ViT, joint encoder and decoder."""
    return {
        module: LETTERS.get(letter, "adapter")
        for module, letter in (("vision", vision), ("fusion", fusion), ("language", language))
    }


def _mile_lora(rows: str, rank: int, share: str) -> Preset:
    return Preset(
        source=f"{MILE}, Table 1, row {' '.join(rows)} rank {rank} ({share} of the parameters)",
        values={
            **_row(*rows),
            "rank": rank,
            "alpha": rank,
            "dropout": 0.0,
            "vision_targets": VIT_LINEARS,
            "fusion_targets": ATTENTION_QUERY_KEY,
            "language_targets": ATTENTION_QUERY_KEY,
            **_MILE_TRAINING,
        },
        notes=f"{_MILE_NOTES}The paper adapts query and key; its shares fit query and key of self- and "
        "cross-attention in both text modules, and all four linear layers of the ViT. Scale and dropout are not named.",
    )


def _mile_ia3(rows: str, share: str) -> Preset:
    return Preset(
        source=f"{MILE}, Table 3, row {' '.join(rows)} ({share} of the parameters)",
        values={
            **_row(*rows),
            "vision_targets": ("fc2",),
            "fusion_targets": ("key", "value", "output.dense"),
            "language_targets": ("key", "value", "output.dense"),
            "feedforward": ("fc2", "output.dense"),
            **_MILE_TRAINING,
        },
        notes=f"{_MILE_NOTES}The shares fit vectors on key, value and both kinds of output in the text modules, and on "
        "the second feed-forward layer of the ViT.",
    )


def _mile_prefix(rows: str, share: str, remark: str) -> Preset:
    return Preset(
        source=f"{MILE}, Table 2, row {' '.join(rows)} ({share} of the parameters)",
        values={**_row(*rows), "tokens": 30, "projection_width": None, **_MILE_TRAINING},
        notes=f"{_MILE_NOTES}The shares fit 30 tokens through a network as wide as the model, 14,787,840 parameters a "
        f"module; {remark}",
    )


def _mile_ptuning_v2(rows: str, share: str) -> Preset:
    return Preset(
        source=f"{MILE}, Table 4, row {' '.join(rows)} ({share} of the parameters)",
        values={**_row(*rows), "tokens": 10, **_MILE_TRAINING},
        notes=f"{_MILE_NOTES}The shares fit keys and values of 10 tokens in the 12 layers of self-attention, 184,320 "
        "parameters a text module. Where they start from is not named.",
    )


LORA_PRESETS: Mapping[str, Preset] = {
    "llava16-lora": Preset(
        source=LLAVA16,
        values={
            "vision": "adapter",
            "fusion": "frozen",
            "language": "adapter",
            "vision_targets": ("q_proj", "k_proj", "v_proj"),
            "language_targets": ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),
            "rank": 16,
            "alpha": 32,
            "dropout": 0.05,
            "learning_rate": 1e-4,
            "batch_size": 4,
            "epochs": 10,
            "patience": 5,
            "keep": "best",
        },
        notes="40,108,032 trained parameters, as the paper says. bf16 and AdamW are the defaults on a GPU.",
    ),
    **{
        f"mile-lora-{rows.lower()}-r{rank}": _mile_lora(rows, rank, share)
        for rows, rank, share in (
            ("FAA", 4, "0.163 %"),
            ("FAA", 8, "0.325 %"),
            ("AAA", 4, "0.327 %"),
            ("AAA", 8, "0.652 %"),
            ("FTA", 4, "38.022 %"),
            ("FTA", 8, "38.072 %"),
            ("TAA", 4, "24.009 %"),
            ("TAA", 8, "24.133 %"),
            ("TTA", 4, "61.887 %"),
            ("TTA", 8, "61.919 %"),
        )
    },
}

QLORA_PRESETS: Mapping[str, Preset] = {
    "neto2025-qlora": Preset(
        source=NETO,
        values={
            "vision": "frozen",
            "fusion": "frozen",
            "language": "adapter",
            "language_targets": ("q_proj", "k_proj", "v_proj", "gate_proj"),
            "rank": 16,
            "alpha": 16,
            "dropout": 0.1,
            "rslora": True,
            "quantization": "nf4",
            "double_quant": True,
            "learning_rate": 1e-5,
            "batch_size": 8,
            "epochs": 3,
            "patience": 3,
            "keep": "best",
        },
        notes="The paper names no alpha: 16, so that the scale is √16. NF4 with double quantisation is QLoRA's own.",
    ),
}

IA3_PRESETS: Mapping[str, Preset] = {
    f"mile-ia3-{rows.lower()}": _mile_ia3(rows, share)
    for rows, share in (
        ("FAA", "0.051 %"),
        ("AAA", "0.061 %"),
        ("TAA", "23.924 %"),
        ("FTA", "37.987 %"),
        ("TTA", "61.866 %"),
    )
}

PREFIX_PRESETS: Mapping[str, Preset] = {
    f"mile-prefix-{rows.lower()}": _mile_prefix(rows, share, remark)
    for rows, share, remark in (
        (
            "FAA",
            "3.926 %",
            "the row names two modules with a prefix (7.57 %), and its share fits one: --set fusion=frozen for that.",
        ),
        ("TAA", "29.636 %", "this share fits two of them, as the row says."),
        ("TTA", "63.354 %", "this share fits one of them, as the row says."),
    )
}

PTUNING_V2_PRESETS: Mapping[str, Preset] = {
    f"mile-ptv2-{rows.lower()}": _mile_ptuning_v2(rows, share)
    for rows, share in (("FAA", "0.102 %"), ("FFA", "0.051 %"), ("TAA", "23.963 %"), ("TTA", "61.876 %"))
}
