"""What an engine promises, seen through the scripted backend."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.testing.contracts.promises import promise
from mhe.testing.scripted import ScriptedBackend, ScriptedOptions
from mhe.testing.toys import toy_model, toy_requests, toy_samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from mhe.protocols import Engine, ModelBackend
    from mhe.values import Response


def check_engine(make: Callable[[], Engine]) -> None:
    """Each pending request is answered once and no other, the same whatever the number of workers; a crash goes up.

    `make` gives a fresh engine: the `load` of its provider. Raises `AssertionError` with the broken promise.
    """
    samples = toy_samples(9)
    answers = {sample.id: f"answer {number}" for number, sample in enumerate(samples)}
    requests = toy_requests(samples)
    pending = [sample.id for sample in samples[2:]]
    engine = make()
    what = f"engine {engine.name!r}"
    try:
        engine.describe()
    except RuntimeError:
        pass
    else:
        raise AssertionError(f"{what}: describe before run must raise RuntimeError")
    with tempfile.TemporaryDirectory() as folder:
        opener = functools.partial(open_scripted, Path(folder), answers=answers)
        found = list(engine.run(opener, requests, frozenset(pending)))
        _check_responses(found, pending, answers, what)
        promise(engine.describe().name == "scripted", f"{what}: describe after run is not the backend's description")
        usage = engine.usage()
        promise("load_seconds" in usage, f"{what}: usage has no load_seconds, only {sorted(usage)}")
        promise(all(value >= 0 for value in usage.values()), f"{what}: usage has a negative figure: {dict(usage)}")
        crashing = functools.partial(open_scripted, Path(folder), answers=answers, stop_after=2)
        try:
            list(make().run(crashing, requests, frozenset(pending)))
        except RuntimeError:
            return
        raise AssertionError(f"{what}: a backend that raised while generating went unnoticed")


def _check_responses(found: list[Response], pending: list[str], answers: dict[str, str], what: str) -> None:
    ids = [response.sample_id for response in found]
    promise(sorted(ids) == sorted(pending), f"{what}: asked for {sorted(pending)}, answered {sorted(ids)}")
    for response in found:
        right = answers[response.sample_id]
        promise(response.text == right, f"{what}: {response.sample_id} got {response.text!r}, not {right!r}")


def open_scripted(folder: Path, **options: object) -> ModelBackend:
    """A scripted backend, opened by name in whatever process the engine runs it."""
    from mhe.testing.toys import toy_context

    return ScriptedBackend(toy_model("scripted"), ScriptedOptions.model_validate(options), toy_context(folder))
