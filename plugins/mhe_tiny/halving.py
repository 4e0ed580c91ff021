"""Weights kept as float16 under a configuration that says float32.

A model in the package is half as large, and loads as float32 in transformers and in vLLM: both read the type from the
configuration and convert. float16 keeps eleven bits of a number where bfloat16 keeps eight, and no weight of a small
model is beyond its range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def halve_weights(folder: Path) -> None:
    """Rewrite the folder's `model.safetensors` as float16, by rename.

    Raises `ValueError` for a weight that float16 cannot hold.
    """
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = folder / "model.safetensors"
    with safe_open(path, framework="pt") as stored:
        weights = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 - no mapping
        metadata = stored.metadata()
    halved = {}
    for name, weight in weights.items():
        halved[name] = weight.to(torch.float16) if weight.is_floating_point() else weight
        if not bool(torch.isfinite(halved[name]).all()):
            raise ValueError(f"{name} of {path} has values beyond float16")
    draft = path.with_suffix(".tmp")
    save_file(halved, draft, metadata=metadata)
    draft.chmod(0o644)
    draft.replace(path)
