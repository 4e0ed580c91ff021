"""Options of the backend `vllm`. What may change an answer is part of the run key; what may not says so."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from pydantic.config import JsonDict

from mhe import BackendOptions

_NEUTRAL: JsonDict = {"answer_neutral": True}


class VllmOptions(BackendOptions):
    """How vLLM loads a model and runs it."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """`auto`: as the checkpoint was saved (vLLM's own `auto` turns float32 into half precision)."""
    adapter: str | None = None
    """Folder of a LoRA adapter on the language model, as PEFT saves it."""
    quantization: str | None = None
    """vLLM's name of a method that quantises while loading, such as `fp8` or `bitsandbytes`. A checkpoint that was
    saved quantised needs none."""
    max_model_len: Annotated[int | None, Field(ge=16)] = None
    """Context in tokens; the model's own where empty."""
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1
    """Devices that share each layer; on a CPU processes, each with its share of the cores."""
    enforce_eager: bool | None = None
    """No compilation and no CUDA graphs: starts sooner, answers slower. Empty: so on a CPU, where compiling takes
    about a minute, and not elsewhere."""
    image_processor: Literal["pil", "torchvision"] = "pil"
    """Which library resizes images: their pixels differ, and so may answers. The same default as backend `hf`."""
    trust_remote_code: bool = False
    """Run Python code that lies beside the weights. Only for models whose code you have read."""
    max_images: Annotated[int, Field(ge=1, json_schema_extra=_NEUTRAL)] = 1
    """Most images in one request: memory is set aside for them."""
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = Field("auto", json_schema_extra=_NEUTRAL)
    """Most samples worked on at once. `auto`: 256; vLLM starts as many of them as its memory holds."""
    gpu_memory_utilization: Annotated[float | None, Field(gt=0, le=1, json_schema_extra=_NEUTRAL)] = None
    """Share of the device's memory for weights and cache; vLLM's own choice where empty."""
    kv_cache_gb: Annotated[float | None, Field(gt=0, json_schema_extra=_NEUTRAL)] = None
    """GiB for keys and values. Empty: what `gpu_memory_utilization` leaves; on a CPU VLLM_CPU_KVCACHE_SPACE, or 1."""
    prefix_caching: Annotated[bool, Field(json_schema_extra=_NEUTRAL)] = True
    """Compute what prompts begin with alike, image included, once."""
    engine_process: Annotated[Literal["auto", "same", "own"], Field(json_schema_extra=_NEUTRAL)] = "auto"
    """Where the engine runs: in a process of its `own` images are prepared while the device works. `auto`: `own` on
    a GPU, `same` on a CPU, where it starts sooner and nothing is left behind by a kill."""

    def in_key(self) -> dict[str, object]:
        """Options that may change an answer. The adapter's content is in the fingerprint, whatever its folder."""
        return {**super().in_key(), "adapter": self.adapter is not None}
