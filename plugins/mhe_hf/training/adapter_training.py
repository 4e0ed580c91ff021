"""What the recipes whose trained weights are PEFT adapters have in common: `lora`, `qlora`, `dora`, `ia3`.

Each recipe's own file says which adapter; how vision, fusion and language are treated, trained and saved is here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import UserError
from mhe_hf import MODULES, adapters_of, write_planned
from mhe_hf.training.adapters import places_of, put_adapters, save_adapters
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
from mhe_hf.training.memory import packed_bits
from mhe_hf.training.targets import choose_targets, linear_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from peft import IA3Config, LoraConfig
    from transformers import PreTrainedModel

    from mhe import Architecture, RecipeJob, RecipeResult
    from mhe_hf.training.adapters import AdapterSet, AdapterTreatment
    from mhe_hf.training.fitting import Schedule
    from mhe_hf.training.options import TrainingOptions

    MakeConfig = Callable[[PreTrainedModel, Mapping[str, Sequence[str]]], LoraConfig | IA3Config]
    """From the model and its chosen layers, by module, to PEFT's configuration."""


def train_adapters(
    options: TrainingOptions,
    job: RecipeJob,
    make_config: MakeConfig,
    *,
    quantization: Mapping[str, object] | None = None,
    usual_targets: Callable[[PreTrainedModel, str, RecipeJob], tuple[str, ...]] | None = None,
) -> RecipeResult:
    """Train adapters, or with `job.dry_run` tell what would be trained.

    `options` has `vision`, `fusion`, `language` (`frozen`, `full`, `adapter`) and `…_targets` of each. `quantization`
    are options of the backend `hf` that the base is loaded with, and the result too. `usual_targets` (of a
    model, a module and the job) names the layers where a recipe's `…_targets` may be empty.
    """
    from transformers import set_seed

    schedule = plan_schedule(options, job)
    refuse_adapted_base(job)
    loaded_with = dict(quantization or {})
    if job.dry_run:
        empty = empty_model(job, is_quantised_anew=bool(loaded_with))
        adapters = _adapted(empty, options, job, make_config, usual_targets)
        frozen = frozen_bytes(empty, adapters.architecture, loaded_with, schedule)
        return preview_of(
            job,
            adapters.shares,
            schedule,
            frozen + 16 * adapters.shares.trainable,
            model_folder=write_planned(job, adapters=places_of(adapters)),
            model_options=loaded_with,
        )
    with quiet_transformers():
        # Adapters are drawn at random when they are put on.
        set_seed(job.seed)
        model, processor, own_dtype = load_base(options, job, {**loaded_with, "dtype": frozen_dtype(schedule)})
        _keep_gradients(model)
        adapters = _adapted(model, options, job, make_config, usual_targets)
        job.report("plan", plan_numbers(adapters.shares, schedule))
        # Without it transformers' Trainer takes a quantised model with adapters in place for one without.
        model._hf_peft_config_loaded = bool(loaded_with)
        fitted = fit(model, processor, options, job, schedule)
        model._hf_peft_config_loaded = False
        save_adapters(model, processor, adapters, job.base, job.folder / "model", own_dtype)
    return result_of(
        fitted,
        options,
        job,
        adapters.shares,
        schedule,
        loads_in=("transformers", "peft") if adapters.has_full_modules else ("peft",),
        model_options=loaded_with,
    )


def refuse_adapted_base(job: RecipeJob) -> None:
    """Raises `UserError` for a base that is an adapter itself: a result names one base and what lies on it."""
    spec = job.base.spec
    base = adapters_of(job.base, offline=job.offline)
    if base is not None:
        raise UserError(
            f"model {spec.name} is an adapter on {base}, and an adapter on an adapter cannot be saved. Start from "
            f"--model {base}; or train {spec.name} further with the recipe full, which adds the adapter to the weights "
            "first; or put it into the weights with the recipe merge, and start from the result."
        )


def treatments_of(options: TrainingOptions) -> dict[str, AdapterTreatment]:
    """Module to `frozen`, `full` or `adapter`."""
    return {module: getattr(options, module) for module in MODULES}


def _adapted(
    model: PreTrainedModel,
    options: TrainingOptions,
    job: RecipeJob,
    make_config: MakeConfig,
    usual_targets: Callable[[PreTrainedModel, str, RecipeJob], tuple[str, ...]] | None,
) -> AdapterSet:
    treatments = treatments_of(options)
    wanted: dict[str, tuple[str, ...]] = {}
    for module, treatment in treatments.items():
        if treatment == "adapter":
            named = getattr(options, f"{module}_targets")
            wanted[module] = named or (usual_targets(model, module, job) if usual_targets else ())
    layers = choose_targets(model, wanted, job.architectures)
    return put_adapters(model, make_config(model, layers), layers, treatments, job.architectures)


def _keep_gradients(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first validation on a CPU with bfloat16.

    The repacked layers have no gradient: what lies below them would stop learning, with no more than a warning.
    """
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def frozen_dtype(schedule: Schedule) -> str:
    """What weights that are not trained are kept in: as they are computed with, where that is 16 bits on a GPU."""
    import torch

    if not torch.cuda.is_available():
        return "float32"
    return {"bf16": "bfloat16", "fp16": "float16"}.get(schedule.precision, "float32")


def frozen_bytes(
    model: PreTrainedModel, architecture: Architecture, quantization: Mapping[str, object], schedule: Schedule
) -> float:
    """Memory of the weights that are not trained: linear layers of quantised modules in few bits, the rest whole."""
    whole = 32.0 if frozen_dtype(schedule) == "float32" else 16.0
    modules = quantization.get("quantized_modules", ())
    assert isinstance(modules, tuple)
    layers = linear_layers(model, architecture) if modules else {}
    packed = {f"{name}.weight" for module in modules for name in layers[module]}
    kind, double_quant = str(quantization.get("quantization")), bool(quantization.get("double_quant"))
    return (
        sum(
            packed_bits(parameter.shape, kind, double_quant=double_quant)
            if name in packed
            else whole * parameter.numel()
            for name, parameter in model.named_parameters()
            if not parameter.requires_grad
        )
        / 8
    )
