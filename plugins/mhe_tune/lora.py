"""Recipe `lora`: low-rank matrices beside chosen linear layers; everything else is frozen, or a module trained whole.

A layer W x becomes W x + s · B A x with A of shape (rank, in) drawn at random and B of shape (out, rank) from 0, so
that training starts at the base; s is alpha / rank, or with `rslora` alpha / √rank. `vision`, `fusion` and `language`
are each `frozen`, `full` or `adapter`.

    mhe tune --model tiny-llava --recipe lora --task vqa-rad --name my-lora
    mhe tune … --set rank=8 --set language_targets='["q_proj","v_proj"]'
    mhe tune … --set vision=adapter --set vision_targets='["q_proj","k_proj","v_proj"]'

The result is one PEFT adapter for each adapted module, on the base, which is named by its fingerprint.

Source: Hu et al., LoRA, ICLR 2022, eq. 3; rank-stabilised scaling: Kalajdzievski, arXiv:2312.03732.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mhe_hf.training.adapter_training import train_adapters
from mhe_hf.training.adapters import AdapterTreatment
from mhe_hf.training.options import TrainingOptions
from mhe_hf.training.targets import ALL
from mhe_tune.adapter_presets import LORA_PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peft import LoraConfig
    from pydantic import BaseModel
    from transformers import PreTrainedModel

    from mhe import RecipeJob, RecipeResult


class LoraOptions(TrainingOptions):
    """Options of the recipe `lora`."""

    presets = LORA_PRESETS

    vision: AdapterTreatment = "frozen"
    fusion: AdapterTreatment = "frozen"
    language: AdapterTreatment = "adapter"
    vision_targets: tuple[str, ...] = (ALL,)
    """Ends of the names of the linear layers that are adapted, where `vision` is `adapter`; `all` for each."""
    fusion_targets: tuple[str, ...] = (ALL,)
    language_targets: tuple[str, ...] = (ALL,)
    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(gt=0)] = 32
    """Scales the update: alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Of the input of A, while training."""
    rslora: bool = False
    """Scale by alpha / √rank, so that the rate need not change with the rank."""


class LoraRecipe:
    """Low-rank adaptation by module."""

    Options: ClassVar[type[BaseModel]] = LoraOptions
    name = "lora"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, LoraOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained."""
        return train_adapters(self.options, job, self._config)

    def _config(self, model: PreTrainedModel, layers: Mapping[str, Sequence[str]]) -> LoraConfig:  # noqa: ARG002 - one signature for all adapters
        from peft import LoraConfig

        chosen = self.options
        return LoraConfig(
            r=chosen.rank, lora_alpha=chosen.alpha, lora_dropout=chosen.dropout, use_rslora=chosen.rslora, bias="none"
        )
