"""Tagger `example-greys`: the words for how bright a square is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mhe import Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

GREY = re.compile(r"\b(?:bright|dark|grey)\b", re.IGNORECASE)


class GreysOptions(Part):
    """Set with `--set metrics.NAME.tagger_options.…`; this tagger has none."""


class GreysTagger:
    """Where in a text an entity stands: start and end in characters."""

    Options = GreysOptions
    name = "example-greys"
    version = "1"

    def __init__(self, options: GreysOptions) -> None:
        pass

    @property
    def resources(self) -> Mapping[str, str]:
        return {}

    def spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return [[word.span() for word in GREY.finditer(text)] for text in texts]
