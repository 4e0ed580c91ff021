"""Installed versions, found without importing what they are of."""

from __future__ import annotations

import importlib.metadata

from mhe import MissingExtraError


def library_version(name: str, *, extra: str = "hf", needed_for: str = "backend hf") -> str:
    """The installed version. Raises `MissingExtraError`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(extra, needed_for, name) from None
