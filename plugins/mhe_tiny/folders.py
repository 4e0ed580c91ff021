"""A model's folder in the published format: what transformers and vLLM load as any other checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

WEIGHTS = "model.safetensors"
_WRITTEN = "vision_tower."
_PUBLISHED = "vision_tower.vision_model."


def save_model(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write weights (float32, one safetensors file), configuration, tokenizer, processor and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    _spell_as_published(folder / WEIGHTS)


def published_key(key: str) -> str:
    """Return a tensor's name as published checkpoints spell it."""
    if key.startswith(_WRITTEN) and not key.startswith(_PUBLISHED):
        return key.replace(_WRITTEN, _PUBLISHED, 1)
    return key


def _spell_as_published(path: Path) -> None:
    """Rename the vision tower's keys to the spelling of published checkpoints.

    transformers 5 reads both spellings and writes `vision_tower.encoder`; vLLM knows only
    `vision_tower.vision_model.encoder`.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    renamed = {published_key(key): value for key, value in tensors.items()}
    save_file(renamed, path, metadata={"format": "pt"})
    # The library writes for the owner alone; a package is read by everyone.
    path.chmod(0o644)
