"""Recipe `bitfit`: the biases of chosen modules are trained, and no other weight.

Of a layer W x + b and of a normalisation g · x + b only b moves. `vision`, `fusion` and `language` are each `frozen`,
`biases` or `full`. A language model of the Llama or Mistral kind has no biases: asking for them is an error.

    mhe tune --model tiny-visiongpt2 --recipe bitfit --task vqa-rad --name my-biases --set learning_rate=1e-3
    mhe tune --model tiny-llava --recipe bitfit … --set language=frozen --set vision=biases --set fusion=biases

The result has all weights in the published key names, so that it loads wherever the base does. Biases want a higher
rate than all weights: the paper's are 1e-4 to 1e-3.

Source: Ben Zaken et al., BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models,
ACL 2022, section 3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mhe import UserError
from mhe_hf import MODULES, architecture_of, save_published
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
from mhe_hf.training.modules import Shares, check_homes
from mhe_hf.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from pydantic import BaseModel
    from transformers import PreTrainedModel

    from mhe import Architecture, RecipeJob, RecipeResult

BiasTreatment = Literal["frozen", "biases", "full"]


class BitfitOptions(TrainingOptions):
    """Options of the recipe `bitfit`."""

    vision: BiasTreatment = "frozen"
    fusion: BiasTreatment = "frozen"
    language: BiasTreatment = "biases"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """The peak; AdamW."""


class BitfitRecipe:
    """Training of biases by module."""

    Options: ClassVar[type[BaseModel]] = BitfitOptions
    name = "bitfit"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, BitfitOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained."""
        chosen = self.options
        treatments = {"vision": chosen.vision, "fusion": chosen.fusion, "language": chosen.language}
        schedule = plan_schedule(chosen, job)
        if job.dry_run:
            shares = train_biases(empty_model(job), treatments, job.architectures)
            return preview_of(job, shares, schedule, 4 * shares.parameters + 12 * shares.trainable)
        with quiet_transformers():
            model, processor, own_dtype = load_base(chosen, job)
            shares = train_biases(model, treatments, job.architectures)
            job.report("plan", plan_numbers(shares, schedule))
            fitted = fit(model, processor, chosen, job, schedule)
            save_published(model, processor, job.folder / "model", own_dtype)
        return result_of(fitted, chosen, job, shares, schedule)


def train_biases(
    model: PreTrainedModel, treatments: Mapping[str, BiasTreatment], architectures: Mapping[str, Architecture]
) -> Shares:
    """Let the biases of modules set to `biases` be trained, and all of those set to `full`; returns the counts.

    Raises `UserError`, naming the modules with biases, where a module is to train biases and has none, and where
    nothing is to be trained.
    """
    architecture = architecture_of(str(model.config.model_type), architectures or None)
    homes = check_homes(model, architecture, [module for module, how in treatments.items() if how != "frozen"])
    with_biases = {homes[name] for name, parameter in model.named_parameters() if is_bias(name, parameter)}
    lacking = [module for module, how in treatments.items() if how == "biases" and module not in with_biases]
    if lacking:
        found = [module for module in MODULES if module in with_biases]
        settings = " ".join(f"--set {module}=frozen" for module in lacking)
        others = " ".join(f"--set {module}=biases" for module in found)
        raise UserError(
            f"{' and '.join(lacking)} of this {architecture.model_type} model {'has' if len(lacking) == 1 else 'have'} "
            f"no biases to train. Modules with biases: {', '.join(found) or 'none'}."
            + (f" Give {settings} {others}, or another recipe." if found else " Use another recipe, such as lora.")
        )
    counts = {module: [0, 0] for module in MODULES}
    for name, parameter in model.named_parameters():
        how = treatments.get(homes[name], "frozen")
        is_trained = how == "full" or (how == "biases" and is_bias(name, parameter))
        parameter.requires_grad_(is_trained)
        counts[homes[name]][0] += parameter.numel()
        counts[homes[name]][1] += parameter.numel() if is_trained else 0
    shares = Shares({module: (total, trained) for module, (total, trained) in counts.items()})
    if not shares.trainable:
        raise UserError(
            f"nothing would be trained: {', '.join(f'{module}={how}' for module, how in treatments.items())}. "
            f"Set one of {', '.join(MODULES)} to biases, such as --set language=biases."
        )
    return shares


def is_bias(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether a parameter is the bias of a layer; a table of position biases is none."""
    return parameter.ndim == 1 and name.rpartition(".")[2].endswith("bias")
