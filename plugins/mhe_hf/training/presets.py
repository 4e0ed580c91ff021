"""Presets: a recipe's options with the values of a paper, chosen by `--set preset=NAME`.

A recipe names its own in its options, as `presets`. What is set besides a preset wins over it. Where a paper is
silent, the preset says so and where its value is taken from.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mhe import Preset


def with_preset(presets: Mapping[str, Preset], given: object) -> object:
    """The settings over the values of the preset they name; unchanged where they name none that exists."""
    if not isinstance(given, dict):
        return given
    preset = presets.get(str(given.get("preset")))
    return given if preset is None else {**preset.values, **given}


def checked_preset(presets: Mapping[str, Preset], name: str | None) -> str | None:
    """The name. Raises `ValueError` with a suggestion for one that is not there."""
    if name is None or name in presets:
        return name
    close = difflib.get_close_matches(name, presets, n=1, cutoff=0.4)
    suggestion = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"this recipe has no such preset.{suggestion} Presets: {', '.join(sorted(presets)) or 'none'}")
