"""Training recipes. This module is the plugin and stays light; each recipe is one file, read from top to bottom."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import RecipeFactory

__all__ = ["register_recipes"]


def _load_full() -> RecipeFactory:
    from mhe_hf import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    from mhe_tune.full import FullRecipe

    return FullRecipe


@hookimpl
def register_recipes() -> Sequence[Provider[RecipeFactory]]:
    """The recipes of this package."""
    return [
        Provider(
            name="full",
            summary="full fine-tuning, each of vision, fusion and language trained or frozen",
            load=_load_full,
            extra="hf",
        )
    ]
