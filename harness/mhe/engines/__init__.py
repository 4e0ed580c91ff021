"""Engines of the core: where requests run. Found through the same entry-point group as everybody's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe.hookspecs import hookimpl
from mhe.values import Provider

if TYPE_CHECKING:
    from mhe.protocols import Engine


def _local() -> Engine:
    from mhe.engines.local import LocalEngine

    return LocalEngine()


@hookimpl
def register_engines() -> list[Provider[Engine]]:
    """The engine of one process."""
    return [Provider("local", "In this process, one backend after the other.", _local)]
