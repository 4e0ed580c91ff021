"""A checkpoint of adapters (`adapters.json`), as vLLM wants it: a base, and one LoRA in the whole model's names.

Each adapter of such a checkpoint names layers inside its sub-module, so that PEFT loads it there; vLLM looks layers up
in the whole model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import ModelUnusableError
from mhe_hf import HfOptions, find_parts

if TYPE_CHECKING:
    from mhe import ModelSpec

SET_FILE = "adapters.json"
PREFIX = "base_model.model."
CONFIGURATION = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class SetAdapter:
    """The one adapter of a checkpoint of adapters."""

    base: ModelSpec
    folder: Path
    module: str
    """Dotted name of the sub-module that the adapter's names start from; empty for the whole model."""


def find_set(spec: ModelSpec, *, offline: bool) -> SetAdapter | None:
    """The adapter of a checkpoint of adapters; None for any other model.

    Raises `ModelUnusableError` where there are several, as vLLM applies one, and where the base is not to be had.
    """
    if not (Path(spec.location).expanduser() / SET_FILE).is_file():
        return None
    parts = find_parts(spec, HfOptions(), offline=offline)
    assert parts.adapter_set is not None
    if len(parts.adapters) != 1:
        names = ", ".join(adapter.folder.name for adapter in parts.adapters)
        raise ModelUnusableError(
            f"model {spec.name}: it consists of {len(parts.adapters)} adapters ({names}), and vLLM applies one, to the "
            "language model.\nUse --backend hf."
        )
    (adapter,) = parts.adapters
    if adapter.kind != "peft":
        raise ModelUnusableError(
            f"model {spec.name}: its adapter is a learned {adapter.kind}, which vLLM cannot apply.\nUse --backend hf."
        )
    base = spec.model_copy(update={"location": parts.adapter_set.base, "revision": parts.adapter_set.revision})
    return SetAdapter(base, adapter.folder, adapter.module)


def write_renamed(adapter: SetAdapter, folder: Path) -> Path:
    """Write the adapter into `folder` with the names of the whole model, for vLLM to read."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    inside = f"{adapter.module}." if adapter.module else ""
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as stored:
        tensors = {
            f"{PREFIX}{inside}{name.removeprefix(PREFIX)}": stored.get_tensor(name)
            for name in stored.keys()  # noqa: SIM118 - it is no mapping
        }
    configuration = json.loads((adapter.folder / CONFIGURATION).read_text(encoding="utf-8"))
    targets = configuration.get("target_modules")
    if isinstance(targets, list):
        configuration["target_modules"] = [f"{inside}{name}" for name in targets]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIGURATION).write_text(json.dumps(configuration), encoding="utf-8")
    return folder
