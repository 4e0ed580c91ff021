"""Recipe `example-norms`: the weights of the layer normalisations are trained, and no other weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mhe import Preset, RecipeResult, UserError
from mhe_hf import MODULES, architecture_of, module_of, save_published
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
from mhe_hf.training.modules import Shares
from mhe_hf.training.options import TrainingOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mhe import RecipeJob


class NormsOptions(TrainingOptions):
    """Those of every training (`mhe show recipes example-norms`), and what is this recipe's own."""

    presets: ClassVar[Mapping[str, Preset]] = {
        "example-quick": Preset(
            source="this package: a few steps, to see that it works",
            values={"learning_rate": 1e-2, "max_steps": 4, "batch_size": 4},
        )
    }
    modules: Annotated[tuple[str, ...], Field(min_length=1)] = MODULES
    """Which of vision, fusion and language are trained."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The peak; AdamW."""


class NormsRecipe:
    """Chooses what is trained; the training itself, resuming and measuring are those of all recipes."""

    Options = NormsOptions
    name = "example-norms"
    version = "1"

    def __init__(self, options: NormsOptions) -> None:
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained."""
        schedule = plan_schedule(self.options, job)
        if job.dry_run:
            shares = self._choose(empty_model(job), job)
            return preview_of(job, shares, schedule, 4 * shares.parameters + 12 * shares.trainable)
        with quiet_transformers():
            model, processor, own_dtype = load_base(self.options, job)
            shares = self._choose(model, job)
            job.report("plan", plan_numbers(shares, schedule))
            fitted = fit(model, processor, self.options, job, schedule)
            save_published(model, processor, job.folder / "model", own_dtype)
        return result_of(fitted, self.options, job, shares, schedule)

    def _choose(self, model: PreTrainedModel, job: RecipeJob) -> Shares:
        architecture = architecture_of(str(model.config.model_type), job.architectures)
        counts = dict.fromkeys(MODULES, (0, 0))
        for name, parameter in model.named_parameters():
            module = module_of(name, architecture) or "language"
            parameter.requires_grad_(module in self.options.modules and "norm" in name.lower())
            total, trained = counts[module]
            own = parameter.numel()
            counts[module] = (total + own, trained + (own if parameter.requires_grad else 0))
        shares = Shares(counts)
        if not shares.trainable:
            asked, known = ", ".join(self.options.modules), ", ".join(MODULES)
            raise UserError(f"no layer normalisation in modules={asked}: name some of {known}.")
        return shares
