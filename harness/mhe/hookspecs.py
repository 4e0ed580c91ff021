"""Every extension point of mhe, in one file.

A plugin is a module (or object) with functions of these names, marked `@mhe.hookimpl` and announced in its
distribution's metadata:

    [project.entry-points.mhe]
    my_plugin = "my_package.plugin"

Hooks return lists of small typed objects and must be cheap: heavy imports go into `Provider.load`. Each plugin is
called alone; one that raises, or returns something else than its hook says, is reported by `mhe doctor` and
`mhe show plugins` and costs nobody else anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable
    from pathlib import Path

    from mhe.documents.model import ModelSpec
    from mhe.documents.run import RunRecord
    from mhe.entity_taggers import TaggerFactory
    from mhe.protocols import (
        BackendFactory,
        Command,
        DatasetReaderFactory,
        Engine,
        MetricFactory,
        Profile,
        RecipeFactory,
    )
    from mhe.values import Architecture, Provider

PROJECT = "mhe"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_backends() -> Sequence[Provider[BackendFactory]]:  # type: ignore[empty-body]
    """Ways to run a model: transformers in this process, vLLM, a server, a baseline."""


@hookspec
def register_models() -> Sequence[ModelSpec]:  # type: ignore[empty-body]
    """Names that a user types after `--model`, with backend, location and revision.

    Return specifications, not models: nothing is loaded or looked for here.
    """


@hookspec
def register_architectures() -> Sequence[Architecture]:  # type: ignore[empty-body]
    """Where vision, fusion and language live in a model class, for recipes that treat them apart."""


@hookspec
def register_model_classes() -> Sequence[Provider[type]]:  # type: ignore[empty-body]
    """Model classes of one's own that checkpoints need, by the name that `architectures` in their config.json gives.

    Each subclasses a class of transformers, keeps its `model_type`, and is loaded by the backend `hf` in its place.
    """


@hookspec
def register_task_folders() -> Sequence[Traversable]:  # type: ignore[empty-body]
    """Folders that each hold a `task.yaml` and a `README.md`; use `importlib.resources.files(...)`."""


@hookspec
def register_readers() -> Sequence[Provider[DatasetReaderFactory]]:  # type: ignore[empty-body]
    """Readers of data set layouts, named by `reader.name` in a `task.yaml`."""


@hookspec
def register_metrics() -> Sequence[Provider[MetricFactory]]:  # type: ignore[empty-body]
    """Metrics, named by `metrics` in a `task.yaml` and by `--metrics`.

    A provider named `family:` answers to each `family:NAME`, as any other kind of provider may: its `load` is called
    with `NAME`, and raises `mhe.UserError` for one that cannot be.
    """


@hookspec
def register_profiles() -> Sequence[Provider[Profile]]:  # type: ignore[empty-body]
    """Scoring conventions; `load` returns the profile itself."""


@hookspec
def register_taggers() -> Sequence[Provider[TaggerFactory]]:  # type: ignore[empty-body]
    """Entity taggers, named by the option `tagger` of metrics that weigh entities more."""


@hookspec
def register_recipes() -> Sequence[Provider[RecipeFactory]]:  # type: ignore[empty-body]
    """Training and compression recipes, named by `mhe tune --recipe`."""


@hookspec
def register_pipelines() -> Sequence[Traversable]:  # type: ignore[empty-body]
    """Pipeline files (`NAME.yaml`) known by name to `mhe tune` and `mhe eval`."""


@hookspec
def register_engines() -> Sequence[Provider[Engine]]:  # type: ignore[empty-body]
    """Where requests run; `load` returns a fresh engine."""


@hookspec
def register_commands() -> Sequence[Provider[Command]]:  # type: ignore[empty-body]
    """More sub-commands of `mhe`; `load` returns a `click.Command`."""


@hookspec
def run_finished(record: RunRecord, folder: Path) -> None:
    """Called once after `run.json` of a run was written, with the record and its folder; for trackers.

    Not called for a run that was already done. An exception becomes a warning on the terminal and in `mhe.log`
    of the run's folder; the run stays as it is.
    """
