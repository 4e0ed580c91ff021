"""Memory of a training: how much it took, how much it is said to take, and what to lower where it runs out."""

from __future__ import annotations

import math
import resource
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe_hf.training.options import TrainingOptions


def packed_bits(shape: Sequence[int], quantization: str, *, double_quant: bool) -> float:
    """Bits of a matrix of shape (outputs, inputs) in `nf4`, `fp4` or `int8`, its scales included.

    A scale has 32 bits and is for 64 weights of nf4 and fp4, for an output of int8; with `double_quant` it has 8, and
    256 scales share one of 32 (Dettmers et al., QLoRA, section 3).
    """
    weights = math.prod(shape)
    if quantization == "int8":
        return 8 * weights + 32 * shape[0]
    return weights * (4 + (8 / 64 + 32 / (64 * 256) if double_quant else 32 / 64))


def what_to_lower(options: TrainingOptions, error: BaseException) -> str:
    """The error in plain words, with settings that need less memory."""
    ways = []
    if options.batch_size > 1:
        half = options.batch_size // 2
        twice = options.gradient_accumulation * 2
        ways.append(f"--set batch_size={half} --set gradient_accumulation={twice} (same result but for rounding)")
    if not options.gradient_checkpointing:
        ways.append("--set gradient_checkpointing=true (slower)")
    ways.append("--set vision=frozen (fewer weights trained)")
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"memory ran out: {reason}\nLower one of:\n" + "\n".join(f"  {way}" for way in ways)


def readable_size(number: float) -> str:
    """Bytes as MiB, from one GiB on as GiB."""
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.2f} MiB"


def peak_host_bytes() -> int:
    """Most memory this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes() -> int | None:
    """Most memory ever allocated on the CUDA device; None without one."""
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
