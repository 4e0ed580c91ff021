"""What every backend and every engine must keep."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mhe.documents.model import ModelSpec
from mhe.images import BytesSource
from mhe.protocols import BackendContext
from mhe.testing.ability_contract import check_rendering, check_tokens
from mhe.testing.contracts import Options, checked_options, require
from mhe.testing.scripted import ScriptedBackend, ScriptedOptions
from mhe.testing.toys import toy_requests, toy_samples
from mhe.values import BackendDescription, Image, Response, Sample

if TYPE_CHECKING:
    from mhe.protocols import BackendFactory, Engine, ModelBackend
    from mhe.values import Request

USAGE = frozenset(
    {
        "preprocess_seconds",
        "generate_seconds",
        "peak_device_bytes",
        "peak_device_reserved_bytes",
        "energy_joules",
        "image_tokens",
        "batch_size",
        "smallest_batch_size",
        "largest_batch_size",
    }
)
ERROR_KINDS = ("data", "model", "system")


def check_backend(
    factory: BackendFactory,
    *,
    options: Options | None = None,
    model: ModelSpec | None = None,
    requests: Sequence[Request] | None = None,
    training_samples: Sequence[Sample] | None = None,
) -> list[Response]:
    """Describe, load, answer all, answer a few, meet a damaged image, close. Returns the responses, in order.

    Answers must not depend on which other requests are pending: a run that was killed is resumed with few of them.
    What a backend can do besides (`ScoresTokens`, `RendersPrompts`) is held to the answers that it gave.
    Raises `AssertionError` with the promise that was broken.
    """
    spec = model or ModelSpec(name="toy", backend="toy", location="toy")
    chosen = checked_options(factory, {**spec.options, **(options or {})})
    asked = list(requests) if requests is not None else toy_requests(8)
    known = list(training_samples) if training_samples is not None else toy_samples(16, first=1000)
    with TemporaryDirectory() as cache:
        context = BackendContext(offline=True, cache_dir=Path(cache), training_samples=lambda: known)
        backend = factory(spec, chosen, context)
        try:
            before = _checked_description(backend)
            other = _checked_description(factory(spec, chosen, context))
            require(other == before, "describe() says the same of the same model and options each time")
            shown = check_rendering(backend, asked)
            backend.load()
            require(check_rendering(backend, asked) == shown, "render_prompt() says the same before and after load()")
            require(_checked_description(backend) == before, "describe() has one key before and after load()")
            whole = _answers(backend, asked, [request.sample_id for request in asked])
            few = [request.sample_id for request in asked[1::3]]
            part = _answers(backend, asked, few)
            for name in few:
                require(part[name].text == whole[name].text, f"{name} is answered alike, whatever else is pending")
            require(not _answers(backend, asked, []), "generate() answers nothing where nothing is pending")
            check_tokens(backend, asked, whole)
            _check_damaged_image(backend, asked)
            _check_usage(backend)
        finally:
            backend.close()
    return [whole[request.sample_id] for request in asked]


def _checked_description(backend: ModelBackend) -> tuple[str, str, str, str]:
    told: object = backend.describe()
    if not isinstance(told, BackendDescription):
        raise AssertionError(f"describe() returns a BackendDescription, not {type(told).__name__}")  # noqa: TRY004 - a broken promise like others
    require(bool(told.name) and bool(told.version), "describe() names the backend and its version")
    require(bool(told.fingerprint.digest), "describe() has a fingerprint of the weights")
    keys = json.dumps(dict(told.key_options), sort_keys=True)
    json.dumps(dict(told.neutral_options))
    both = set(told.key_options) & set(told.neutral_options)
    require(not both, f"an option is answer-neutral or in the run key, never both: {sorted(both)}")
    return told.name, told.version, told.fingerprint.digest, keys


def _answers(backend: ModelBackend, requests: Sequence[Request], pending: Collection[str]) -> dict[str, Response]:
    found = list(backend.generate(requests, frozenset(pending)))
    counted = Counter(response.sample_id for response in found)
    doubled = [name for name, number in counted.items() if number > 1]
    require(not doubled, f"generate() answers each request once; twice: {doubled}")
    strangers, missing = set(counted) - set(pending), set(pending) - set(counted)
    require(not strangers, f"generate() answers pending requests only; others: {sorted(strangers)}")
    require(not missing, f"generate() answers every pending request; missing: {sorted(missing)}")
    for response in found:
        require(
            (response.text is None) != (response.error is None),
            f"a response has a text or an error: {response.sample_id} has both or neither",
        )
        if response.error is not None:
            told = response.error.kind in ERROR_KINDS and bool(response.error.message)
            require(told, f"an error has a kind of {', '.join(ERROR_KINDS)} and a message: {response.error}")
        for name in ("prompt_tokens", "generated_tokens", "seconds", "first_token_seconds"):
            figure = getattr(response, name)
            fine = figure is None or (math.isfinite(figure) and figure >= 0)
            require(fine, f"{name} is None or a number from 0 on: {response.sample_id} has {figure!r}")
    return {response.sample_id: response for response in found}


def _check_damaged_image(backend: ModelBackend, requests: Sequence[Request]) -> None:
    """A backend that looks at images names the damaged one as a data error; one that does not may answer."""
    broken = Image("broken", BytesSource(b"this is no image"))
    first, *others = requests
    damaged = [replace(first, images=tuple(broken for _ in first.images)), *others]
    found = _answers(backend, damaged, [request.sample_id for request in damaged])
    error = found[first.sample_id].error
    require(error is None or error.kind == "data", f"a damaged image is an error of kind data, not {error}")
    hurt = [request.sample_id for request in others if found[request.sample_id].error is not None]
    require(not hurt, f"a damaged image costs its own sample only, and not {hurt}")


def _check_usage(backend: ModelBackend) -> None:
    usage = dict(backend.usage())
    unknown = sorted(set(usage) - USAGE)
    require(not unknown, f"usage() has figures that somebody reads ({', '.join(sorted(USAGE))}), not {unknown}")
    for name, figure in usage.items():
        require(math.isfinite(figure) and figure >= 0, f"usage() of {name} is a number from 0 on, not {figure!r}")


# ---------------------------------------------------------------- engines


def check_engine(load: Callable[[], Engine]) -> None:
    """Run the scripted backend through a fresh engine: every answer once, usage, closing also after an error.

    `load` is that of the engine's provider. Raises `AssertionError` with the promise that was broken.
    """
    requests = toy_requests(10)
    pending = {request.sample_id for request in requests[2:]}
    answers = {name: f"the answer to {name}" for name in pending}
    opened: list[ScriptedBackend] = []
    engine = load()
    require(bool(engine.name), "an engine has a name")
    try:
        engine.describe()
    except RuntimeError:
        pass
    else:
        raise AssertionError("describe() raises RuntimeError before run() has loaded a backend")
    found = list(engine.run(_scripted(ScriptedOptions(answers=answers, batch_size=3), opened), requests, pending))
    told = {response.sample_id: response.text for response in found}
    require(len(found) == len(pending), f"run() yields each pending request's response once, not {len(found)}")
    require(told == answers, "run() yields what the backend answered, and of pending requests only")
    require(engine.describe().name == "scripted", "describe() is the backend's own after run()")
    require(engine.usage().get("load_seconds", -1) >= 0, "usage() has load_seconds")

    engine = load()
    kept: list[Response] = []
    try:
        for response in engine.run(_scripted(ScriptedOptions(raise_after=4, batch_size=2), opened), requests, pending):
            kept.append(response)  # noqa: PERF402 - what came before the error counts
    except RuntimeError:
        require(len(kept) == 4, "answers given before a backend's error are yielded")
    else:
        raise AssertionError("run() passes a backend's error on")
    # Backends of other processes cannot be looked at from here.
    left_open = [backend.events for backend in opened if backend.events.count("close") != 1]
    require(not left_open, f"run() closes each backend once, also after an error: {left_open}")


def _scripted(options: ScriptedOptions, opened: list[ScriptedBackend]) -> Callable[[], ModelBackend]:
    spec = ModelSpec(name="scripted", backend="scripted", location="options")
    context = BackendContext(offline=True, cache_dir=Path(), training_samples=list)

    def open_backend() -> ModelBackend:
        backend = ScriptedBackend(spec, options, context)
        opened.append(backend)
        return backend

    return open_backend
