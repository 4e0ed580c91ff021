"""Presets of the recipe `distill`, chosen by `--set preset=NAME`; see `mhe_hf.training.presets`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import Preset

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOURCE = "Neto et al., QLoRA, distillation and pruning on ROCOv2, section III"
_TRAINING: Mapping[str, object] = {
    "vision": "frozen",
    "fusion": "full",
    "language": "full",
    "learning_rate": 1e-5,
    "batch_size": 8,
    "epochs": 3,
    "patience": 3,
    "keep": "best",
}
_SILENT = (
    "Rate, batch, epochs and patience are the paper's, and that the vision encoder is frozen, which it says of QLoRA; "
)

DISTILL_PRESETS: Mapping[str, Preset] = {
    "neto2025-kd": Preset(
        source=f"{_SOURCE} (rows LLaVA + KD of Table I)",
        values={
            "mode": "logits",
            "divergence": "forward_kl",
            "temperature": 2.0,
            "alpha": 0.5,
            "keep_layers": 0.5,
            "layer_choice": "evenly",
            "teacher_logits": "cached",
            **_TRAINING,
        },
        notes=f"{_SILENT}and soft targets of the full-size base as teacher. It names no student, no temperature and no "
        "weight. Ours: the student is the base with every second of its language layers, kept evenly; T = 2; soft and "
        "hard loss weigh alike. Use it with --model llava-1.5-7b and no further teacher: the base is the teacher.",
    ),
    "neto2025-kd-sequence": Preset(
        source=f"{_SOURCE} (rows LLaVA + KD of Table I, read in another way)",
        values={"mode": "sequence", **_TRAINING},
        notes=f"{_SILENT}the rest is ours: the paper speaks of a teacher LLaMA and a student LLaVA, whose tokenizers "
        "differ, so that the student learns what the teacher answers. Use it with --model llava-1.5-7b "
        "--input teacher=llama-3.2-11b-vision.",
    ),
}
