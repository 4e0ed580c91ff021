"""Recipe `export`: a folder for others: published key names, a model card, and proof that it loads without mhe.

    mhe tune --model my-merged --recipe export --name my-model
    mhe tune … --set dtype=bfloat16                whole weights in this dtype
    mhe tune … --set max_shard_gb=2                several files, none larger
    mhe tune … --set vllm=require                  fail where vLLM cannot be asked

The folder is `checkpoints/NAME/SEED/model`. The key names are those of the published checkpoints, which transformers
and vLLM read alike. The folder is loaded in a fresh process by plain transformers, where a weight too few or too
many, or any module of mhe, is an error, and its logits are compared with those of the model that was exported. Where
vLLM is installed and has the architecture, it answers one prompt in another process, and the tokens are compared with
those of transformers. Nothing is trained and no data is read.

Adapters are refused: merge them, or hand on PEFT's folder as it is. So is a model that needs a class of mhe: no plain
folder can say what it is.
"""

from __future__ import annotations

import shutil
import time
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mhe import Part, RecipeResult, UserError
from mhe_compress.export_card import render_export_card
from mhe_compress.export_checks import check_in_transformers, check_in_vllm
from mhe_hf import (
    HfOptions,
    adapters_of,
    empty_model,
    few_bits_of,
    load_configuration,
    load_model,
    module_parameters,
    needed_class,
    parameter_size,
    save_published,
    write_planned,
)
from mhe_hf.training.fitting import quiet_transformers
from mhe_hf.training.memory import peak_device_bytes, peak_host_bytes, readable_size

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mhe import RecipeJob

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class ExportOptions(Part):
    """Options of the recipe `export`."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What whole weights are written in; `auto`: as the model is saved."""
    max_shard_gb: Annotated[float, Field(gt=0)] = 5.0
    """Largest file of weights."""
    vllm: Literal["auto", "require", "skip"] = "auto"
    """Ask vLLM as well: where it is installed and has the architecture, in any case, or never."""
    prompts: Annotated[int, Field(ge=1)] = 2
    """Drawn prompts on which the logits are compared."""
    limit: Annotated[float, Field(ge=0)] = 1e-3
    """Largest difference in logits between the model and what a fresh process loads."""
    title: str | None = None
    """Heading of the card; the model's name where empty."""


class ExportRecipe:
    """A plain folder with a card."""

    Options: ClassVar[type[BaseModel]] = ExportOptions
    name = "export"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, ExportOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Write and check the folder, or with `job.dry_run` tell its size."""
        few = _check_base(job)
        spec = job.base.spec
        chosen = HfOptions.model_validate(spec.options)
        configuration = load_configuration(spec, chosen, offline=job.offline)
        if self.options.dtype != "auto" and few is not None:
            raise UserError(f"model {spec.name} is in {few}, which has its own dtype: leave dtype=auto.")
        if (needed := needed_class(empty_model(configuration))) is not None:
            raise UserError(
                f"model {spec.name} needs the class {needed}, so that nothing loads it without mhe. Prune it with "
                "only_plain=true for a model that plain transformers can express."
            )
        if job.dry_run:
            return self._preview(job)
        folder = job.folder / "model"
        # Half a model of a killed attempt.
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        with quiet_transformers():
            model, processor = load_model(
                spec, chosen.model_copy(update={"dtype": self.options.dtype}), offline=job.offline
            )
            save_published(model, processor, folder, max_shard_gb=self.options.max_shard_gb)
            job.report("export", {"step": 1, "steps": 3})
            difference = check_in_transformers(model, processor, folder, self.options.prompts, self.options.limit)
        job.report("export", {"step": 2, "steps": 3})
        in_vllm = None if self.options.vllm == "skip" else check_in_vllm(model, processor, folder)
        if self.options.vllm == "require" and (in_vllm is None or not in_vllm.is_loaded):
            raise UserError(f"vLLM was to be asked: {in_vllm.told if in_vllm else 'it was not'}")
        job.report("export", {"step": 3, "steps": 3})
        loads_in = ("transformers", "vllm") if in_vllm is not None and in_vllm.is_loaded else ("transformers",)
        notes = [f"loaded by plain transformers in a fresh process; largest difference in logits {difference:.2g}"]
        notes += [in_vllm.told] if in_vllm is not None else []
        notes += ["bitsandbytes is needed to load it"] if few else []
        parameters = sum(parameter_size(parameter) for parameter in model.parameters())
        card = render_export_card(
            job, self.options.title or spec.name, parameters, type(model).__name__, str(model.dtype), few, notes
        )
        (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
        return RecipeResult(
            model_folder=folder,
            parameters=parameters,
            trainable_parameters=0,
            modules={name: (count, 0) for name, count in module_parameters(model).items()},
            seconds=time.monotonic() - started,
            peak_host_bytes=peak_host_bytes(),
            peak_device_bytes=peak_device_bytes(),
            device=str(model.device),
            loads_in=loads_in,
            notes=tuple(notes),
        )

    def _preview(self, job: RecipeJob) -> RecipeResult:
        spec = job.base.spec
        configuration = load_configuration(spec, HfOptions.model_validate(spec.options), offline=job.offline)
        model = empty_model(configuration)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        saved = str(getattr(configuration, "dtype", None) or "float32").split(".")[-1]
        size = float(parameters * BYTES[self.options.dtype if self.options.dtype != "auto" else saved])
        job.report("plan", {"parameters": float(parameters), "trainable": 0.0})
        return RecipeResult(
            model_folder=write_planned(job, configuration),
            parameters=parameters,
            trainable_parameters=0,
            modules={name: (count, 0) for name, count in module_parameters(model).items()},
            needed_bytes=size,
            loads_in=("transformers",),
            notes=(f"about {readable_size(size)} on disk where no weight is in few bits",),
        )


def _check_base(job: RecipeJob) -> str | None:
    """How the weights are stored. Raises `UserError` for adapters and for weights that are quantised while loading."""
    spec = job.base.spec
    base = adapters_of(job.base, offline=job.offline)
    if base is not None:
        raise UserError(
            f"model {spec.name} is an adapter on {base}. Put it into the weights first: "
            f"mhe tune --model {spec.name} --recipe merge --name {spec.name}-merged. "
            f"Or hand on its own folder, which PEFT reads: {spec.location}"
        )
    if HfOptions.model_validate(spec.options).quantization != "none":
        raise UserError(
            f"model {spec.name} is quantised while it is loaded, and its weights are whole on disk: store them in few "
            f"bits first: mhe tune --model {spec.name} --recipe quantize"
        )
    return few_bits_of(job.base, offline=job.offline)
