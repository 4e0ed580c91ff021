"""A trained model as it is published: its dtype, its key names, its processor beside it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, ProcessorMixin

# The published checkpoints have the wrapper class of CLIP in the name; vLLM reads only that spelling, and transformers
# reads both.
_CLIP_NAMES = ((r"^(model\.)?vision_tower\.(?!vision_model\.)", r"\1vision_tower.vision_model."),)
PUBLISHED_NAMES: Mapping[str, tuple[tuple[str, str], ...]] = {"llava": _CLIP_NAMES, "llava_next": _CLIP_NAMES}


USUAL_SHARD_GB = 50.0
"""Largest file of weights where nothing else is asked for: the library's own."""


def save_published(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    max_shard_gb: float = USUAL_SHARD_GB,
) -> None:
    """Write weights as safetensors in the published key names, configuration, tokenizer and processor.

    `dtype` is that of the checkpoint the training started from: what was frozen comes back bit for bit.
    """
    if dtype is not None and dtype != model.dtype:
        model = model.to(dtype)  # type: ignore[arg-type]
    _forget_unpacking(model)
    model.save_pretrained(folder, max_shard_size=int(max_shard_gb * 10**9))
    processor.save_pretrained(folder)
    rules = PUBLISHED_NAMES.get(str(model.config.model_type), ())
    vision = getattr(model.config, "vision_config", None)
    if rules and getattr(vision, "model_type", "") == "clip_vision_model":
        _rename(folder, rules)
    for path in folder.glob("*.safetensors"):
        # The library writes weights for the owner alone; a model is there to be read.
        path.chmod(0o644)


def _forget_unpacking(model: PreTrainedModel) -> None:
    """Keep the library from undoing, in what is saved, how it read weights of few bits: it knows no way to."""
    kept = getattr(model, "_weight_conversions", None)
    if kept is None:
        return
    setattr(model, "_weight_conversions", [step for step in kept if _is_reversible(step)])  # noqa: B010 - torch types it as a module


def _is_reversible(step: object) -> bool:
    try:
        step.reverse_transform()  # type: ignore[attr-defined]
    except NotImplementedError:
        return False
    return True


def _rename(folder: Path, rules: tuple[tuple[str, str], ...]) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    def published(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            names = list(stored.keys())
            if all(published(name) == name for name in names):
                continue
            tensors = {published(name): stored.get_tensor(name) for name in names}
            metadata = stored.metadata()
        draft = path.with_suffix(".tmp")
        save_file(tensors, draft, metadata=metadata)
        draft.replace(path)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        content["weight_map"] = {published(name): place for name, place in content["weight_map"].items()}
        index.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
