"""Names offered by shell completion: from the catalogue alone, nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import click


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def complete_task(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Registered tasks."""
    from mhe.catalog import open_catalog

    return _starting(open_catalog().task_folders, incomplete)


def complete_model(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Registered models and checkpoints."""
    from mhe.catalog import open_catalog
    from mhe.checkpoints import list_checkpoints

    return _starting([*open_catalog().models, *list_checkpoints(None)], incomplete)


def complete_backend(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Registered backends."""
    from mhe.catalog import open_catalog

    return _starting(open_catalog().backends, incomplete)


def complete_profile(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Registered scoring profiles."""
    from mhe.catalog import open_catalog

    return _starting(open_catalog().profiles, incomplete)


def complete_recipe(_ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Registered recipes."""
    from mhe.catalog import open_catalog

    return _starting(open_catalog().recipes, incomplete)
