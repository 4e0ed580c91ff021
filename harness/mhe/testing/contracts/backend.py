"""What a backend promises."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from mhe.digests import digest_of
from mhe.images import BytesSource
from mhe.testing.contracts.promises import check_options, promise
from mhe.testing.toys import toy_context, toy_requests, toy_samples
from mhe.values import BackendDescription, Image, Response

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mhe.documents.model import ModelSpec
    from mhe.protocols import BackendFactory, ModelBackend
    from mhe.values import Request, Sample

USAGE = frozenset({"preprocess_seconds", "generate_seconds", "peak_device_bytes", "energy_joules", "batch_size"})
ERROR_KINDS = ("data", "model", "system")


def check_backend(
    factory: BackendFactory,
    model: ModelSpec,
    options: Mapping[str, object] | None = None,
    *,
    folder: Path,
    samples: Sequence[Sample] | None = None,
) -> list[Response]:
    """Describe, load, generate, use and close keep their word; damaged images cost their own sample only.

    `folder` is an empty one for caches. `samples` are questions that the model can answer, toy ones where None;
    they also stand in for the task's training split. Sampling is greedy. Returns the responses. Raises
    `AssertionError` with the broken promise.
    """
    samples = toy_samples(6) if samples is None else samples
    chosen = check_options(factory, {**model.options, **(options or {})})
    what = f"backend {model.backend!r}"
    context = toy_context(folder, samples=samples)
    backend = factory(model, chosen, context)
    before = _described(backend, what)
    again = _described(factory(model, chosen, context), what)
    promise(
        before.fingerprint.digest == again.fingerprint.digest and before.key_options == again.key_options,
        f"{what}: two openings of one model have different fingerprints or key options",
    )
    requests = toy_requests(samples)
    ids = [request.sample_id for request in requests]
    try:
        backend.load()
        after = _described(backend, what)
        for name in ("name", "version", "key_options"):
            old, new = getattr(before, name), getattr(after, name)
            promise(old == new, f"{what}: {name} is {old!r} before load and {new!r} after: the run key would change")
        promise(before.fingerprint.digest == after.fingerprint.digest, f"{what}: load changes the fingerprint")
        responses = _answered(backend, requests, ids, what)
        promise(not _answered(backend, requests, [], what), f"{what}: it answers where nothing is pending")
        some = ids[len(ids) // 2 :]
        again_some = _answered(backend, requests, some, what)
        texts = {response.sample_id: response.text for response in responses}
        for response in again_some:
            promise(
                response.text == texts[response.sample_id],
                f"{what}: {response.sample_id} is answered {response.text!r} in a resumed run, and "
                f"{texts[response.sample_id]!r} in a whole one",
            )
        _check_damaged(backend, requests, what)
        _check_usage(backend, what)
    finally:
        backend.close()
    return responses


def _described(backend: ModelBackend, what: str) -> BackendDescription:
    found: object = backend.describe()
    if not isinstance(found, BackendDescription):
        raise AssertionError(f"{what}: describe returned {type(found).__name__}, not BackendDescription")
    promise(found.name and found.version, f"{what}: name and version must not be empty")
    promise(found.fingerprint.digest, f"{what}: the fingerprint's digest is empty")
    both = sorted(set(found.key_options) & set(found.neutral_options))
    promise(not both, f"{what}: options stand among the key's and the answer-neutral ones: {both}")
    # Both are written into documents; a value that is not JSON raises here.
    digest_of(dict(found.key_options))
    digest_of(dict(found.neutral_options))
    return found


def _answered(
    backend: ModelBackend, requests: Sequence[Request], pending: Collection[str], what: str
) -> list[Response]:
    found = list(backend.generate(requests, frozenset(pending)))
    ids = []
    for response in found:
        if not isinstance(response, Response):
            raise AssertionError(f"{what}: generate gave {type(response).__name__}, not Response")
        ids.append(response.sample_id)
        promise(
            (response.text is None) != (response.error is None),
            f"{what}: {response.sample_id} has neither or both of a text and an error",
        )
        if response.error is not None:
            promise(response.error.kind in ERROR_KINDS, f"{what}: error kind {response.error.kind!r}")
            promise(response.error.message, f"{what}: an error without a message")
        for name in ("prompt_tokens", "generated_tokens", "seconds", "first_token_seconds"):
            figure = getattr(response, name)
            promise(
                figure is None or (math.isfinite(figure) and figure >= 0),
                f"{what}: {name} of {response.sample_id} is {figure!r}",
            )
    promise(len(ids) == len(set(ids)), f"{what}: a request was answered twice: {sorted(ids)}")
    promise(set(ids) == set(pending), f"{what}: asked for {sorted(pending)}, answered {sorted(ids)}")
    return found


def _check_damaged(backend: ModelBackend, requests: Sequence[Request], what: str) -> None:
    """A backend that looks at images must name the damaged one as a data error; one that does not may answer."""
    broken = Image("broken", BytesSource(b"this is no image"))
    damaged = [
        replace(request, images=tuple(broken for _ in request.images)) if number == 0 else request
        for number, request in enumerate(requests)
    ]
    responses = _answered(backend, damaged, [request.sample_id for request in damaged], what)
    for response in responses:
        error = response.error
        if response.sample_id == damaged[0].sample_id:
            promise(error is None or error.kind == "data", f"{what}: a damaged image is a {error and error.kind} error")
        else:
            promise(error is None, f"{what}: a damaged image cost {response.sample_id} its answer: {error}")


def _check_usage(backend: ModelBackend, what: str) -> None:
    usage = backend.usage()
    unknown = sorted(set(usage) - USAGE)
    promise(not unknown, f"{what}: usage has figures that nobody reads: {unknown}; known are {sorted(USAGE)}")
    for name, figure in usage.items():
        promise(math.isfinite(figure) and figure >= 0, f"{what}: usage of {name} is {figure!r}")
