"""What all contract checks share: how a broken promise is told, and what every factory with options promises."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from mhe.catalog import NAME
from mhe.digests import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel


class HasOptions(Protocol):
    """The part of a factory that holds its options' model."""

    @property
    def Options(self) -> type[BaseModel]:  # noqa: N802 - a class is what stands under this name
        """The model of its options."""
        ...


def promise(kept: object, broken: str) -> None:
    """Raise `AssertionError` with `broken` unless `kept`; an `assert` would vanish under `python -O`."""
    if not kept:
        raise AssertionError(broken)


def check_options(factory: HasOptions, options: Mapping[str, object] | None) -> BaseModel:
    """An instance of the factory's options, after: unknown keys are refused, values can be written as JSON."""
    from pydantic import BaseModel, ValidationError

    kind = getattr(factory, "Options", None)
    promise(
        isinstance(kind, type) and issubclass(kind, BaseModel),
        f"{factory!r} has no pydantic model under the name Options (subclass mhe.Part)",
    )
    unknown = {"no_such_option_of_anything": 1}
    try:
        factory.Options.model_validate({**(options or {}), **unknown})
    except ValidationError as error:
        found = {item["type"] for item in error.errors() if item["loc"] == tuple(unknown)}
        promise("extra_forbidden" in found, f"Options of {factory!r} accept unknown keys (subclass mhe.Part)")
    else:
        raise AssertionError(f"Options of {factory!r} accept unknown keys (subclass mhe.Part)")
    chosen = factory.Options.model_validate(dict(options or {}))
    digest_of(chosen.model_dump(mode="json"))
    return chosen


def check_name(name: object, version: object, what: str) -> None:
    """A name that can be typed, and a version that is a text."""
    promise(isinstance(name, str) and NAME.fullmatch(name), f"{what}: name {name!r} does not match {NAME.pattern}")
    promise(
        isinstance(version, str) and re.fullmatch(r"\S+", version),
        f"{what}: version must be a text without blanks, found {version!r}",
    )
