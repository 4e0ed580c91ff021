"""Options of the backend `hf`. What may change an answer is part of the run key; what may not says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from mhe import BackendOptions, Part

_NEUTRAL = {"answer_neutral": True}


class AdapterChoice(Part):
    """An adapter's folder, and the sub-module that it belongs to."""

    folder: str
    module: str = ""
    """Dotted name such as `text_decoder`; empty for the whole model."""


def _as_choice(value: object) -> object:
    return {"folder": value} if isinstance(value, str) else value


class HfOptions(BackendOptions):
    """How a transformers model is loaded and run."""

    measured_alone: ClassVar[Mapping[str, object]] = {"prefetch": 0, "image_cache_mb": 0}
    """What `mhe bench-model` sets for batch 1, so that a sample's latency holds no other sample's work."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: as the checkpoint was saved."""
    device: str = "auto"
    """`auto` (CUDA, else Apple's MPS, else CPU), `cpu`, `cuda`, `cuda:1`, …"""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """Spread over several devices by accelerate; `device` is then left out."""
    attn_implementation: str | None = None
    """`eager`, `sdpa`, `flash_attention_2`, …; transformers' own choice where empty."""
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Weights quantised while loading, through bitsandbytes."""
    double_quant: bool = False
    """Quantise the scales of nf4 and fp4 as well."""
    quantized_modules: tuple[Literal["vision", "fusion", "language"], ...] = ("vision", "fusion", "language")
    """Modules that `quantization` applies to."""
    adapter: Annotated[str | None, Field(json_schema_extra=_NEUTRAL)] = None
    """Folder of a PEFT adapter for the model; its content is part of the fingerprint."""
    adapters: Annotated[
        tuple[Annotated[AdapterChoice, BeforeValidator(_as_choice)], ...], Field(json_schema_extra=_NEUTRAL)
    ] = ()
    """Several, in their order: folders, or `{folder: F, module: text_decoder}` for one on a sub-module."""
    merge_adapter: bool = False
    """Add adapters to the weights while loading, which changes the last bits of answers and saves their time."""
    other_base: Annotated[bool, Field(json_schema_extra=_NEUTRAL)] = False
    """Put adapters on this base although they name another: for the same weights under another name."""
    prefix: str = ""
    """How every caption of a captioner (BLIP, vision-encoder-decoder) begins. Other models are asked the prompt."""
    seed_of_new_weights: int = 0
    """What weights are drawn from that no checkpoint holds: cross-attention between two halves, `random_weights`."""
    untrained: bool = False
    """Evaluate a model whose cross-attention has never been trained, for the noise that it writes."""
    random_weights: bool = False
    """Build the model from its configuration, every weight drawn: for measuring cost, never for answers."""
    exact_tokens: bool = False
    """Write up to `max_new_tokens` past every end: for measuring cost."""
    trust_remote_code: bool = False
    """Run Python code that lies beside the weights. Only for models whose code you have read."""
    allow_pickle: bool = False
    """Read pickle checkpoints (`.bin`), which can run any code when opened."""
    image_processor: Literal["pil", "torchvision"] = "pil"
    """Which library resizes images: their pixels differ, and so may answers."""
    batch_size: Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], Field(json_schema_extra=_NEUTRAL)] = "auto"
    """Samples in one batch, or `auto`: grown while it pays. Halved by itself where memory runs out."""
    num_threads: Annotated[int | None, Field(ge=1, json_schema_extra=_NEUTRAL)] = None
    """CPU threads of torch; torch's own choice where empty."""
    prefetch: Annotated[int, Field(ge=0, json_schema_extra=_NEUTRAL)] = 2
    """Batches whose images are decoded ahead, in a thread. 0: none."""
    image_threads: Annotated[int | None, Field(ge=1, json_schema_extra=_NEUTRAL)] = None
    """Threads that open and resize images; where empty one on a CPU, else as many as there are cores, up to 8."""
    image_cache_mb: Annotated[int, Field(ge=0, json_schema_extra=_NEUTRAL)] = 512
    """Memory for images that several questions share, kept preprocessed."""

    @model_validator(mode="after")
    def _choices_agree(self) -> HfOptions:
        if self.double_quant and self.quantization not in ("nf4", "fp4"):
            raise ValueError(f"double_quant needs quantization nf4 or fp4, and it is {self.quantization}")
        if self.merge_adapter and self.quantization != "none":
            raise ValueError(f"weights of {self.quantization} cannot take an adapter in exactly: merge_adapter=false")
        if self.device_map is not None and self.device != "auto":
            raise ValueError(f"give device ({self.device}) or device_map ({self.device_map}), not both")
        if self.random_weights and (self.device_map is not None or self.all_adapters()):
            raise ValueError("random_weights draws one whole model on one device: no device_map, no adapter")
        return self

    def all_adapters(self) -> tuple[AdapterChoice, ...]:
        """`adapter` before `adapters`."""
        return ((AdapterChoice(folder=self.adapter),) if self.adapter else ()) + self.adapters
