"""Which files vLLM is given, and what they hold, found without vLLM."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import Fingerprint, ModelUnusableError, digest_of, fingerprint_folder
from mhe_hf import HfOptions, check_folder, find_location, find_parts, fingerprint_of, fingerprint_parts
from mhe_vllm.adapter_sets import find_set

if TYPE_CHECKING:
    from mhe import ModelSpec
    from mhe_vllm.options import VllmOptions

NEEDED_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py", "*.tiktoken")
"""Of a hub model; its pickles are left there."""


def fingerprint(spec: ModelSpec, options: VllmOptions, *, offline: bool) -> Fingerprint:
    """Which weights exactly, the adapter's among them. Raises `ModelUnusableError`."""
    if find_set(spec, offline=offline) is not None:
        if options.adapter is not None:
            raise ModelUnusableError(
                f"model {spec.name} is an adapter itself, and vLLM applies one: leave out --set backend.adapter."
            )
        return fingerprint_parts(find_parts(spec, HfOptions(), offline=offline), 0)
    location = find_location(spec, offline=offline)
    if options.adapter is None:
        return fingerprint_of(location)
    adapter = Path(options.adapter).expanduser()
    if location.folder is not None:
        return fingerprint_folder(location.folder, extra_folders=[adapter])
    base, added = fingerprint_of(location), fingerprint_folder(adapter)
    return Fingerprint(
        digest=digest_of([base.digest, added.digest]),
        verified=True,
        files={f"1/{name}": digest for name, digest in added.files.items()},
    )


def find_folder(spec: ModelSpec, *, offline: bool) -> Path:
    """The folder with the model's files, of a checkpoint of adapters those of its base.

    Fetched from the hub where it is a hub model. Raises `ModelUnusableError`.
    """
    of_set = find_set(spec, offline=offline)
    location = find_location(spec if of_set is None else of_set.base, offline=offline)
    folder = location.folder
    if folder is None:
        from huggingface_hub import snapshot_download

        try:
            copied = snapshot_download(
                str(location.repo),
                revision=location.commit,
                allow_patterns=list(NEEDED_FILES),
                local_files_only=offline,
            )
        except Exception as error:
            raise ModelUnusableError(
                f"model {spec.name}: its files cannot be had ({type(error).__name__}: {error}).\n"
                f"Once, with a network: hf download {location.repo}"
            ) from error
        folder = Path(copied)
    check_folder(folder, allow_pickle=False)
    return folder


def saved_dtype(folder: Path) -> str | None:
    """The dtype that the configuration names; None where it names none."""
    configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = configuration.get("text_config") or {}
    for place in (configuration, text):
        found = place.get("dtype") or place.get("torch_dtype")
        if isinstance(found, str):
            return found.removeprefix("torch.")
    return None


def count_parameters(folder: Path) -> tuple[int, float] | None:
    """Parameters in the folder's safetensors files and bits per weight; None of a checkpoint saved quantised, whose
    tensors hold several weights in one number.
    """
    from safetensors import safe_open

    if "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8")):
        return None
    count = bits = 0
    for path in _weight_files(folder):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 - it is no mapping
                # The head of the file tells; no weight is read.
                part = stored.get_slice(name)
                numbers = math.prod(part.get_shape())
                count += numbers
                bits += numbers * int("".join(filter(str.isdigit, part.get_dtype().partition("_")[0])) or 8)
    return (count, round(bits / count, 4)) if count else None


def _weight_files(folder: Path) -> list[Path]:
    """The files of transformers' format; some publishers lay the same weights beside them in another."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return sorted({folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
