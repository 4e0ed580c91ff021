"""When the first token of a batch was there, and what energy the devices took."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from collections.abc import Sequence


class FirstTokenClock(LogitsProcessor):
    """Changes no score; notes when the first ones came, in seconds since the clock was made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.seconds: float | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:  # noqa: ARG002 - transformers passes them
        """The scores as they are."""
        if self.seconds is None:
            if scores.is_cuda:
                torch.cuda.synchronize(scores.device)
            self.seconds = time.perf_counter() - self._started
        return scores


class EnergyMeter:
    """NVML's counter of NVIDIA devices (Volta and later), read at the start and the end of generating."""

    def __init__(self) -> None:
        self._library, self._handles = _open_nvml()
        self._before: list[int] | None = None
        self.joules: float | None = None

    def start(self) -> None:
        """From here on."""
        self._before = self._read()

    def stop(self) -> None:
        """Up to here; added to what was measured before."""
        after = self._read()
        if self._before is not None and after is not None:
            thousandths = sum(b - a for a, b in zip(self._before, after, strict=True))
            self.joules = (self.joules or 0.0) + thousandths / 1000
        self._before = None

    def _read(self) -> list[int] | None:
        if not self._handles:
            return None
        try:
            return [int(self._library.nvmlDeviceGetTotalEnergyConsumption(handle)) for handle in self._handles]
        except self._library.NVMLError:
            return None


def _open_nvml() -> tuple[Any, Sequence[object]]:
    """NVML and the handles of the devices that torch sees; no handles where either is missing."""
    if not torch.cuda.is_available():
        return None, ()
    try:
        import pynvml
    except ImportError:
        return None, ()
    try:
        pynvml.nvmlInit()
        identities = [torch.cuda.get_device_properties(n).uuid for n in range(torch.cuda.device_count())]
        return pynvml, [pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{identity}") for identity in identities]
    except (pynvml.NVMLError, AttributeError):
        return None, ()
