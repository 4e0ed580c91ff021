"""Options of the recipe `prune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mhe import Part, Preset
from mhe_compress.scan_results import LayerScan, read_scan
from mhe_hf.training.presets import checked_preset, with_preset

Ratio = Annotated[float, Field(ge=0, lt=1)]

PRESETS: Mapping[str, Preset] = {
    "neto2025-prune": Preset(
        source="Neto et al., QLoRA, distillation and pruning on ROCOv2, section III, model pruning",
        values={"heads": 0.3, "neurons": 0.3, "vision_heads": 0.0, "vision_neurons": 0.0, "pattern": "structured"},
        notes="30 % of the attention heads and 30 % of the feed-forward neurons, the same in every layer. The paper "
        "does not say how it tells which matter, nor whether the image encoder is pruned: by magnitude, and no, are "
        "our reading.",
    ),
}


class PruneOptions(Part):
    """What leaves, and how it is chosen."""

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    # Neutral, because all values it stands for are recorded and digested themselves.
    preset: Annotated[str | None, Field(json_schema_extra={"answer_neutral": True})] = None
    """Values of a paper, below everything that is set besides."""
    heads: Ratio = 0.3
    """Share of the language model's attention heads that leaves; cross-attention and BLIP's joint encoder are counted
    with the language model."""
    neurons: Ratio = 0.3
    """Share of its feed-forward neurons that leaves."""
    vision_heads: Ratio = 0.0
    """Share of the image encoder's heads."""
    vision_neurons: Ratio = 0.0
    """Share of its neurons."""
    importance: Literal["magnitude", "activation", "taylor"] = "magnitude"
    """By weights alone; by weights and what flows through them; or by the change of the loss to first order. The last
    two need calibration samples: a task."""
    calibration: Annotated[int, Field(ge=1)] = 64
    """How many training samples are looked at, drawn by the seed."""
    groups: Literal["auto", "within", "whole"] = "auto"
    """With grouped-query attention: equally many heads leave each group, or whole groups leave; `auto` takes what comes
    nearer to the ratio."""
    multiple: Annotated[int | None, Field(ge=1)] = None
    """Feed-forward widths are multiples of this; where empty of 64, which kernels and 4-bit layers on a CPU want, or of
    8 in layers of fewer than 1,024 neurons."""
    only_plain: bool = False
    """Saves nothing that needs a class of ours: what no configuration can say stays, with its weights set to zero."""
    scan: Annotated[LayerScan | None, BeforeValidator(read_scan)] = None
    """A file that `mhe scan-layers` wrote: layers that the loss does not need lose more, others less."""
    scan_spread: Annotated[float, Field(ge=0, le=1)] = 0.5
    """How far the ratio of a layer may go from the mean, as a share of it."""
    parameters: Annotated[float | None, Field(gt=0)] = None
    """A budget in place of ratios: the parameters of the whole model afterwards, or below 1 their share. Heads and
    neurons of all layers are ranked together; a ratio of 0 keeps its kind whole."""
    latency: Annotated[float | None, Field(gt=0, lt=1)] = None
    """A budget in place of ratios: the share of the time for a token at batch 1, estimated from timings on this
    device."""
    most: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """With a budget: the largest share that leaves one layer."""
    pattern: Literal["structured", "unstructured", "2:4"] = "structured"
    """`unstructured` and `2:4` set single weights to zero (Wanda), for comparison: nothing gets smaller or faster."""
    sparsity: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of weights that `unstructured` sets to zero."""
    device: Literal["auto", "cpu"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _values_of_preset(cls, given: object) -> object:
        return with_preset(cls.presets, given)

    @field_validator("preset")
    @classmethod
    def _preset_exists(cls, name: str | None) -> str | None:
        return checked_preset(cls.presets, name)

    @model_validator(mode="after")
    def _choices_agree(self) -> PruneOptions:
        ways = [name for name in ("scan", "parameters", "latency") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} each say what leaves which layer: give one of them")
        if self.pattern != "structured" and (ways or self.only_plain):
            raise ValueError(f"pattern {self.pattern} takes no heads or neurons out: leave {', '.join(ways)} out")
        if not any((self.heads, self.neurons, self.vision_heads, self.vision_neurons)):
            raise ValueError("nothing would leave: set heads, neurons, vision_heads or vision_neurons above 0")
        return self

    def ratios(self) -> dict[str, float]:
        """By `language heads`, `language neurons`, `vision heads`, `vision neurons`."""
        return {
            "language heads": self.heads,
            "language neurons": self.neurons,
            "vision heads": self.vision_heads,
            "vision neurons": self.vision_neurons,
        }

    @property
    def needs_samples(self) -> bool:
        """Whether calibration samples are looked at."""
        return self.pattern != "structured" or self.importance != "magnitude"
