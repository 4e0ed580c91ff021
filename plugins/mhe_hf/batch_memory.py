"""How much memory a batch takes, and how much there is: an estimate before the first, a measurement after it.

On a CPU nothing is raised when memory runs out, the process is killed: so a batch grows only where there is room.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
"""What CUDA, the allocator of the CPU and the operating system say."""
AT_FIRST = 0.25
"""Share of the free memory that the first batch may take by the estimate."""
AT_MOST = 0.8
"""Share of the free memory that a grown batch may take."""
FIRST_ROWS = 16
"""No first batch is larger: a few of its size are run to learn how quick it is."""
HIDDEN_COPIES = 8
"""Activations that live at once in a layer, in widths of the residual stream: input, norm, q, k, v, output, sum."""
GATED_COPIES = 3
"""The same in widths of the feed-forward layer: gate, up, product."""


class MemoryWatch:
    """What batches of one loaded model take. Made before the first one."""

    def __init__(self, model: PreTrainedModel, tokens: int) -> None:
        """`tokens`: of the longest row, prompt and answer."""
        self._devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
        self._bytes_a_row = row_bytes(model.config, tokens, model.dtype.itemsize)
        self._before = [torch.cuda.memory_allocated(device) for device in self._devices]
        self._host_before, self._peak_before = resident_bytes(), peak_bytes()

    def first_rows(self) -> int:
        """A power of two: what the estimate allows, and no more than is sensible before anything was measured."""
        rows = FIRST_ROWS
        room = min(self._room())
        while rows > 1 and rows * self._bytes_a_row > AT_FIRST * room:
            rows //= 2
        return rows

    def has_room(self, wanted: int, tried: int) -> bool:
        """Whether `wanted` rows fit, by what `tried` rows took."""
        taken = zip(self._taken(tried), self._room(), strict=True)
        return all(used * wanted / tried <= AT_MOST * room for used, room in taken)

    def _taken(self, rows: int) -> list[float]:
        if self._devices:
            peaks = [torch.cuda.max_memory_allocated(device) for device in self._devices]
            return [float(peak - before) for peak, before in zip(peaks, self._before, strict=True)]
        # The system's peak may be that of loading: it tells something only once it has risen.
        peak = peak_bytes()
        risen = peak - self._host_before if peak > self._peak_before else 0
        return [float(max(risen, rows * self._bytes_a_row))]

    def _room(self) -> list[float]:
        """Bytes that were free before the first batch and still are, or are held for batches."""
        if self._devices:
            return [
                float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before)
                for device, before in zip(self._devices, self._before, strict=True)
            ]
        return [float(available_bytes() + max(0, resident_bytes() - self._host_before))]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or the machine, ran out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in OUT_OF_MEMORY)


def row_bytes(configuration: PreTrainedConfig, tokens: int, width: int) -> int:
    """About what one row of `tokens` takes, in bytes: keys and values of all layers, the activations of one layer of
    the language model and of the image encoder, and the scores of the vocabulary. `width` is bytes a number.
    """
    text = configuration.get_text_config(decoder=True)
    hidden, layers, heads = (_number(text, n) for n in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    head = _number(text, "head_dim") or hidden // max(1, heads)
    kept = 2 * layers * (_number(text, "num_key_value_heads") or heads) * head * tokens
    vocabulary = 4 * _number(text, "vocab_size")
    vision = getattr(configuration, "vision_config", None) or getattr(configuration, "encoder", None)
    patches = (_number(vision, "image_size") // max(1, _number(vision, "patch_size"))) ** 2
    seen = _activations(vision, patches) if vision is not None else 0
    return width * (kept + _activations(text, tokens) + vocabulary + seen)


def _activations(part: object, tokens: int) -> int:
    hidden = _number(part, "hidden_size") or _number(part, "embed_dim")
    inner = _number(part, "intermediate_size") or 4 * hidden
    return tokens * (HIDDEN_COPIES * hidden + GATED_COPIES * inner)


def _number(part: object, name: str) -> int:
    value = getattr(part, name, None)
    return value if isinstance(value, int) else 0


def resident_bytes() -> int:
    """What the process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """The most that the process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes() -> int:
    """Memory that can still be had without swapping, within the limit of the control group, if there is one."""
    return min([int(psutil.virtual_memory().available), *_free_of_group()])


def _free_of_group(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    names = (
        ("memory.max", "memory.current", "memory.stat"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
    )
    found = []
    for limit, usage, statistics in names:
        try:
            most = int((root / limit).read_text(encoding="ascii"))
            used = int((root / usage).read_text(encoding="ascii"))
            rows = dict(line.split() for line in (root / statistics).read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            # No such group, or the word `max`: no limit.
            continue
        # The file cache counts as used and is given back when needed.
        found.append(max(0, most - used + int(rows.get("inactive_file", 0))))
    return found
