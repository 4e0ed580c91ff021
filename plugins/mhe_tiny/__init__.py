"""Small models of the real architectures, trained from nothing on phantoms: the embedded default.

Nothing heavy is imported here; `mhe_tiny.build` and `mhe_tiny.train` make the models.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mhe import ModelSpec, hookimpl

MODELS = Path(__file__).parent / "models"


@hookimpl
def register_models() -> Sequence[ModelSpec]:
    """The trained models that lie in this package."""
    return [
        ModelSpec(
            name="tiny-llava",
            backend="hf",
            location=str(MODELS / "tiny-llava"),
            summary="LLaVA's classes at 1.6 million parameters, trained on phantoms; knows nothing of medicine",
            licence="Apache-2.0",
        )
    ]
