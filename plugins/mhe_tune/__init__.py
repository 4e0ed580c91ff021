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


_RECIPES = (
    ("full", "full.FullRecipe", "hf", "every weight of the modules that are not frozen"),
    (
        "lora",
        "lora.LoraRecipe",
        "tune",
        "low-rank matrices beside linear layers (Hu et al. 2022; presets llava16-lora, mile-lora-*)",
    ),
    (
        "qlora",
        "qlora.QloraRecipe",
        "tune",
        "low-rank matrices on a base in 4 or 8 bits (Dettmers et al. 2023; preset neto2025-qlora)",
    ),
    ("dora", "dora.DoraRecipe", "tune", "low-rank adaptation of directions, lengths learnt apart (Liu et al. 2024)"),
    (
        "ia3",
        "ia3.Ia3Recipe",
        "tune",
        "learnt rescaling of keys, values and inner activations (Liu et al. 2022; presets mile-ia3-*)",
    ),
    (
        "bitfit",
        "bitfit.BitfitRecipe",
        "hf",
        "biases of chosen modules, and no other weight (Ben Zaken et al. 2022)",
    ),
    (
        "prefix",
        "prefix.PrefixRecipe",
        "hf",
        "keys and values learned before every layer's, by a small network (Li and Liang 2021; presets mile-prefix-*)",
    ),
    (
        "ptuning-v2",
        "ptuning_v2.PtuningV2Recipe",
        "hf",
        "keys and values learned before every layer's, directly (Liu et al. 2022; presets mile-ptv2-*)",
    ),
    (
        "instruction",
        "instruction.InstructionRecipe",
        "hf",
        "full fine-tuning on instructions with candidate answers (MILE, Chen et al. 2024; preset mile-instruction)",
    ),
    (
        "staged",
        "staged.StagedRecipe",
        "hf",
        "fusion first, then language, then vision block by block (preset visiongpt2-staged)",
    ),
)


@hookimpl
def register_recipes() -> Sequence[Provider[RecipeFactory]]:
    """The recipes of this package; their summaries name paper and presets."""
    return [
        Provider(name=name, summary=summary, load=_recipe(*place.split(".")), extra=extra)
        for name, place, extra, summary in _RECIPES
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
