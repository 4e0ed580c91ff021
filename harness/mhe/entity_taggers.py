"""What a tagger of entities implements, for metrics that weigh the tokens of entities more than others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mhe.errors import MetricUnavailableError

if TYPE_CHECKING:
    from pydantic import BaseModel


class EntityTagger(Protocol):
    """Finds named things (diseases, anatomy, drugs) in texts, for metrics that weigh their tokens more."""

    name: str
    version: str
    """Changes with its rules: part of the key of the scores that rest on it, as `resources` are."""

    @property
    def resources(self) -> Mapping[str, str]:
        """Content digests of the files it reads, by name. Raises `MetricUnavailableError` where they cannot be had."""
        ...

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The entities of each text: start and end in characters, end excluded, ordered; they may overlap.

        As many lists as texts, each as if its text were alone. Raises `MetricUnavailableError` with the reason where
        a program or a file is absent.
        """
        ...


class TaggerFactory(Protocol):
    """A class with `Options`, called with them. Heavy imports and files wait for `resources` and `spans`."""

    @property
    def Options(self) -> type[BaseModel]:  # noqa: N802 - a class is what stands under this name
        """The model of its options."""
        ...

    def __call__(self, options: Any, /) -> EntityTagger:  # noqa: ANN401
        """A tagger."""
        ...


def no_tagger(name: str, options: Mapping[str, object]) -> EntityTagger:
    """Where nobody gave taggers. Raises `MetricUnavailableError`."""
    raise MetricUnavailableError(
        f"the tagger {name!r} cannot be opened with {dict(options)}: this context has no taggers; make it with "
        "open_tagger=mhe.open_catalog().open_tagger"
    )
