"""Recipe `ptuning-v2`: learned keys and values before those of every attention layer, trained directly.

Each self-attention layer of an adapted module sees `tokens` virtual tokens before its own, whatever stands there; their
keys and values are its trained weights, 2 x tokens x width a layer, drawn near 0. It is the recipe `prefix` without the
network that makes them. `vision`, `fusion` and `language` are each `frozen`, `full` or `adapter`; cross-attention gets
no prefix.

    mhe tune --model tiny-llava --recipe ptuning-v2 --task vqa-rad --name my-prompt --set learning_rate=1e-2

Source: Liu et al., P-Tuning v2, ACL 2022, section 3.2 (without reparameterization).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mhe_hf.training.adapters import AdapterTreatment
from mhe_hf.training.options import TrainingOptions
from mhe_tune.adapter_presets import PTUNING_V2_PRESETS
from mhe_tune.prefix_training import train_prefixes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from pydantic import BaseModel

    from mhe import RecipeJob, RecipeResult
    from mhe_hf import AttentionShape


class PtuningV2Options(TrainingOptions):
    """Options of the recipe `ptuning-v2`."""

    presets = PTUNING_V2_PRESETS

    vision: AdapterTreatment = "frozen"
    fusion: AdapterTreatment = "frozen"
    language: AdapterTreatment = "adapter"
    tokens: Annotated[int, Field(ge=1)] = 10
    """Virtual tokens before each layer."""
    spread: Annotated[float, Field(ge=0)] = 0.02
    """Standard deviation of the keys and values that training starts from."""


class PtuningV2Recipe:
    """P-tuning v2 by module."""

    Options: ClassVar[type[BaseModel]] = PtuningV2Options
    name = "ptuning-v2"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, PtuningV2Options)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained."""
        return train_prefixes(self.options, job, self._sources)

    def _sources(self, shapes: Sequence[AttentionShape]) -> list[torch.nn.Module]:
        import torch

        from mhe_hf import KeysAndValues

        def draw(shape: AttentionShape) -> torch.Tensor:
            return torch.randn(shape.heads, self.options.tokens, shape.width) * self.options.spread

        return [KeysAndValues(draw(shape), draw(shape)) for shape in shapes]
