"""What the recipes whose trained weights are keys and values before attention have in common: `prefix`, `ptuning-v2`.

Each recipe's own file says where keys and values come from; how vision, fusion and language are treated, trained and
saved is here. The result is laid out as `mhe_hf.training.adapters` says, with learned prefixes (`mhe_hf.prefixes`) in
the place of PEFT's adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe import UserError
from mhe_hf import (
    MODULES,
    PREFIX,
    architecture_of,
    attention_layers,
    module_of,
    prefix_states,
    put_prefix,
    save_published,
    take_prefixes,
    write_planned,
    write_prefix,
)
from mhe_hf.training.adapter_training import frozen_bytes, frozen_dtype, refuse_adapted_base, treatments_of
from mhe_hf.training.adapters import nothing_to_adapt, thaw, write_set
from mhe_hf.training.devices import asked_attention
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
from mhe_hf.training.modules import check_homes
from mhe_hf.training.targets import common_root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import Architecture, RecipeJob, RecipeResult
    from mhe_hf import AttentionShape
    from mhe_hf.training.adapters import AdapterTreatment
    from mhe_hf.training.modules import Shares
    from mhe_hf.training.options import TrainingOptions

    MakeSources = Callable[[Sequence[AttentionShape]], Sequence[torch.nn.Module]]
    """From the shapes of a module's attention layers to what makes their keys and values, in that order."""

NEEDED = "mhe_hf.KeysAndValues"
NOTE = "keys and values before attention, which PEFT has for causal language models alone: `mhe_hf.load_prefix`"


@dataclass(frozen=True, slots=True)
class PrefixSet:
    """Prefixes that were put on a model."""

    layers: Mapping[str, Sequence[str]]
    """Module to the dotted names of its layers with a prefix."""
    treatments: Mapping[str, AdapterTreatment]
    architecture: Architecture
    shares: Shares

    @property
    def has_full_modules(self) -> bool:
        """Whether weights of the base itself are trained."""
        return "full" in self.treatments.values()


def train_prefixes(options: TrainingOptions, job: RecipeJob, make_sources: MakeSources) -> RecipeResult:
    """Train prefixes, or with `job.dry_run` tell what would be trained.

    `options` has `vision`, `fusion`, `language` (`frozen`, `full`, `adapter`). `make_sources` is called once for each
    module that is adapted.
    """
    from transformers import set_seed

    schedule = plan_schedule(options, job)
    refuse_adapted_base(job)
    treatments = treatments_of(options)
    if job.dry_run:
        empty = empty_model(job)
        found = put_prefixes(empty, treatments, job.architectures, make_sources)
        frozen = frozen_bytes(empty, found.architecture, {}, schedule)
        places = [(module, _root(found, module)) for module in found.layers]
        planned = write_planned(job, adapters=places, kind="prefix")
        return preview_of(job, found.shares, schedule, frozen + 16 * found.shares.trainable, model_folder=planned)
    with quiet_transformers():
        # Prefixes are drawn at random when they are put on.
        set_seed(job.seed)
        # A prefix is a mask of its own, which flash attention 2 does not take: it is not chosen by itself.
        changes = {"dtype": frozen_dtype(schedule), "attn_implementation": asked_attention(options, job)}
        model, processor, own_dtype = load_base(options, job, changes)
        found = put_prefixes(model, treatments, job.architectures, make_sources)
        job.report("plan", plan_numbers(found.shares, schedule))
        fitted = fit(model, processor, options, job, schedule)
        _save(model, processor, found, job, own_dtype)
    return result_of(fitted, options, job, found.shares, schedule, loads_in=(), needs_class=NEEDED, notes=(NOTE,))


def put_prefixes(
    model: PreTrainedModel,
    treatments: Mapping[str, AdapterTreatment],
    architectures: Mapping[str, Architecture],
    make_sources: MakeSources,
) -> PrefixSet:
    """Put a prefix before each self-attention layer of the adapted modules, in place, and set what is trained.

    Raises `UserError` where no module is adapted, or one that is has no self-attention; `ModelUnusableError` for
    attention that takes no prefix.
    """
    import torch

    architecture = architecture_of(str(model.config.model_type), architectures or None)
    check_homes(model, architecture, [module for module, treatment in treatments.items() if treatment != "frozen"])
    shapes = attention_layers(model)
    homes: dict[str, list[str]] = {module: [] for module in MODULES}
    for name in shapes:
        homes[str(module_of(name, architecture))].append(name)
    layers = {module: homes[module] for module, treatment in treatments.items() if treatment == "adapter"}
    if not layers:
        raise nothing_to_adapt()
    if empty := [module for module, names in layers.items() if not names]:
        has = ", ".join(f"{module} ({len(names)} layers)" for module, names in homes.items() if names)
        raise UserError(
            f"{' and '.join(empty)} of this {architecture.model_type} model has no self-attention that a prefix could "
            f"stand before. Modules that have: {has or 'none'}. Set it to frozen or full: --set {empty[0]}=frozen"
        )
    for names in layers.values():
        # Drawn on the CPU, so that a seed is the same prefix on every device.
        device = next(model.get_submodule(names[0]).parameters()).device
        with torch.device(device if device.type == "meta" else "cpu"):
            sources = make_sources([shapes[name] for name in names])
        for name, source in zip(names, sources, strict=True):
            put_prefix(model, name, source.to(device))
    return PrefixSet(layers, treatments, architecture, thaw(model, architecture, treatments, is_prefix_weight))


def is_prefix_weight(name: str) -> bool:
    """Whether a parameter makes keys and values of a prefix, by its dotted name."""
    return f".{PREFIX}." in name


def _save(
    model: PreTrainedModel, processor: ProcessorMixin, found: PrefixSet, job: RecipeJob, dtype: torch.dtype | None
) -> None:
    """Write keys and values as they are now, and the base too where some of its own weights were trained."""
    states = prefix_states(model)
    take_prefixes(model)
    folder = job.folder / "model"
    folder.mkdir(parents=True)
    base = None if found.has_full_modules else job.base
    places = []
    for module, names in found.layers.items():
        root = _root(found, module)
        inside = len(root) + 1 if root else 0
        own = {name[inside:]: states[name] for name in names}
        write_prefix(folder / module, own, "" if base is None else base.spec.location)
        places.append({"folder": module, "module": root, "kind": "prefix"})
    if found.has_full_modules:
        save_published(model, processor, folder, dtype)
    write_set(folder, places, base)


def _root(found: PrefixSet, module: str) -> str:
    """The sub-module that a module's prefixes are saved for."""
    return common_root(found.layers[module], getattr(found.architecture, module))
