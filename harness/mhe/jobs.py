"""A job without a step: for commands of plugins that look at a model on training data and make no checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mhe.documents.pipeline import TrainingChoice
from mhe.model_names import resolve_model
from mhe.pipelines import StepPlace, input_model
from mhe.protocols import RecipeJob
from mhe.training_data import load_training_set

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mhe.catalog import Catalog


def open_job(
    catalog: Catalog,
    model: str,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
    checkpoints_dir: Path | None = None,
    offline: bool = False,
    report: Callable[[str, Mapping[str, float]], None] = lambda _phase, _numbers: None,
) -> RecipeJob:
    """The model with its fingerprint, and the guarded training and validation examples of the tasks.

    `limit` is how many training samples of each task are read. The job's folder is the working directory and means
    nothing. Raises what `resolve_model`, the backend's `describe` and `load_training_set` raise.
    """
    spec = resolve_model(model, catalog, checkpoints_dir=checkpoints_dir)
    base = input_model(catalog, spec, StepPlace(directory=checkpoints_dir, data_dir=data_dir, offline=offline))
    choices = [TrainingChoice(task=task, limit=limit) for task in dict.fromkeys(tasks)]
    data = load_training_set(catalog, choices, seed=seed, data_dir=data_dir, offline=offline)
    return RecipeJob(
        base=base,
        inputs={},
        train=data.train,
        validation=data.validation,
        folder=Path(),
        seed=seed,
        report=report,
        tasks=data.tasks,
        architectures=catalog.architectures,
        offline=offline,
    )
