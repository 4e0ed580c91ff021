"""Dry runs: what the steps of a pipeline would do, before any of them ran.

Each recipe writes the shape of its result, a configuration without weights, and the next step is planned on it. Where
weights are not on this machine, and the backend can do with a configuration, that is planned on; where the data is not
here, its pairs are counted as its task announces them. So a pipeline is planned at its true size anywhere.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.checkpoints import checkpoint_folder, model_of, read_checkpoint
from mhe.documents.model import ModelSpec
from mhe.errors import DataMissingError, DocumentError, ModelUnusableError, UserError
from mhe.model_names import resolve_model
from mhe.pipeline_runs import BASE, check_pipeline, step_of, steps_until
from mhe.pipelines import finished_step, input_model, plan_with, preview_step, validate_options
from mhe.training_data import load_training_set

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mhe.catalog import Catalog
    from mhe.documents.checkpoint import Checkpoint
    from mhe.documents.pipeline import PipelineSpec, TrainingChoice
    from mhe.pipelines import Step, StepPlace, StepPlan
    from mhe.protocols import InputModel, RecipeResult
    from mhe.training_data import TrainingSet

SHAPE = "random_weights"
"""The option of a backend that does with a model's configuration alone."""


@dataclass(frozen=True, slots=True)
class StepPreview:
    """What a step would do."""

    plan: StepPlan
    result: RecipeResult | None
    """What the recipe says; None where the step is finished already."""
    finished: tuple[Path, Checkpoint] | None
    """The folder and document of an equal step that is."""
    digest: str | None
    """None where it is not known yet: a model before it is not made, or the data not here."""
    model: ModelSpec
    """What a later step is planned on."""
    remarks: tuple[str, ...] = ()


def preview_pipeline(
    catalog: Catalog, spec: PipelineSpec, place: StepPlace, *, seed: int = 0, until: str | None = None
) -> Iterator[StepPreview]:
    """What each step would do, one after another; trains nothing and leaves nothing behind.

    Raises what `check_pipeline` raises, before the first; `UserError` for a step after one whose recipe does not write
    the shape of its result; and what the recipes raise.
    """
    check_pipeline(catalog, spec, checkpoints_dir=place.directory)
    models: dict[str, ModelSpec] = {}
    shapeless: dict[str, str] = {}

    def model(name: str) -> ModelSpec:
        if name in shapeless:
            raise UserError(
                f"what follows the step {name} cannot be planned: its recipe {shapeless[name]!r} does not write the "
                f"shape of its result in a dry run. Run it first: mhe tune {spec.name} --until {name}"
            )
        if name not in models:
            wanted = spec.base if name == BASE else name
            models[name] = resolve_model(wanted, catalog, checkpoints_dir=place.directory)
        return models[name]

    with tempfile.TemporaryDirectory(prefix="mhe-plan-") as passing:
        for step in steps_until(spec, until):
            folder = Path(passing) / step.name
            folder.mkdir()
            found = _preview(catalog, step_of(spec, step, model, seed), place, folder)
            models[step.name] = found.model
            if found.result is not None and not found.result.model_folder.is_dir():
                shapeless[step.name] = step.recipe
            yield found


def preview_alone(catalog: Catalog, step: Step, place: StepPlace) -> StepPreview:
    """What one step would do; leaves nothing behind. Raises what planning and the recipe raise."""
    with tempfile.TemporaryDirectory(prefix="mhe-plan-") as passing:
        return _preview(catalog, step, place, Path(passing))


def _preview(catalog: Catalog, step: Step, place: StepPlace, folder: Path) -> StepPreview:
    remarks: list[str] = []
    factory = catalog.recipe(step.recipe)
    options = validate_options(step.recipe, factory, step.settings)
    base = _opened(catalog, step.base, place, remarks)
    inputs = {role: _opened(catalog, spec, place, remarks) for role, spec in step.inputs.items()}
    data, announced = _data(catalog, step, place, remarks)
    plan = plan_with(step, factory(options), options, base, inputs, data)
    is_known = not announced and not any(is_shape(item.spec) for item in (base, *inputs.values()))
    if is_known:
        done = finished_step(plan, place)
        if done is not None:
            return StepPreview(plan, None, done, plan.digest, model_of(*done), tuple(remarks))
        remarks += _taken_name(plan, place)
    result = preview_step(catalog, plan, place, folder, expected_examples=announced)
    model = ModelSpec(
        name=step.name,
        backend=result.backend,
        location=str(result.model_folder),
        options={**result.options, SHAPE: True},
        seed=step.seed,
    )
    return StepPreview(plan, result, None, plan.digest if is_known else None, model, tuple(remarks))


def is_shape(spec: ModelSpec) -> bool:
    """Whether a model stands for its configuration alone."""
    return spec.options.get(SHAPE) is True


def _opened(catalog: Catalog, spec: ModelSpec, place: StepPlace, remarks: list[str]) -> InputModel:
    """The model, or where its weights are not here its shape. Raises what `input_model` raises where neither is."""
    try:
        return input_model(catalog, spec, place)
    except ModelUnusableError:
        if is_shape(spec) or SHAPE not in catalog.backend(spec.backend).Options.model_fields:
            raise
        shape = spec.model_copy(update={"options": {**spec.options, SHAPE: True}})
        try:
            found = input_model(catalog, shape, place)
        except (ModelUnusableError, DocumentError):
            found = None
        if found is None:
            raise
    remark = f"the weights of {spec.name} are not on this machine: planned from its configuration"
    remarks += [] if remark in remarks else [remark]
    return found


def _data(catalog: Catalog, step: Step, place: StepPlace, remarks: list[str]) -> tuple[TrainingSet | None, int]:
    """The step's data, or how many pairs its tasks announce where it is not on this machine."""
    if not step.data:
        return None, 0
    try:
        # A plan is no reason to download a data set.
        data = load_training_set(catalog, step.data, seed=step.seed, data_dir=place.data_dir, offline=True)
    except DataMissingError:
        announced = announced_examples(catalog, step.data)
        if not announced:
            raise
    else:
        return data, 0
    names = ", ".join(choice.task for choice in step.data)
    remarks.append(f"the data of {names} is not on this machine: {announced:,} pairs, as announced")
    return None, announced


def announced_examples(catalog: Catalog, choices: Sequence[TrainingChoice]) -> int:
    """How many training pairs the tasks say they have, before the data guard; 0 where one of them does not say."""
    total = 0
    for choice in choices:
        task = catalog.task(choice.task)
        split = task.splits.get(choice.split or task.train_split or "")
        if split is None or split.samples is None:
            return 0
        number = split.samples if choice.limit is None else min(choice.limit, split.samples)
        total += max(1, round(number * choice.fraction))
    return total


def _taken_name(plan: StepPlan, place: StepPlace) -> list[str]:
    name, seed = plan.step.name, plan.step.seed
    folder = checkpoint_folder(name, seed, place.directory)
    found = read_checkpoint(folder) if folder.is_dir() else None
    if found is None or found.step_digest == plan.digest or place.replace:
        return []
    return [f"{name}@{seed} holds the result of another step: give --replace, or another --name"]
