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


@hookimpl
def register_models() -> Sequence[ModelSpec]:
    """The trained models that lie in this package."""
    from mhe import ModelSpec

    return [
        ModelSpec(
            name="tiny-llava",
            backend="hf",
            location="package:mhe_tiny/models/tiny-llava",
            summary="LLaVA's classes at 1.6 million parameters, trained on phantoms; knows nothing of medicine",
            licence="Apache-2.0",
        )
    ]
