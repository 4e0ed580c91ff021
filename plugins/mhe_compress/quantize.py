"""Recipe `quantize`: weights stored in 4 or 8 bits.

Every linear layer of the chosen modules is written in NF4, FP4 or int8 by bitsandbytes; embeddings, norms and the
output head stay as they are. The checkpoint is in transformers' own format: `from_pretrained` loads it with no option
and without mhe, where bitsandbytes is installed, and answers as the model does that is quantised while it is loaded.

    mhe tune --model my-model --recipe quantize --name my-model-nf4
    mhe tune … --set quantization=int8                            8 bits, one scale a row
    mhe tune … --set modules=[language]                           leave vision and fusion whole
    mhe tune … --set double_quant=false                           scales whole: 4.5 bits a weight for 4.13

Nothing is trained and no data is read. Weights that are in few bits already are refused, and so are adapters: merge
them first (recipe `merge`). On a CPU with AVX512-BF16 the library's 4-bit layers take inputs in multiples of 64 and
outputs in multiples of 32 alone: layers of other widths are noted, run in mhe all the same, and fail there without it.
Where a module of a model lies is known by its architecture, as for training.

Sources: NF4 and double quantisation: Dettmers et al., QLoRA, NeurIPS 2023; int8: Dettmers et al., LLM.int8(), NeurIPS
2022.
"""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from mhe import Part, RecipeResult, UserError
from mhe_hf import (
    HfOptions,
    adapters_of,
    architecture_of,
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
from mhe_hf.description import stored_bytes
from mhe_hf.quantization import quantization_of
from mhe_hf.training.fitting import quiet_transformers
from mhe_hf.training.memory import packed_bits, peak_device_bytes, peak_host_bytes, readable_size
from mhe_hf.training.targets import linear_layers

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel
    from transformers import PreTrainedModel

    from mhe import RecipeJob

PACKED_WIDTHS = (64, 32)
"""What inputs and outputs of a layer must be multiples of for bitsandbytes' 4-bit kernel of CPUs with AVX512-BF16."""
SHOWN_LAYERS = 3
NEEDED = "bitsandbytes reads the weights: pip install bitsandbytes where the checkpoint is loaded"


class QuantizeOptions(Part):
    """Options of the recipe `quantize`."""

    quantization: Literal["nf4", "fp4", "int8"] = "nf4"
    """How the weights are written."""
    double_quant: bool = True
    """Quantise the scales of nf4 and fp4 as well."""
    modules: tuple[Literal["vision", "fusion", "language"], ...] = ("vision", "fusion", "language")
    """Modules whose linear layers are written in few bits."""
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the other weights are kept in, and what nf4 and fp4 are computed in; `auto`: as the base is saved."""
    device: str = "auto"
    """Where it is done: `auto`, `cpu`, `cuda`."""

    @model_validator(mode="after")
    def _choices_agree(self) -> QuantizeOptions:
        if not self.modules:
            raise ValueError("modules is empty, so nothing would be quantised: give vision, fusion or language")
        if self.quantization == "int8" and self.double_quant and "double_quant" in self.model_fields_set:
            raise ValueError("double_quant needs quantization nf4 or fp4, and it is int8")
        return self

    def loading(self) -> dict[str, object]:
        """The options of the backend that quantise while loading."""
        return {
            "quantization": self.quantization,
            "double_quant": self.double_quant and self.quantization != "int8",
            "quantized_modules": self.modules,
            "dtype": self.compute_dtype,
            "device": self.device,
        }


class QuantizeRecipe:
    """Weights in few bits, by module."""

    Options: ClassVar[type[BaseModel]] = QuantizeOptions
    name = "quantize"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, QuantizeOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Write the weights in few bits, or with `job.dry_run` tell how many bytes they would take."""
        _refuse_few_bits_and_adapters(job)
        chosen = HfOptions.model_validate(job.base.spec.options).model_copy(update=self.options.loading())
        uneven = self._uneven_note(job, chosen)
        if job.dry_run:
            return self._preview(job, chosen, uneven)
        folder = job.folder / "model"
        # Half a model of a killed attempt.
        shutil.rmtree(folder, ignore_errors=True)
        started = time.monotonic()
        with quiet_transformers():
            model, processor = load_model(job.base.spec, chosen, offline=job.offline)
        few = sum(1 for parameter in model.parameters() if _is_packed(parameter))
        if not few:
            raise UserError(
                f"{', '.join(self.options.modules)} of this model has no linear layer: nothing to quantise."
            )
        job.report("quantise", {"step": 1, "steps": 2})
        stored = stored_bytes(model)
        with quiet_transformers():
            save_published(model, processor, folder)
        _check_description(folder, self.options)
        job.report("quantise", {"step": 2, "steps": 2})
        parameters = sum(parameter_size(parameter) for parameter in model.parameters())
        return RecipeResult(
            model_folder=folder,
            parameters=parameters,
            trainable_parameters=0,
            modules={name: (count, 0) for name, count in module_parameters(model).items()},
            seconds=time.monotonic() - started,
            peak_host_bytes=peak_host_bytes(),
            peak_device_bytes=peak_device_bytes(),
            device=str(model.device),
            loads_in=() if needed_class(model) else ("transformers",),
            needs_class=needed_class(model),
            notes=(
                f"{self._kind()} in {few:,} layers of {', '.join(self.options.modules)}",
                f"{8 * stored / parameters:.4g} bits a weight, scales included: {readable_size(stored)} of weights",
                NEEDED,
                *uneven,
            ),
        )

    def _kind(self) -> str:
        is_double = self.options.double_quant and self.options.quantization != "int8"
        return f"{self.options.quantization}{' with double quantisation' if is_double else ''}"

    def _uneven_note(self, job: RecipeJob, chosen: HfOptions) -> tuple[str, ...]:
        """What is to be said of layers that 4 bits do not run in everywhere."""
        if self.options.quantization == "int8":
            return ()
        model = empty_model(load_configuration(job.base.spec, chosen, offline=job.offline))
        found = uneven_layers(model, job, self.options)
        if not found:
            return ()
        names = [name for layers in found.values() for name in layers]
        shown = ", ".join(names[:SHOWN_LAYERS]) + (" …" if len(names) > SHOWN_LAYERS else "")
        told = (
            f"without mhe, bitsandbytes cannot run {len(names):,} layers of {', '.join(found)} on a CPU with "
            f"AVX512-BF16: it asks for inputs by {PACKED_WIDTHS[0]} and outputs by {PACKED_WIDTHS[1]} ({shown}). "
            "Prune with multiple=64, leave these modules whole, or take int8"
        )
        return (told,)

    def _preview(self, job: RecipeJob, chosen: HfOptions, uneven: tuple[str, ...]) -> RecipeResult:
        configuration = load_configuration(job.base.spec, chosen, offline=job.offline)
        model = empty_model(configuration)
        settings = quantization_of(chosen, configuration, type(model))
        bits = planned_bits(model, job, self.options)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        job.report("plan", {"parameters": float(parameters), "trainable": 0.0})
        configuration.quantization_config = settings
        return RecipeResult(
            model_folder=write_planned(job, configuration),
            parameters=parameters,
            trainable_parameters=0,
            modules={name: (count, 0) for name, count in module_parameters(model).items()},
            loads_in=() if needed_class(model) else ("transformers",),
            needs_class=needed_class(model),
            needed_bytes=bits / 8,
            notes=(
                f"{self._kind()} in {', '.join(self.options.modules)}",
                f"about {bits / parameters:.4g} bits a weight: {readable_size(bits / 8)} of weights",
                NEEDED,
                *uneven,
            ),
        )


def planned_bits(model: PreTrainedModel, job: RecipeJob, options: QuantizeOptions) -> float:
    """Bits of all weights as they will be stored, with their scales."""
    architecture = architecture_of(str(model.config.model_type), job.architectures or None)
    layers = linear_layers(model, architecture)
    packed = {f"{name}.weight" for module in options.modules for name in layers[module]}
    saved = getattr(model.config, "dtype", None)
    names = {"float32": 32.0, "bfloat16": 16.0, "float16": 16.0}
    whole = names[options.compute_dtype if options.compute_dtype != "auto" else str(saved or "float32").split(".")[-1]]
    return sum(
        packed_bits(parameter.shape, options.quantization, double_quant=options.double_quant)
        if name in packed
        else whole * parameter.numel()
        for name, parameter in model.named_parameters()
    )


def uneven_layers(model: PreTrainedModel, job: RecipeJob, options: QuantizeOptions) -> dict[str, list[str]]:
    """Layers of the chosen modules, by module and with their widths, that the packed kernel of CPUs cannot take."""
    import torch

    architecture = architecture_of(str(model.config.model_type), job.architectures or None)
    layers = linear_layers(model, architecture)
    found: dict[str, list[str]] = {}
    for module in options.modules:
        for name in layers[module]:
            layer = model.get_submodule(name)
            assert isinstance(layer.weight, torch.nn.Parameter)
            # GPT-2 keeps its layers turned; quantised they are as everyone else's.
            shape = tuple(layer.weight.shape)
            width, outputs = (shape[1], shape[0]) if isinstance(layer, torch.nn.Linear) else shape
            if width % PACKED_WIDTHS[0] or outputs % PACKED_WIDTHS[1]:
                found.setdefault(module, []).append(f"{name}: {width} to {outputs}")
    return found


def _is_packed(parameter: object) -> bool:
    return getattr(parameter, "quant_state", None) is not None or getattr(parameter, "SCB", None) is not None


def _refuse_few_bits_and_adapters(job: RecipeJob) -> None:
    spec = job.base.spec
    base = adapters_of(job.base, offline=job.offline)
    if base is not None:
        raise UserError(
            f"model {spec.name} is an adapter on {base}: put it into the weights first, then quantise the result.\n"
            f"mhe tune --model {spec.name} --recipe merge --name {spec.name}-merged"
        )
    few = few_bits_of(job.base, offline=job.offline)
    if few is not None:
        raise UserError(
            f"model {spec.name} is quantised already ({few}), and quantising twice only loses more. Start from the "
            f"model it was quantised from, or make its weights whole: mhe tune --model {spec.name} --recipe merge"
        )


def _check_description(folder: Path, options: QuantizeOptions) -> None:
    """Fail loudly where the library wrote no description, for then the bytes would be read as whole weights."""
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" not in written:
        raise RuntimeError(f"{folder}: config.json does not say that the weights are {options.quantization}")
