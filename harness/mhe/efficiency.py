"""What a run cost: seconds by phase, rates, latency, memory. Null with a reason, never a guess."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mhe.documents.run import Efficiency

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.values import BackendDescription, Response

RESUMED = "the run was resumed; its parts ran in different processes"
NOT_TOLD = "the backend does not tell"
NOT_LOADED = "the process that wrote this record had every answer and did not load the model"
NO_DEVICE_MEMORY = "no device memory in use"
NO_ENERGY = "the backend has read no energy counter (NVIDIA's needs pip install 'mhe[energy]')"
SHARED = "another model ran in the same process; evaluate this one alone to measure it"


_models_of_this_process: set[str] = set()


def peak_host_bytes(model: str) -> int | None:
    """The most memory this process has held, in bytes; None where it has held another model than this one as well.

    `model` is a fingerprint. The system keeps one peak for the life of a process, whoever reached it.
    """
    import resource

    _models_of_this_process.add(model)
    if len(_models_of_this_process) > 1:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def percentile(values: Sequence[float], share: float) -> float | None:
    """Nearest-rank percentile; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


@dataclass(slots=True)
class _Figures:
    """What the backend and the clock tell of a run, and why the rest is not known."""

    usage: Mapping[str, float]
    uninterrupted: bool
    generate_seconds: float
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def has_loaded(self) -> bool:
        return "load_seconds" in self.usage

    def known(self, name: str, value: float | None, reason: str) -> float | None:
        """The value, or None with its reason written down."""
        if value is None:
            self.reasons[name] = reason
        return value

    def told(self, name: str, reason: str = NOT_TOLD) -> float | None:
        """The backend's own figure."""
        return self.known(name, self.usage.get(name), reason if self.has_loaded else NOT_LOADED)

    def told_of_all(self, name: str, reason: str = NOT_TOLD) -> float | None:
        """The same of one that adds up: what the backend counts is of this process, of a resumed run its last part."""
        if self.uninterrupted or not self.has_loaded:
            return self.told(name, reason)
        return self.known(name, None, RESUMED)

    def rate(self, name: str, amount: int | None) -> float | None:
        """An amount by the seconds of generating."""
        if not self.uninterrupted:
            return self.known(name, None, RESUMED)
        if amount is None:
            return self.known(name, None, NOT_TOLD)
        seconds = self.generate_seconds
        return self.known(name, amount / seconds if seconds > 0 else None, "no time was measured")


def _total(values: Sequence[int | None]) -> int | None:
    """None where one is not known: a sum over some, divided by the time of all, would be too low a rate."""
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers and len(numbers) == len(values) else None


def measure_efficiency(
    responses: Sequence[Response],
    description: BackendDescription,
    usage: Mapping[str, float],
    *,
    uninterrupted: bool,
    generate_seconds: float,
    score_seconds: float,
) -> Efficiency:
    """The cost of a run from its responses, the backend's own figures and the clock around it.

    `generate_seconds` is wall time from the first request to the last response, preprocessing included. Without a
    `load_seconds` in `usage` this process has not held the model, and its own figures say nothing of it.
    """
    figures = _Figures(usage, uninterrupted, generate_seconds)
    known, told, rate = figures.known, figures.told, figures.rate
    answered = [response for response in responses if response.error is None]
    latencies = [r.seconds for r in answered if r.seconds is not None]
    firsts = [r.first_token_seconds for r in answered if r.first_token_seconds is not None]
    host = peak_host_bytes(description.fingerprint.digest) if figures.has_loaded else None
    return Efficiency(
        device=description.device,
        batch_size=_whole(told("batch_size")),
        smallest_batch_size=_whole(told("smallest_batch_size")),
        largest_batch_size=_whole(told("largest_batch_size")),
        uninterrupted=uninterrupted,
        load_seconds=told("load_seconds"),
        preprocess_seconds=figures.told_of_all("preprocess_seconds"),
        generate_seconds=known("generate_seconds", generate_seconds if uninterrupted else None, RESUMED),
        score_seconds=score_seconds,
        samples_per_second=rate("samples_per_second", len(answered)),
        prompt_tokens_per_second=rate("prompt_tokens_per_second", _total([r.prompt_tokens for r in answered])),
        generated_tokens_per_second=rate("generated_tokens_per_second", _total([r.generated_tokens for r in answered])),
        latency_p50=known("latency_p50", percentile(latencies, 0.5), NOT_TOLD),
        latency_p95=known("latency_p95", percentile(latencies, 0.95), NOT_TOLD),
        first_token_p50=known("first_token_p50", percentile(firsts, 0.5), NOT_TOLD),
        first_token_p95=known("first_token_p95", percentile(firsts, 0.95), NOT_TOLD),
        peak_host_bytes=_whole(known("peak_host_bytes", host, SHARED if figures.has_loaded else NOT_LOADED)),
        peak_device_bytes=_whole(told("peak_device_bytes", NO_DEVICE_MEMORY)),
        peak_device_reserved_bytes=_whole(told("peak_device_reserved_bytes", NO_DEVICE_MEMORY)),
        energy_joules=figures.told_of_all("energy_joules", NO_ENERGY),
        reasons=figures.reasons,
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
