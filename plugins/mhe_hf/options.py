"""Options of the backend `hf`. What may change an answer is part of the run key; what may not says so."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mhe import Part

_NEUTRAL = {"answer_neutral": True}


class HfOptions(Part):
    """How a transformers model is loaded and run."""

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
    trust_remote_code: bool = False
    """Run Python code that lies beside the weights. Only for models whose code you have read."""
    allow_pickle: bool = False
    """Read pickle checkpoints (`.bin`), which can run any code when opened."""
    image_processor: Literal["pil", "torchvision"] = "pil"
    """Which library resizes images: their pixels differ, and so may answers."""
    batch_size: Annotated[int, Field(ge=1, json_schema_extra=_NEUTRAL)] = 8
    """Samples in one batch; halved by itself where memory runs out."""
    num_threads: Annotated[int | None, Field(ge=1, json_schema_extra=_NEUTRAL)] = None
    """CPU threads of torch; torch's own choice where empty."""
    prefetch: Annotated[int, Field(ge=0, json_schema_extra=_NEUTRAL)] = 2
    """Batches whose images are decoded ahead, in a thread. 0: none."""
    image_cache_mb: Annotated[int, Field(ge=0, json_schema_extra=_NEUTRAL)] = 512
    """Memory for images that several questions share, kept preprocessed."""

    @model_validator(mode="after")
    def _choices_agree(self) -> HfOptions:
        if self.double_quant and self.quantization not in ("nf4", "fp4"):
            raise ValueError(f"double_quant needs quantization nf4 or fp4, and it is {self.quantization}")
        if self.device_map is not None and self.device != "auto":
            raise ValueError(f"give device ({self.device}) or device_map ({self.device_map}), not both")
        return self

    def in_key(self) -> dict[str, object]:
        """Options that may change an answer."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k not in self.neutral_names()}

    def neutral(self) -> dict[str, object]:
        """Options declared answer-neutral."""
        return {k: v for k, v in self.model_dump(mode="json").items() if k in self.neutral_names()}

    @classmethod
    def neutral_names(cls) -> set[str]:
        """Names of the answer-neutral options."""
        return {
            name
            for name, field in cls.model_fields.items()
            if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("answer_neutral")
        }
