"""A backend that asks the misbehaving server of `chat_server`, and requests to tell apart."""

from __future__ import annotations

import json
from dataclasses import replace

from chat_server import MODEL, completion, question_of
from mhe import (
    BackendContext,
    BytesSource,
    Image,
    Message,
    ModelSpec,
    ModelUnusableError,
)
from mhe.testing import toy_requests
from mhe_vllm.server import ServerBackend
from mhe_vllm.server_options import ServerOptions

KEY = "sk-very-secret-0123456789abcdef"
QUICK = {"first_wait": 0.01, "retries": 3, "connect_timeout": 5.0, "read_timeout": 20.0}
HALF = json.dumps(completion("yes")).encode()[:-40]
DAMAGED = Image("broken", BytesSource(b"this is no image"))


def open_backend(server, tmp_path, *, location=MODEL, **options):
    context = BackendContext(offline=True, cache_dir=tmp_path, training_samples=list)
    chosen = ServerOptions(**{"url": server.url, **QUICK, **options})
    backend = ServerBackend(ModelSpec(name="m", backend="server", location=location), chosen, context)
    backend.load()
    return backend


def ask(server, tmp_path, requests, **options):
    """Responses by sample, each given once."""
    backend = open_backend(server, tmp_path, **options)
    try:
        found = list(backend.generate(requests, [request.sample_id for request in requests]))
    finally:
        backend.close()
    named = {response.sample_id: response for response in found}
    assert len(named) == len(found) == len(requests)
    return named


def until_it_ends(backend, requests):
    """Responses, and the error that ended them."""
    kept = []
    try:
        for response in backend.generate(requests, [request.sample_id for request in requests]):
            kept.append(response)  # noqa: PERF402 - what came before the error counts
    except ModelUnusableError as error:
        return kept, str(error)
    finally:
        backend.close()
    raise AssertionError("nothing ended the run")


def different(n, **changes):
    """Requests whose texts tell them apart."""
    return [
        replace(request, messages=(Message("user", f"question {number}?", images=1),), **changes)
        for number, request in enumerate(toy_requests(n))
    ]


def about(number):
    """Behaviour of one of the `different` requests only."""

    def decorate(reply):
        return lambda _, body: reply() if question_of(body) == f"question {number}?" else None

    return decorate
