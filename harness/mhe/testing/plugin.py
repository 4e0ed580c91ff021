"""The plugin of `mhe.testing`: backend and model `scripted`, reader `toy`; found as everybody's plugins are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe.hookspecs import hookimpl
from mhe.values import Provider

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.documents.model import ModelSpec
    from mhe.protocols import BackendFactory, DatasetReaderFactory


def _load_scripted() -> BackendFactory:
    from mhe.testing.scripted import ScriptedBackend

    return ScriptedBackend


def _load_toy() -> DatasetReaderFactory:
    from mhe.testing.toys import ToyReader

    return ToyReader


@hookimpl
def register_backends() -> Sequence[Provider[BackendFactory]]:
    """Answers from a list, for tests."""
    return [Provider("scripted", "answers from a list or a file, and errors on demand: for tests", _load_scripted)]


@hookimpl
def register_models() -> Sequence[ModelSpec]:
    """The scripted backend under its name."""
    from mhe.documents.model import ModelSpec

    return [
        ModelSpec(
            name="scripted",
            backend="scripted",
            location="its own options",
            summary="gives the answers it is told to give (--set backend.answer=…): for tests",
        )
    ]


@hookimpl
def register_readers() -> Sequence[Provider[DatasetReaderFactory]]:
    """Questions about grey squares, made in memory, for tests."""
    return [Provider("toy", "questions about grey squares, made in memory: for tests", _load_toy)]
