"""Recipe `prefix`: learned keys and values before those of every attention layer, made by a small network.

Each self-attention layer of an adapted module sees `tokens` virtual tokens before its own, whatever stands there. Their
keys and values come from one embedding of the module, E of shape (tokens, width), through two linear layers,

    [K_l, V_l] = W_l tanh(W E + b) + b_l        for layer l,

which are needed only to train: what is saved are the keys and values themselves. `ptuning-v2` trains those directly,
with far fewer parameters. `vision`, `fusion` and `language` are each `frozen`, `full` or `adapter`; cross-attention
gets no prefix.

    mhe tune --model tiny-llava --recipe prefix --task vqa-rad --name my-prefix --set learning_rate=1e-3
    mhe tune … --set tokens=10 --set projection_width=512

Source: Li and Liang, Prefix-Tuning, ACL 2021, sections 4.2 and 4.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from mhe_hf.training.adapters import AdapterTreatment
from mhe_hf.training.options import TrainingOptions
from mhe_tune.adapter_presets import PREFIX_PRESETS
from mhe_tune.prefix_training import train_prefixes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from pydantic import BaseModel

    from mhe import RecipeJob, RecipeResult
    from mhe_hf import AttentionShape


class PrefixOptions(TrainingOptions):
    """Options of the recipe `prefix`."""

    presets = PREFIX_PRESETS

    vision: AdapterTreatment = "frozen"
    fusion: AdapterTreatment = "frozen"
    language: AdapterTreatment = "adapter"
    tokens: Annotated[int, Field(ge=1)] = 30
    """Virtual tokens before each layer."""
    projection_width: Annotated[int | None, Field(ge=1)] = None
    """Of the network between embedding and keys; as wide as a layer's keys where empty."""


class PrefixRecipe:
    """Prefix tuning by module."""

    Options: ClassVar[type[BaseModel]] = PrefixOptions
    name = "prefix"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, PrefixOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained."""
        return train_prefixes(self.options, job, self._sources)

    def _sources(self, shapes: Sequence[AttentionShape]) -> list[torch.nn.Module]:
        from mhe_tune.prefix_projection import ProjectedPrefix, VirtualTokens

        width = shapes[0].heads * shapes[0].width
        shared = VirtualTokens(self.options.tokens, width, self.options.projection_width or width)
        return [ProjectedPrefix(shared, shape) for shape in shapes]
