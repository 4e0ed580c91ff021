"""Recipe `merge`: adapters added to the weights they lie on; the result is a plain model in published key names.

A base in 4 or 8 bits is made whole first: merged into weights of few bits, an adapter is rounded away with no error,
and logits are wrong by several units. The sum is formed in `dtype` and written in the dtype of the base.

    mhe tune --model my-qlora --recipe merge --name my-merged
    mhe tune … --task roco --set prompts=32        compare on training prompts in place of drawn ones
    mhe tune … --set limit=1e-4                    fail beyond this difference

The largest difference in logits between the whole base with its adapters beside it and the merged model is measured on
`prompts` prompts and told; beyond `limit` the step fails. Learned prefixes and prompts have no weights to be added to
and are refused. A base in few bits without an adapter is only made whole. Nothing is trained. Memory: the whole
weights in `dtype`.

Dequantising loses nothing that the adapter was trained beside: its values are those that the 4-bit model computed
with.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mhe import Part, RecipeResult, UserError
from mhe_compress.merge_prompts import logits_of, prompts_for
from mhe_hf import (
    HfOptions,
    adapters_of,
    empty_model,
    few_bits_of,
    find_parts,
    load_configuration,
    load_model,
    module_parameters,
    needed_class,
    restore_layer_classes,
    save_published,
    write_planned,
)
from mhe_hf.training.fitting import quiet_transformers
from mhe_hf.training.memory import peak_device_bytes, peak_host_bytes, readable_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from pydantic import BaseModel
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import RecipeJob, TrainingExample

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


class MergeOptions(Part):
    """Options of the recipe `merge`."""

    prompts: Annotated[int, Field(ge=1)] = 8
    """How many prompts the two are compared on: the first of the training data, or drawn ones where a step has none."""
    limit: Annotated[float | None, Field(gt=0)] = 0.01
    """Largest difference in logits that is accepted, before the result is rounded to the base's dtype."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What is computed in; 16 bits take half the memory, and differ by more: raise `limit`."""
    device: str = "auto"
    """Where it is done: `auto`, `cpu`, `cuda`."""


class MergeRecipe:
    """Adapters into weights."""

    Options: ClassVar[type[BaseModel]] = MergeOptions
    name = "merge"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, MergeOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Merge and compare, or with `job.dry_run` tell what would be written."""
        few = _check_base(job)
        spec = job.base.spec
        chosen = HfOptions.model_validate(spec.options)
        loaded_as = chosen.model_copy(update={"dtype": self.options.dtype, "device": self.options.device})
        configuration = load_configuration(spec, chosen, offline=job.offline)
        if job.dry_run:
            return self._preview(job, few)
        folder = job.folder / "model"
        # Half a model of a killed attempt.
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        examples = prompts_for(job, self.options.prompts)
        with quiet_transformers():
            apart, processor = load_model(spec, loaded_as, offline=job.offline, is_made_whole=True)
            expected = logits_of(apart, processor, examples)
            job.report("merge", {"step": 1, "steps": 3})
            del apart
            merged, _ = load_model(
                spec, loaded_as.model_copy(update={"merge_adapter": True}), offline=job.offline, is_made_whole=True
            )
            difference = largest_difference(expected, logits_of(merged, processor, examples))
            job.report("merge", {"step": 2, "steps": 3})
            self._check(difference, len(examples))
            restore_layer_classes(merged)
            own = getattr(configuration, "dtype", None)
            rounded = _save(merged, processor, job, own, examples, expected)
            job.report("merge", {"step": 3, "steps": 3})
        modules = module_parameters(merged)
        saved = str(merged.dtype).removeprefix("torch.")
        source = "training prompts" if job.train else "drawn prompts"
        difference_told = f"{difference:.2g} in {self.options.dtype}, {rounded:.2g} as saved in {saved}"
        return RecipeResult(
            model_folder=folder,
            parameters=sum(parameter.numel() for parameter in merged.parameters()),
            trainable_parameters=0,
            modules={name: (count, 0) for name, count in modules.items()},
            seconds=time.monotonic() - started,
            peak_host_bytes=peak_host_bytes(),
            peak_device_bytes=peak_device_bytes(),
            device=str(merged.device),
            loads_in=() if needed_class(merged) else ("transformers",),
            needs_class=needed_class(merged),
            notes=(
                *_made_whole(few),
                f"largest difference in logits, merged to beside, on {len(examples)} {source}: {difference_told}",
            ),
        )

    def _check(self, difference: float, prompts: int) -> None:
        limit = self.options.limit
        if limit is not None and not difference <= limit:
            raise UserError(
                f"merged and unmerged differ by up to {difference:.3g} in the logits of {prompts} prompts, and the "
                f"limit is {limit:g}. The adapter does not add up with these weights, or {self.options.dtype} is too "
                "coarse: --set dtype=float32, or --set limit=… where you accept it."
            )

    def _preview(self, job: RecipeJob, few: str | None) -> RecipeResult:
        spec = job.base.spec
        configuration = load_configuration(spec, HfOptions.model_validate(spec.options), offline=job.offline)
        if hasattr(configuration, "quantization_config"):
            del configuration.quantization_config
        model = empty_model(configuration)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        needed = float(parameters * WIDTHS[self.options.dtype])
        job.report("plan", {"parameters": float(parameters), "trainable": 0.0})
        return RecipeResult(
            model_folder=write_planned(job, configuration),
            parameters=parameters,
            trainable_parameters=0,
            modules={name: (count, 0) for name, count in module_parameters(model).items()},
            needed_bytes=needed,
            loads_in=() if needed_class(model) else ("transformers",),
            needs_class=needed_class(model),
            notes=(*_made_whole(few), f"about {readable_size(needed)} for the weights in {self.options.dtype}"),
        )


def largest_difference(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Over all places of all prompts; infinite where one of them is no number."""
    largest = 0.0
    for one, other in zip(first, second, strict=True):
        found = float((one - other).abs().max())
        largest = max(largest, found) if found == found else float("inf")  # noqa: PLR0124 - a NaN is not itself
    return largest


def _check_base(job: RecipeJob) -> str | None:
    """How the base is quantised. Raises `UserError` where there is nothing to merge, or no way to."""
    spec = job.base.spec
    few = few_bits_of(job.base, offline=job.offline)
    if adapters_of(job.base, offline=job.offline) is None:
        if few is None:
            raise UserError(
                f"model {spec.name} has no adapter and its weights are whole: there is nothing to merge. Recipes that "
                "leave adapters are lora, qlora, dora and ia3."
            )
        return few
    parts = find_parts(spec, HfOptions.model_validate(spec.options), offline=job.offline)
    for adapter in parts.adapters:
        if adapter.kind == "prefix":
            raise UserError(
                f"model {spec.name} has a learned prefix ({adapter.folder.name}), which stands before the keys and "
                "values of a layer and has no weights to be merged into. It is evaluated as it is."
            )
    return few


def _made_whole(few: str | None) -> list[str]:
    return [f"the base was in {few}: its weights were made whole before the adapters were added"] if few else []


def _save(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    job: RecipeJob,
    dtype: object,
    examples: Sequence[TrainingExample],
    expected: Sequence[torch.Tensor],
) -> float:
    """Write the model in its published dtype; the largest difference that it has then."""
    import torch

    computed = model.dtype
    chosen = dtype if isinstance(dtype, torch.dtype) else computed
    save_published(model, processor, job.folder / "model", chosen)
    model.to(computed)  # type: ignore[arg-type]
    rounded = largest_difference(expected, logits_of(model, processor, examples))
    model.to(chosen)  # type: ignore[arg-type]
    return rounded
