"""Small models of the real architectures, trained from nothing on phantoms: the embedded default.

Nothing heavy is imported here; `mhe_tiny.build` and `mhe_tiny.train` make the models.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mhe import hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import ModelSpec

MODELS = Path(__file__).parent / "models"


_SUMMARIES = {
    "tiny-blip": "BLIP for captions, trained on the source phantoms",
    "tiny-blip-vqa": "BLIP for question answering (MISS's architecture), trained on the source phantoms",
    "tiny-blip2": "BLIP-2's classes, trained on the source phantoms",
    "tiny-llava": "LLaVA's classes at 1.6 million parameters, trained on phantoms",
    "tiny-llava-base": "LLaVA's classes, trained on the source phantoms",
    "tiny-llava-next": "LLaVA-NeXT's classes with Mistral, trained on the source phantoms",
    "tiny-mllama": "Llama-3.2-Vision's classes, trained on the source phantoms",
    "tiny-qwen2-vl": "Qwen2-VL's classes, trained on the source phantoms",
    "tiny-visiongpt2": "ViT and GPT-2 for captions, trained on the source phantoms",
}


@hookimpl
def register_models() -> Sequence[ModelSpec]:
    """The trained models that lie in this package."""
    from mhe import ModelSpec

    return [
        ModelSpec(
            name=name,
            backend="hf",
            location=f"package:mhe_tiny/models/{name}",
            summary=f"{summary}; knows nothing of medicine",
            licence="Apache-2.0",
        )
        for name, summary in _SUMMARIES.items()
        if (MODELS / name / "model.safetensors").is_file()
    ]
