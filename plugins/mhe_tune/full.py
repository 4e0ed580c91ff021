"""Recipe `full`: every weight of the modules that are not frozen is trained.

The model learns the answer that follows each prompt (cross-entropy on the answer's tokens alone), through
transformers' `Trainer` with AdamW. `vision`, `fusion` and `language` are each `full` or `frozen`.

    mhe tune --model tiny-llava --recipe full --task vqa-rad --name my-model --set learning_rate=1e-4 --set epochs=5
    mhe tune … --set vision=frozen                      the usual choice for large models
    mhe tune … --set patience=3 --set evaluate_every=50 stop when validation no longer improves

Costs 16 bytes of memory for each trained weight (weight, gradient, two moments, all float32), 4 for each frozen one,
and the activations; `gradient_checkpointing` trades these for time. On a CPU the same seed gives the same bytes.
Interrupted, it continues from the last save and ends in the same weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

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
from mhe_hf.training.modules import Treatment, set_trainable
from mhe_hf.training.options import TrainingOptions

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mhe import RecipeJob, RecipeResult


class FullOptions(TrainingOptions):
    """Options of the recipe `full`."""

    vision: Treatment = "full"
    fusion: Treatment = "full"
    language: Treatment = "full"
    questions_per_row: Annotated[int, Field(ge=1)] = 1
    """Questions of one image that share a sequence, so that the image is seen once for all of them."""


class FullRecipe:
    """Full fine-tuning by module."""

    Options: ClassVar[type[BaseModel]] = FullOptions
    name = "full"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, FullOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained."""
        schedule = plan_schedule(self.options, job)
        if job.dry_run:
            shares = set_trainable(empty_model(job), self._treatments(), job.architectures)
            return preview_of(job, shares, schedule, 4 * shares.parameters + 12 * shares.trainable)
        with quiet_transformers():
            model, processor, own_dtype = load_base(self.options, job)
            shares = set_trainable(model, self._treatments(), job.architectures)
            job.report("plan", plan_numbers(shares, schedule))
            fitted = fit(model, processor, self.options, job, schedule)
            save_published(model, processor, job.folder / "model", own_dtype)
        return result_of(fitted, self.options, job, shares, schedule)

    def _treatments(self) -> dict[str, Treatment]:
        return {"vision": self.options.vision, "fusion": self.options.fusion, "language": self.options.language}
