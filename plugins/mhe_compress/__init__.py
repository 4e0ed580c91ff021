"""Compression: distil, prune, quantise, merge, export. This module is the plugin and stays light."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mhe import RecipeFactory

__all__ = ["register_recipes"]


def _recipe(module: str, recipe: str) -> Callable[[], RecipeFactory]:
    def load() -> RecipeFactory:
        import importlib

        from mhe_hf import let_waiting_threads_sleep

        let_waiting_threads_sleep()
        found: RecipeFactory = getattr(importlib.import_module(f"mhe_compress.{module}"), recipe)
        return found

    return load


_RECIPES: tuple[tuple[str, str, str, str], ...] = ()
"""Name, `module.Class`, extra that it needs, and one line that names the paper."""


@hookimpl
def register_recipes() -> Sequence[Provider[RecipeFactory]]:
    """The recipes of this package."""
    return [
        Provider(name=name, summary=summary, load=_recipe(*place.split(".")), extra=extra)
        for name, place, extra, summary in _RECIPES
    ]
