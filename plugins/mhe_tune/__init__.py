"""Training recipes. This module is the plugin and stays light; each recipe is one file, read from top to bottom."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mhe import Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mhe import RecipeFactory

__all__ = ["register_pipelines", "register_recipes"]


def _recipe(module: str, recipe: str) -> Callable[[], RecipeFactory]:
    def load() -> RecipeFactory:
        import importlib

        from mhe_hf import let_waiting_threads_sleep

        let_waiting_threads_sleep()
        found: RecipeFactory = getattr(importlib.import_module(f"mhe_tune.{module}"), recipe)
        return found

    return load


@hookimpl
def register_recipes() -> Sequence[Provider[RecipeFactory]]:
    """The recipes of this package."""
    return [
        Provider(
            name="full",
            summary="full fine-tuning, each of vision, fusion and language trained or frozen",
            load=_recipe("full", "FullRecipe"),
            extra="hf",
        ),
        Provider(
            name="lora",
            summary="low-rank matrices beside chosen linear layers",
            load=_recipe("lora", "LoraRecipe"),
            extra="tune",
        ),
        Provider(
            name="qlora",
            summary="low-rank matrices on a base in 4 or 8 bits",
            load=_recipe("qlora", "QloraRecipe"),
            extra="tune",
        ),
        Provider(
            name="dora",
            summary="low-rank adaptation of directions, lengths learnt apart",
            load=_recipe("dora", "DoraRecipe"),
            extra="tune",
        ),
        Provider(
            name="ia3",
            summary="learnt rescaling of keys, values and inner activations",
            load=_recipe("ia3", "Ia3Recipe"),
            extra="tune",
        ),
        Provider(
            name="instruction",
            summary="full fine-tuning on instructions drawn from the training pairs, with candidate answers (MILE)",
            load=_recipe("instruction", "InstructionRecipe"),
            extra="hf",
        ),
        Provider(
            name="staged",
            summary="fusion first, then language, then vision block by block (VisionGPT-2)",
            load=_recipe("staged", "StagedRecipe"),
            extra="hf",
        ),
    ]


@hookimpl
def register_pipelines() -> Sequence[Path]:
    """The papers' trainings of one or several of these recipes."""
    folder = Path(__file__).parent / "pipelines"
    return [
        folder / "mile-instruction.yaml",
        folder / "mile-two-stage.yaml",
        folder / "visiongpt2-staged.yaml",
    ]
