"""Recipe `qlora`: the recipe `lora` on a base whose weights are kept in 4 (or 8) bits.

The base is quantised while it is loaded and never changes; what is trained are low-rank matrices in float32 beside its
layers (see `lora`). `quantized_modules` says what is kept in few bits; a module that is trained whole (`full`) cannot
be among them. The result is an adapter on the quantised base: the checkpoint loads it so.

    mhe tune --model qwen2-vl-2b --recipe qlora --task roco --name my-qlora --set preset=neto2025-qlora

Memory: about 4.5 bits a frozen weight, 16 bytes a trained one, and the activations.

Source: Dettmers et al., QLoRA, NeurIPS 2023; rank-stabilised scaling: Kalajdzievski, arXiv:2312.03732.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from mhe_hf.training.adapter_training import train_adapters
from mhe_hf.training.adapters import AdapterTreatment
from mhe_hf.training.options import TrainingOptions
from mhe_hf.training.targets import ALL
from mhe_tune.adapter_presets import QLORA_PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peft import LoraConfig
    from pydantic import BaseModel
    from transformers import PreTrainedModel

    from mhe import RecipeJob, RecipeResult


class QloraOptions(TrainingOptions):
    """Options of the recipe `qlora`."""

    presets = QLORA_PRESETS

    vision: AdapterTreatment = "frozen"
    fusion: AdapterTreatment = "frozen"
    language: AdapterTreatment = "adapter"
    vision_targets: tuple[str, ...] = (ALL,)
    """Ends of the names of the linear layers that are adapted, where `vision` is `adapter`; `all` for each."""
    fusion_targets: tuple[str, ...] = (ALL,)
    language_targets: tuple[str, ...] = (ALL,)
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(gt=0)] = 16
    """Scales the update: alpha / √rank with `rslora`, else alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Of the input of A, while training."""
    rslora: bool = True
    """Scale by alpha / √rank, so that the rate need not change with the rank."""
    quantization: Literal["nf4", "fp4", "int8"] = "nf4"
    double_quant: bool = True
    """Quantise the scales as well; of nf4 and fp4 only."""
    quantized_modules: tuple[Literal["vision", "fusion", "language"], ...] = ("vision", "fusion", "language")
    """Modules whose weights are kept in few bits."""

    @model_validator(mode="after")
    def _full_modules_are_whole(self) -> QloraOptions:
        both = [module for module in self.quantized_modules if getattr(self, module) == "full"]
        if both:
            raise ValueError(
                f"{', '.join(both)}: full, and in quantized_modules; weights of few bits cannot be trained. "
                f"Leave {both[0]} out of quantized_modules, or set {both[0]} to adapter"
            )
        if self.quantization == "int8" and self.double_quant and "double_quant" in self.model_fields_set:
            raise ValueError("double_quant needs quantization nf4 or fp4, and it is int8")
        return self


class QloraRecipe:
    """Low-rank adaptation of a quantised base, by module."""

    Options: ClassVar[type[BaseModel]] = QloraOptions
    name = "qlora"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, QloraOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained."""
        chosen = self.options
        quantization = {
            "quantization": chosen.quantization,
            "double_quant": chosen.double_quant and chosen.quantization != "int8",
            "quantized_modules": chosen.quantized_modules,
        }
        return train_adapters(chosen, job, self._config, quantization=quantization)

    def _config(self, model: PreTrainedModel, layers: Mapping[str, Sequence[str]]) -> LoraConfig:  # noqa: ARG002 - one signature for all adapters
        from peft import LoraConfig

        chosen = self.options
        return LoraConfig(
            r=chosen.rank, lora_alpha=chosen.alpha, lora_dropout=chosen.dropout, use_rslora=chosen.rslora, bias="none"
        )
