"""A plugin of mhe: this module holds the hooks and nothing heavy; each thing is imported when it is used."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import ModelSpec, Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

    from mhe import (
        BackendFactory,
        Command,
        DatasetReaderFactory,
        MetricFactory,
        Profile,
        RecipeFactory,
        RunRecord,
        TaggerFactory,
    )


def _load_backend() -> BackendFactory:
    from mhe_example.backend import BrightnessBackend

    return BrightnessBackend


def _load_reader() -> DatasetReaderFactory:
    from mhe_example.reader import SquaresReader

    return SquaresReader


def _load_metric() -> MetricFactory:
    from mhe_example.metric import FirstWord

    return FirstWord


def _load_profile() -> Profile:
    from mhe_example.profile import LENIENT

    return LENIENT


def _load_tagger() -> TaggerFactory:
    from mhe_example.tagger import GreysTagger

    return GreysTagger


def _load_recipe() -> RecipeFactory:
    from mhe_example.recipe import FitThreshold

    return FitThreshold


def _load_norms() -> RecipeFactory:
    from mhe_example.norms import NormsRecipe

    return NormsRecipe


def _load_command() -> Command:
    from mhe_example.command import show_threshold

    return show_threshold


@hookimpl
def register_backends() -> Sequence[Provider[BackendFactory]]:
    """A way to run models."""
    return [Provider("example", "one weight: the grey level from which an image is bright", _load_backend)]


@hookimpl
def register_models() -> Sequence[ModelSpec]:
    """A model by name. `package:` finds a folder inside an installed package."""
    return [
        ModelSpec(
            name="example",
            backend="example",
            location="package:mhe_example/weights",
            summary="calls an image bright from grey level 128 on",
        )
    ]


@hookimpl
def register_readers() -> Sequence[Provider[DatasetReaderFactory]]:
    """A reader of data."""
    return [Provider("example-squares", "grey squares made from a seed", _load_reader)]


@hookimpl
def register_task_folders() -> Sequence[Traversable]:
    """A folder with a task.yaml and a README.md; its name with dashes is the task's."""
    return [files("mhe_example") / "example_vqa"]


@hookimpl
def register_metrics() -> Sequence[Provider[MetricFactory]]:
    """A metric."""
    return [Provider("example-first-word", "share of answers that begin as a reference does", _load_metric)]


@hookimpl
def register_profiles() -> Sequence[Provider[Profile]]:
    """A scoring convention."""
    return [Provider("example-lenient", "an answer is right if its first word is", _load_profile)]


@hookimpl
def register_taggers() -> Sequence[Provider[TaggerFactory]]:
    """What finds entities, for metrics that weigh their words more."""
    return [Provider("example-greys", "the words for how bright a square is", _load_tagger)]


@hookimpl
def register_recipes() -> Sequence[Provider[RecipeFactory]]:
    """Ways to train. `extra` is what a user is told to install where torch and transformers are not there."""
    return [
        Provider("example-fit", "fits the one weight to the training split", _load_recipe),
        Provider("example-norms", "trains the layer normalisations of chosen modules", _load_norms, extra="hf"),
    ]


@hookimpl
def register_commands() -> Sequence[Provider[Command]]:
    """A sub-command."""
    return [Provider("example-threshold", "Print the one weight of a model folder.", _load_command)]


@hookimpl
def run_finished(record: RunRecord, folder: Path) -> None:
    """A tracker: one line a run, in the file that MHE_EXAMPLE_LOG names."""
    if place := os.environ.get("MHE_EXAMPLE_LOG"):
        line = {"model": record.model.name, "task": record.task.name, "folder": str(folder)}
        with Path(place).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
