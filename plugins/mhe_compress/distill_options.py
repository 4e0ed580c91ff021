"""Options of the recipe `distill`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mhe_compress.distill_presets import DISTILL_PRESETS
from mhe_hf.training.adapters import AdapterTreatment
from mhe_hf.training.options import TrainingOptions
from mhe_hf.training.targets import ALL

COLDEST, HOTTEST = 1.0, 20.0
"""Temperatures that a cached teacher answers for."""


class DistillOptions(TrainingOptions):
    """Options of the recipe `distill`."""

    presets = DISTILL_PRESETS
    # Several processes would each fill the cache.
    may_share = False
    input_roles: ClassVar[tuple[str, ...]] = ("teacher",)

    mode: Literal["logits", "sequence"] = "logits"
    """What is learnt of the teacher: what it expects of each token of the answers, or answers that it writes."""
    temperature: Annotated[float, Field(gt=0)] = 2.0
    """T: logits of both are divided by it, and the soft loss is multiplied by T²."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the soft loss; the hard loss on the true answers weighs 1 - alpha. At 0 no teacher is asked."""
    divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    hidden_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean squared difference of hidden states, through a learnt projection, which is then dropped."""
    hidden_layers: Literal["last", "evenly"] = "last"
    """Which states: those before the output head, or those after each student layer and the teacher's at its depth."""
    teacher_logits: Literal["cached", "online"] = "cached"
    """Computed once and kept on disk, the `top_k` likeliest of each token; or in every step, all of them."""
    top_k: Annotated[int, Field(ge=1)] = 64
    """Kept logits of a token; all other tokens together are one more outcome."""
    teacher_quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Load the teacher in 4 or 8 bits, through bitsandbytes."""
    teacher_max_new_tokens: Annotated[int | None, Field(ge=1)] = None
    """Of mode `sequence`: length of the teacher's answers; the task's own limit where empty."""

    keep_layers: Annotated[float | None, Field(gt=0)] = None
    """The student is the base with this share of its language layers, or with this number of them."""
    layer_choice: Literal["evenly", "importance"] = "evenly"
    """Which layers stay: at equal distances, or those that change their input the most on training samples."""
    calibration_samples: Annotated[int, Field(ge=1)] = 32
    """Training samples that `layer_choice=importance` is measured on."""
    student: dict[str, Any] | None = None
    """The student is of the base's class with these fields of its configuration changed, every weight drawn anew:
    `{"text_config": {"num_hidden_layers": 2}}`, or `{"text_config.num_hidden_layers": 2}`."""

    vision: AdapterTreatment = "full"
    fusion: AdapterTreatment = "full"
    language: AdapterTreatment = "full"
    """Of the student: `frozen`, `full`, or `adapter` for LoRA."""
    vision_targets: tuple[str, ...] = (ALL,)
    fusion_targets: tuple[str, ...] = (ALL,)
    language_targets: tuple[str, ...] = (ALL,)
    """Ends of the names of the linear layers that get LoRA, where the module is `adapter`; `all` for each."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Of LoRA."""
    lora_alpha: Annotated[int, Field(gt=0)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Of LoRA."""
    rslora: bool = False

    @field_validator("keep_layers")
    @classmethod
    def _is_share_or_number(cls, keep: float | None) -> float | None:
        if keep is not None and keep >= 1 and keep != int(keep):
            raise ValueError(f"{keep:g} is neither a share between 0 and 1, such as 0.5, nor a whole number of layers")
        return keep

    @model_validator(mode="after")
    def _distillation_agrees(self) -> DistillOptions:
        if self.student is not None and self.keep_layers is not None:
            raise ValueError(
                "student and keep_layers are two ways to a student: give keep_layers for fewer layers of the base with "
                "their weights, student for a smaller model with none"
            )
        if self.hidden_weight and self.mode == "sequence":
            raise ValueError("hidden_weight needs mode=logits: in mode sequence the teacher's answers are all there is")
        if self.hidden_weight and self.teacher_logits == "cached":
            raise ValueError("hidden_weight needs teacher_logits=online: states are too large to be kept on disk")
        is_kept = self.mode == "logits" and self.teacher_logits == "cached"
        if is_kept and not COLDEST <= self.temperature <= HOTTEST:
            raise ValueError(
                f"temperature {self.temperature:g} needs teacher_logits=online; kept logits are for "
                f"{COLDEST:g} to {HOTTEST:g}"
            )
        return self

    @property
    def asks_teacher(self) -> bool:
        """Whether a teacher has a part in the loss of mode `logits`."""
        return self.alpha > 0 or self.hidden_weight > 0

    @property
    def has_adapters(self) -> bool:
        """Whether the result is adapters."""
        return "adapter" in (self.vision, self.fusion, self.language)
