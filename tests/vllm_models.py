"""Requests of real tasks, and both backends over one folder, for the tests that run vLLM."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from mhe import BackendContext, Generation, ModelSpec, Request, Response, open_catalog
from mhe.prompting import build_request
from mhe.samples import load_samples
from mhe_hf import HfBackend, HfOptions
from mhe_vllm.backend import VllmBackend
from mhe_vllm.options import VllmOptions


def requests_of(task: str, limit: int, data_dir: Path | None = None, **generation: object) -> list[Request]:
    """The first requests of a task, as evaluation makes them."""
    catalog = open_catalog()
    spec = catalog.task(task)
    samples = load_samples(catalog, spec, limit=limit, data_dir=data_dir, offline=True).samples
    assert len(samples) == limit
    how = Generation(**{**spec.generation.model_dump(), **generation})
    return [build_request(spec, sample, how, 0) for sample in samples]


def context(folder: Path) -> BackendContext:
    return BackendContext(offline=True, cache_dir=folder, training_samples=list)


def spec_of(folder: Path) -> ModelSpec:
    return ModelSpec(name="tiny", backend="vllm", location=str(folder))


@contextlib.contextmanager
def vllm(folder: Path, **options: object) -> Iterator[VllmBackend]:
    """A loaded backend `vllm` in float32; there is one at a time in a process."""
    chosen = VllmOptions(**{"dtype": "float32", "kv_cache_gb": 0.25, **options})
    backend = VllmBackend(spec_of(folder), chosen, context(folder))
    try:
        backend.load()
        yield backend
    finally:
        backend.close()


def hf_answers(folder: Path, requests: list[Request], **options: object) -> dict[str, Response]:
    """What the backend `hf` answers in float32 on the CPU."""
    chosen = HfOptions(**{"dtype": "float32", "device": "cpu", "batch_size": 16, **options})
    backend = HfBackend(spec_of(folder), chosen, context(folder))
    try:
        backend.load()
        return by_sample(backend.generate(requests, [r.sample_id for r in requests]))
    finally:
        backend.close()


def answers(backend: VllmBackend, requests: list[Request], pending: list[str] | None = None) -> dict[str, Response]:
    return by_sample(backend.generate(requests, [r.sample_id for r in requests] if pending is None else pending))


def by_sample(responses: Iterator[Response]) -> dict[str, Response]:
    """Responses by sample, each given once."""
    found = list(responses)
    named = {response.sample_id: response for response in found}
    assert len(named) == len(found), "a sample was answered twice"
    return named


def alike(response: Response) -> tuple[object, ...]:
    """What two backends must say alike."""
    return response.text, response.error, response.prompt_tokens, response.generated_tokens, response.finish_reason
