"""PEFT adapters on chosen layers, beside modules that are frozen or trained whole; saved one folder a module.

    model/
      adapters.json         the base with its fingerprint, and where each adapter belongs
      language/             adapter_config.json, adapter_model.safetensors: PEFT's own format, on the sub-module that
      vision/               adapters.json names
      config.json, …        only where a module was trained whole: the base with its trained weights

Layers are adapted in place, so that every module keeps its name while it is trained.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mhe import UserError
from mhe_hf import MODULES, architecture_of, module_of, parameter_size, save_published
from mhe_hf.training.modules import Shares, check_homes
from mhe_hf.training.targets import common_root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import torch
    from peft import IA3Config, LoraConfig
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import Architecture, InputModel

AdapterTreatment = Literal["frozen", "full", "adapter"]
ADAPTER = "default"
SET_FILE = "adapters.json"


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """Adapters that were put on a model."""

    config: LoraConfig | IA3Config
    layers: Mapping[str, Sequence[str]]
    """Module to the dotted names of its adapted layers."""
    treatments: Mapping[str, AdapterTreatment]
    architecture: Architecture
    shares: Shares

    @property
    def has_full_modules(self) -> bool:
        """Whether weights of the base itself are trained."""
        return "full" in self.treatments.values()


def put_adapters(
    model: PreTrainedModel,
    config: LoraConfig | IA3Config,
    layers: Mapping[str, Sequence[str]],
    treatments: Mapping[str, AdapterTreatment],
    architectures: Mapping[str, Architecture],
) -> AdapterSet:
    """Adapt the layers in place, and set what is trained: adapters, and modules that are `full`.

    Raises `UserError` where a module that is to be trained has no parameters, or nothing is adapted.
    """
    from peft import inject_adapter_in_model

    architecture = architecture_of(str(model.config.model_type), architectures or None)
    check_homes(model, architecture, [module for module, treatment in treatments.items() if treatment != "frozen"])
    wanted = {name for names in layers.values() for name in names}
    if not wanted:
        raise nothing_to_adapt()
    config.target_modules = sorted(wanted)
    inject_adapter_in_model(config, model, ADAPTER)
    found = set(_adapted(model))
    if found != wanted:
        raise RuntimeError(f"PEFT adapted other layers than asked for: {sorted(found ^ wanted)[:5]}")
    return AdapterSet(
        config, layers, treatments, architecture, thaw(model, architecture, treatments, is_adapter_weight)
    )


def thaw(
    model: PreTrainedModel,
    architecture: Architecture,
    treatments: Mapping[str, AdapterTreatment],
    is_added: Callable[[str], bool],
) -> Shares:
    """Set what is trained, in place: modules that are `full`, and what was added, told by its dotted name."""
    counts = {module: [0, 0] for module in MODULES}
    for name, parameter in model.named_parameters():
        module = str(module_of(name, architecture))
        is_trained = is_added(name) or treatments.get(module) == "full"
        if is_trained and not is_added(name):
            # Frozen weights may be kept in 16 bits; what is trained is not.
            parameter.data = parameter.data.float()
        parameter.requires_grad_(is_trained)
        counts[module][0] += parameter_size(parameter)
        counts[module][1] += parameter_size(parameter) if is_trained else 0
    return Shares({module: (total, trained) for module, (total, trained) in counts.items()})


def nothing_to_adapt() -> UserError:
    """The error of a step whose settings adapt no module."""
    return UserError(
        "no module is set to adapter, so there is nothing for an adapter recipe to do: "
        f"--set language=adapter, or the recipe full ({', '.join(MODULES)} are each frozen, full or adapter)."
    )


def is_adapter_weight(name: str) -> bool:
    """Whether a parameter belongs to the adapter, by its dotted name."""
    return f".{ADAPTER}" in name


def _adapted(model: torch.nn.Module) -> dict[str, Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}


def save_adapters(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    adapters: AdapterSet,
    base: InputModel,
    folder: Path,
    dtype: torch.dtype | None,
    *,
    with_base: bool = False,
) -> None:
    """Write the adapters in PEFT's format, and the base too where some of its own weights were trained.

    `with_base` writes it in any case, for one that lies nowhere else. The adapters are taken off the model for that.
    """
    from peft import get_peft_model_state_dict

    stored = get_peft_model_state_dict(model, adapter_name=ADAPTER, save_embedding_layers=False)
    stored = {name.removeprefix("base_model.model."): tensor for name, tensor in stored.items()}
    places = places_of(adapters)
    with_base = with_base or adapters.has_full_modules
    folder.mkdir(parents=True)
    for module, root in places:
        _write_adapter(
            folder / module,
            stored,
            adapters.layers[module],
            root,
            adapters.config,
            "" if with_base else base.spec.location,
        )
    for name, layer in _adapted(model).items():
        model.set_submodule(name, layer.get_base_layer())
    if with_base:
        save_published(model, processor, folder, dtype)
    about = [{"folder": module, "module": root} for module, root in places]
    write_set(folder, about, None if with_base else base)


def places_of(adapters: AdapterSet) -> list[tuple[str, str]]:
    """Folder of each adapter, and the dotted name of the sub-module that it is saved for."""
    return [
        (module, common_root(names, getattr(adapters.architecture, module)))
        for module, names in adapters.layers.items()
    ]


def write_set(folder: Path, places: Sequence[Mapping[str, str]], base: InputModel | None) -> None:
    """Write `adapters.json`: where each adapter belongs and on which base, None where that lies in the folder too."""
    about: dict[str, object] = {"adapters": places}
    if base is not None:
        about = {
            "base": base.location or base.spec.location,
            "revision": base.spec.revision,
            "base_fingerprint": base.fingerprint,
            **about,
        }
    (folder / SET_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _write_adapter(
    folder: Path,
    stored: Mapping[str, torch.Tensor],
    names: Sequence[str],
    root: str,
    config: LoraConfig | IA3Config,
    base: str,
) -> None:
    """One module's adapter; names are those inside `root`."""
    from safetensors.torch import save_file

    inside = len(root) + 1 if root else 0
    own = tuple(f"{name}." for name in names)
    tensors = {
        f"base_model.model.{name[inside:]}": tensor.detach().cpu().contiguous()
        for name, tensor in stored.items()
        if name.startswith(own)
    }
    written: Any = copy.deepcopy(config)
    written.target_modules = sorted(name[inside:] for name in names)
    if getattr(written, "feedforward_modules", None) is not None:
        kept = set(written.feedforward_modules)
        written.feedforward_modules = sorted(name[inside:] for name in names if name in kept)
    written.base_model_name_or_path = base
    written.inference_mode = True
    folder.mkdir()
    written.save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").chmod(0o644)
