"""Recipe `staged`: the modules are unfrozen one after another, as VisionGPT-2 was trained.

First only the fusion learns (in VisionGPT-2 the new cross-attention), then the language model with it, then the vision
encoder block by block, the last blocks first. One learning-rate cycle (torch's OneCycleLR) runs over all stages.

    mhe tune --model visiongpt2 --recipe staged --task roco --name staged --set preset=visiongpt2-staged
    mhe tune … --set 'stages=[{trains: [fusion]}, {trains: [fusion, "language:1/2"], share: 2}]'

A stage names all that it trains, and its share of the steps. Any model will do whose modules are known
(`mhe_hf.architectures`). The optimizer is AdamW, which without weight decay (the default) is Adam. The result has the
weights of the lowest validation loss, which are those of the lowest validation perplexity, its exponential.

Costs 16 bytes of memory for each weight that any stage trains (weight, gradient, two moments), 4 for each other, and
the activations; early stages cost less. What is not trained in a stage keeps every bit of its value. Interrupted at any
step of any stage, it continues from the last save and ends in the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mhe import Preset
from mhe_hf import save_published
from mhe_hf.training.fitting import (
    empty_model,
    fit,
    load_base,
    plan_numbers,
    plan_schedule,
    preview_of,
    quiet_transformers,
    result_of,
)
from mhe_hf.training.options import TrainingOptions
from mhe_tune.presets import STAGED_PRESETS
from mhe_tune.stages import Stage, plan_stages

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mhe import RecipeJob, RecipeResult


class StagedOptions(TrainingOptions):
    """Options of the recipe `staged`; the defaults are those of VisionGPT-2 but for its fp16."""

    presets: ClassVar[Mapping[str, Preset]] = STAGED_PRESETS

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] = (
        Stage(trains=("fusion",)),
        Stage(trains=("fusion", "language")),
        Stage(trains=("fusion", "language", "vision:1/3")),
        Stage(trains=("fusion", "language", "vision:2/3")),
        Stage(trains=("fusion", "language", "vision")),
    )
    """One after another: what each trains, and its share of the steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """The peak; AdamW."""
    epochs: Annotated[float, Field(gt=0)] = 5.0
    """Passes over the training examples, all stages together."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "one_cycle"] = "one_cycle"
    """Over all stages together."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of all steps in which the rate rises."""


class StagedRecipe:
    """Training in stages."""

    Options: ClassVar[type[BaseModel]] = StagedOptions
    name = "staged"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, StagedOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained when."""
        schedule = plan_schedule(self.options, job)
        if job.dry_run:
            plan = plan_stages(empty_model(job), self.options.stages, schedule.steps, job.architectures)
            needed = 4 * plan.shares.parameters + 12 * plan.shares.trainable
            return preview_of(job, plan.shares, schedule, needed, notes=plan.lines)
        from mhe_hf.training.watching import validation_losses
        from mhe_tune.stage_keeper import StageKeeper

        with quiet_transformers():
            model, processor, own_dtype = load_base(self.options, job)
            plan = plan_stages(model, self.options.stages, schedule.steps, job.architectures)
            job.report("plan", plan_numbers(plan.shares, schedule))
            keeper = StageKeeper(model, plan)
            fitted = fit(model, processor, self.options, job, schedule, callbacks=[keeper])
            save_published(model, processor, job.folder / "model", own_dtype)
        losses = [loss for _, loss in validation_losses(fitted.trainer.state.log_history)]
        perplexity = [f"lowest validation perplexity {math.exp(min(losses)):.4g}"] if losses else []
        return result_of(fitted, self.options, job, plan.shares, schedule, notes=[*plan.lines, *perplexity])
