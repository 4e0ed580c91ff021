"""Requests run in this process, one backend, in the order that the backend likes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mhe.protocols import ModelBackend
    from mhe.values import BackendDescription, Request, Response


class LocalEngine:
    """Loads one backend, generates, closes it."""

    name = "local"

    def __init__(self) -> None:
        self._description: BackendDescription | None = None
        self._usage: dict[str, float] = {}

    def run(
        self, open_backend: Callable[[], ModelBackend], requests: Sequence[Request], pending: Collection[str]
    ) -> Iterator[Response]:
        """Load, then yield each pending request's response as the backend gives it."""
        backend = open_backend()
        try:
            start = time.perf_counter()
            backend.load()
            self._usage["load_seconds"] = time.perf_counter() - start
            self._description = backend.describe()
            yield from backend.generate(requests, pending)
        finally:
            self._usage.update(backend.usage())
            backend.close()

    def describe(self) -> BackendDescription:
        """The backend's description after loading."""
        if self._description is None:
            raise RuntimeError("the engine has not loaded a backend yet")
        return self._description

    def usage(self) -> Mapping[str, float]:
        """The backend's own figures, with `load_seconds`."""
        return dict(self._usage)
