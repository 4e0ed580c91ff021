"""Whether vLLM can apply a LoRA adapter to a model, found in its files before vLLM is asked.

vLLM takes an adapter whose matrices have other shapes than its base, and answers with what of it fits; it leaves out
modules outside the language model. Both are refused here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from mhe import ModelUnusableError
from mhe_hf import ARCHITECTURES, module_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM makes room for one of these."""
OTHER_TOWERS = ("vision", "visual")
"""A name with one of these in it is no part of the language model, in the spelling of any checkpoint."""
Shapes = dict[str, tuple[int, ...]]


def check_adapter(folder: Path, adapter: Path) -> int:
    """The rank to make room for, for a LoRA adapter that vLLM can apply to the model in `folder`.

    Raises `ModelUnusableError` for other methods than LoRA, DoRA, biases, modules saved whole, modules outside the
    language model, and matrices that do not fit the base.
    """
    configuration = _read_configuration(adapter)
    shapes = _read_shapes(adapter, "adapter_model.safetensors")
    modules = sorted({name.removeprefix("base_model.model.").partition(".lora_")[0] for name in shapes})
    faults = _faults_of_method(configuration)
    outside = list(_outside_language(folder, modules))
    if outside:
        faults.append(f"it adapts modules outside the language model ({', '.join(outside[:3])})")
    elif misfit := next(_misfits(folder, shapes), None):
        faults.append(f"it is of another base: {misfit}")
    rank = max((shape[0] for name, shape in shapes.items() if ".lora_A" in name), default=1)
    if rank > RANKS[-1]:
        faults.append(f"its rank is {rank}, and {RANKS[-1]} the largest that vLLM takes")
    if faults:
        raise ModelUnusableError(
            f"adapter {adapter} cannot be used by vLLM with this model: {'; '.join(faults)}.\n"
            "Merge it into its base, or use --backend hf."
        )
    return next(allowed for allowed in RANKS if allowed >= rank)


def _read_configuration(adapter: Path) -> dict[str, object]:
    place = adapter / "adapter_config.json"
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnusableError(f"adapter {adapter}: {place.name} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise ModelUnusableError(f"adapter {adapter}: {place.name} should hold a JSON object.")
    return found


def _faults_of_method(configuration: Mapping[str, object]) -> list[str]:
    faults = []
    if configuration.get("peft_type") != "LORA":
        faults.append(f"it is {configuration.get('peft_type')}, and vLLM applies LORA")
    if configuration.get("use_dora"):
        faults.append("it is DoRA")
    if configuration.get("bias", "none") != "none":
        faults.append("it trains biases")
    if configuration.get("modules_to_save"):
        faults.append("it holds whole modules (modules_to_save)")
    return faults


def _outside_language(folder: Path, modules: list[str]) -> Iterator[str]:
    model_type = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    architecture = ARCHITECTURES.get(str(model_type))
    for module in modules:
        if architecture is not None and module_of(module, architecture) != "language":
            yield module


def _misfits(folder: Path, adapter: Shapes) -> Iterator[str]:
    """What does not fit, in words. Checkpoints spell the way to a layer differently: names agree from `layers.` on."""
    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        # Packed tensors do not have the shapes of their weights.
        return
    base = {
        _from_layers(name.removesuffix(".weight")): shape
        for path in folder.glob("*.safetensors")
        for name, shape in _read_shapes(folder, path.name).items()
        if name.endswith(".weight") and not any(tower in name for tower in OTHER_TOWERS)
    }
    for name, shape in adapter.items():
        module, _, side = name.removeprefix("base_model.model.").partition(".lora_")
        known = base.get(_from_layers(module))
        if known is None:
            # An output layer that is tied to the embedding is not stored.
            if _from_layers(module) != "lm_head":
                yield f"that has no {module}"
        elif (shape[1] != known[1]) if side.startswith("A") else (shape[0] != known[0]):
            yield f"{name} is {list(shape)}, and the weight that it adapts {list(known)}"


def _from_layers(name: str) -> str:
    before, found, after = name.partition("layers.")
    return found + after if found else before.rpartition(".")[2]


def _read_shapes(folder: Path, name: str) -> Shapes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / name, framework="pt") as stored:
            return {key: tuple(stored.get_slice(key).get_shape()) for key in stored.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise ModelUnusableError(f"{folder}: {name} cannot be read: {error}") from None
