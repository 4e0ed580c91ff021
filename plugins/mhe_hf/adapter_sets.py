"""A folder with one adapter a module: `adapters.json` says where each belongs, and on which base.

    adapters.json   {"base": LOCATION, "revision": …, "base_fingerprint": …,
                     "adapters": [{"folder": "language", "module": "model.language_model"}]}
    language/       adapter_config.json and adapter_model.safetensors, as PEFT writes them, or where `kind` is `prefix`
                    as `mhe_hf.prefixes` does

Where `base` is left out, the folder holds the base as well: some of its own weights were trained.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from pydantic import ValidationError

from mhe import ModelUnusableError, Part, resolve_location

if TYPE_CHECKING:
    from pathlib import Path

SET_FILE = "adapters.json"
PEFT_KIND: Final = "peft"
PREFIX_KIND: Final = "prefix"
"""Of a learned prefix, here and as `kind` in its `adapter_config.json`; PEFT's own files have no such entry."""


class SetMember(Part):
    """One adapter of a set."""

    folder: str
    module: str
    """Dotted name of the sub-module it is on; empty for the whole model."""
    kind: Literal["peft", "prefix"] = PEFT_KIND


class AdapterSetFile(Part):
    """`adapters.json`."""

    base: str | None = None
    """A folder, hub id or `package:…` location; None where the base lies in the same folder."""
    revision: str | None = None
    base_fingerprint: str | None = None
    adapters: tuple[SetMember, ...]


@dataclass(frozen=True, slots=True)
class AdapterSet:
    """What such a folder holds."""

    folder: Path
    base: str
    """Resolved location of the base."""
    revision: str | None
    base_fingerprint: str | None
    members: tuple[tuple[Path, str, str], ...]
    """Folder, sub-module and kind of each adapter."""


def read_set(folder: Path) -> AdapterSet | None:
    """The set in a folder; None where there is no `adapters.json`. Raises `ModelUnusableError` for a broken one."""
    path = folder / SET_FILE
    if not path.is_file():
        return None
    try:
        found = AdapterSetFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise ModelUnusableError(f"{path} cannot be understood: {error}") from None
    return AdapterSet(
        folder=folder,
        base=str(folder) if found.base is None else resolve_location(found.base),
        revision=found.revision,
        base_fingerprint=found.base_fingerprint,
        members=tuple((folder / member.folder, member.module, member.kind) for member in found.adapters),
    )
