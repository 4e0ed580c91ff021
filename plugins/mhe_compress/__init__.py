"""Compression: distil, prune, quantise, merge, export. This module is the plugin and stays light."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mhe import Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mhe import Command, RecipeFactory

__all__ = ["register_commands", "register_model_classes", "register_pipelines", "register_recipes"]


def _recipe(module: str, recipe: str) -> Callable[[], RecipeFactory]:
    def load() -> RecipeFactory:
        import importlib

        from mhe_hf import let_waiting_threads_sleep

        let_waiting_threads_sleep()
        found: RecipeFactory = getattr(importlib.import_module(f"mhe_compress.{module}"), recipe)
        return found

    return load


_RECIPES: tuple[tuple[str, str, str, str], ...] = (
    (
        "distill",
        "distill.DistillRecipe",
        "tune",
        "a teacher's soft targets or its answers, learnt (Hinton et al. 2015; presets neto2025-kd, neto2025-kd-*)",
    ),
    ("quantize", "quantize.QuantizeRecipe", "quant", "weights stored in 4 or 8 bits (NF4: Dettmers et al. 2023)"),
    ("merge", "merge.MergeRecipe", "tune", "adapters added to the weights, a base of few bits made whole first"),
    ("export", "export.ExportRecipe", "hf", "a folder in published key names with a model card, loaded without mhe"),
    (
        "prune",
        "prune.PruneRecipe",
        "hf",
        "heads and neurons taken out, so that matrices shrink (Neto et al. 2025; preset neto2025-prune)",
    ),
)
"""Name, `module.Class`, extra that it needs, and one line that names the paper."""


@hookimpl
def register_recipes() -> Sequence[Provider[RecipeFactory]]:
    """The recipes of this package."""
    return [
        Provider(name=name, summary=summary, load=_recipe(*place.split(".")), extra=extra)
        for name, place, extra, summary in _RECIPES
    ]


@hookimpl
def register_pipelines() -> Sequence[Path]:
    """The entrants of Neto et al., at true size and on small models."""
    folder = Path(__file__).parent / "pipelines"
    return [folder / f"{size}{name}.yaml" for name in _ENTRANTS for size in ("", "tiny-")]


_ENTRANTS = (
    "llama-qlora",
    "llama-qlora-pruned",
    "llava-kd",
    "llava-kd-pruned",
    "llava-kd-qlora",
    "qwen-qlora",
    "qwen-qlora-pruned",
)


_MODEL_CLASSES = (
    "PrunedBlip2ForConditionalGeneration",
    "PrunedBlipForConditionalGeneration",
    "PrunedBlipForQuestionAnswering",
    "PrunedLlavaForConditionalGeneration",
    "PrunedLlavaNextForConditionalGeneration",
    "PrunedMllamaForConditionalGeneration",
    "PrunedQwen2VLForConditionalGeneration",
    "PrunedVisionEncoderDecoderModel",
)


def _model_class(name: str) -> Callable[[], type]:
    def load() -> type:
        from mhe_compress.pruned_models import CLASSES

        return CLASSES[name]

    return load


@hookimpl
def register_model_classes() -> Sequence[Provider[type]]:
    """Models with fewer heads or neurons than their library's configuration can say."""
    return [
        Provider(name=name, summary=f"{name.removeprefix('Pruned')}, pruned", load=_model_class(name), extra="hf")
        for name in _MODEL_CLASSES
    ]


def _scan_layers() -> Command:
    from mhe_compress.scan_command import scan_layers_command

    return scan_layers_command


@hookimpl
def register_commands() -> Sequence[Provider[Command]]:
    """`mhe scan-layers`."""
    return [
        Provider(
            name="scan-layers",
            summary="Measure how much the loss rises when each layer alone is pruned.",
            load=_scan_layers,
            extra="hf",
        )
    ]
