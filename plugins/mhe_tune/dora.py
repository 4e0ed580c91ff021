"""Recipe `dora`: low-rank adaptation of the directions of weight columns, with their lengths learnt apart.

A layer's weight becomes m · (W + s B A) / ‖W + s B A‖, the norm taken column by column; m, the lengths, starts as
that of W, and A, B and s are those of the recipe `lora`. Slower than `lora` (the norm is computed in every step) and a
little larger; often better at low rank. `vision`, `fusion` and `language` are each `frozen`, `full` or `adapter`.

    mhe tune --model tiny-llava --recipe dora --task vqa-rad --name my-dora --set rank=8

Source: Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024, eq. 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mhe_hf.training.adapter_training import train_adapters
from mhe_hf.training.adapters import AdapterTreatment
from mhe_hf.training.options import TrainingOptions
from mhe_hf.training.targets import ALL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peft import LoraConfig
    from pydantic import BaseModel
    from transformers import PreTrainedModel

    from mhe import RecipeJob, RecipeResult


class DoraOptions(TrainingOptions):
    """Options of the recipe `dora`."""

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


class DoraRecipe:
    """Weight-decomposed low-rank adaptation by module."""

    Options: ClassVar[type[BaseModel]] = DoraOptions
    name = "dora"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, DoraOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained."""
        return train_adapters(self.options, job, self._config)

    def _config(self, model: PreTrainedModel, layers: Mapping[str, Sequence[str]]) -> LoraConfig:  # noqa: ARG002 - one signature for all adapters
        from peft import LoraConfig

        chosen = self.options
        return LoraConfig(
            r=chosen.rank, lora_alpha=chosen.alpha, lora_dropout=chosen.dropout, use_dora=True, bias="none"
        )
