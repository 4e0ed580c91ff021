"""What a step would leave, written before any step ran: the configuration of its result, without weights.

The next step of a pipeline is planned on it, on the meta device and so at any size. Where the base itself is such a
shape, or its weights are not on this machine, its options have `random_weights`, and its configuration is the one
beside it or the one that is bundled under its name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mhe_hf.adapter_sets import PEFT_KIND, SET_FILE
from mhe_hf.loading import load_configuration
from mhe_hf.options import HfOptions
from mhe_hf.parts import ADAPTER_FILE, base_of_adapters
from mhe_hf.quantization import stored_quantization

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedConfig

    from mhe import InputModel, RecipeJob

LARGEST_COPY = 64 * 2**20
"""Bytes of a file beside the weights; a larger one is none of a tokenizer's or processor's."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".msgpack", ".h5")


def write_planned(
    job: RecipeJob,
    configuration: PreTrainedConfig | None = None,
    *,
    adapters: Sequence[tuple[str, str]] = (),
    kind: str = PEFT_KIND,
) -> Path:
    """Write the shape of a dry run's result into `job.folder / "model"`, and return that folder.

    `configuration` is the result's, the base's own where left out; `adapters` are (folder, module) of those that the
    result is on top of it. Tokenizer and processor are copied where they lie beside the base.
    """
    spec = job.base.spec
    if configuration is None:
        configuration = load_configuration(spec, HfOptions.model_validate(spec.options), offline=job.offline)
    folder = job.folder / "model"
    folder.mkdir(parents=True, exist_ok=True)
    source = Path(spec.location)
    if source.is_dir():
        for path in sorted(source.iterdir()):
            if path.is_file() and _is_copied(path):
                shutil.copyfile(path, folder / path.name)
    configuration.save_pretrained(folder)
    if adapters:
        places = [{"folder": name, "module": module, "kind": kind} for name, module in adapters]
        (folder / SET_FILE).write_text(json.dumps({"adapters": places}) + "\n", encoding="utf-8")
    return folder


def _is_copied(path: Path) -> bool:
    kept_out = {"config.json", SET_FILE, ADAPTER_FILE, "model.safetensors.index.json"}
    return path.suffix not in _WEIGHTS and path.name not in kept_out and path.stat().st_size <= LARGEST_COPY


def few_bits_of(base: InputModel, *, offline: bool = False) -> str | None:
    """How the weights of a recipe's base are quantised (`nf4`, `fp4`, `int8`), on disk or while loading; else None."""
    options = HfOptions.model_validate(base.spec.options)
    if options.quantization != "none":
        return options.quantization
    return stored_quantization(load_configuration(base.spec, options, offline=offline))


def adapters_of(base: InputModel, *, offline: bool = False) -> str | None:
    """Where the weights lie that the adapters of a recipe's base are on; None for a base without adapters."""
    return base_of_adapters(base.spec, HfOptions.model_validate(base.spec.options), offline=offline)
