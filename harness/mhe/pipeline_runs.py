"""Pipelines: the steps of a `NAME.yaml` one after another, each a checkpoint that starts from another's.

The last step's checkpoint has the pipeline's name, `NAME@SEED`; the others are `NAME.STEP@SEED`. Everything about one
step (its digest, resuming, locks, equal steps made by another pipeline) is `mhe.pipelines.run_step`'s.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.documents.pipeline import PipelineSpec, PipelineVariant
from mhe.errors import DocumentError, MheError, UnknownNameError, UserError
from mhe.model_names import resolve_model
from mhe.pipelines import Step, StepOutcome, run_step, validate_options
from mhe.task_files import read_document, read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.resources.abc import Traversable

    from mhe.catalog import Catalog
    from mhe.documents.model import ModelSpec
    from mhe.documents.pipeline import PipelineStep, TrainingChoice
    from mhe.pipelines import StepPlace

BASE = "base"
"""How steps name the model that the pipeline starts from."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """One step of a pipeline that was run."""

    step: PipelineStep
    outcome: StepOutcome


def find_pipeline(name: str, catalog: Catalog) -> PipelineSpec:
    """A registered pipeline, or one in a YAML file; a variant with what it takes from the one that it extends.

    Raises `UnknownNameError`, `UserError` for a file that is not there, `DocumentError` with every problem.
    """
    return _read_pipeline(_pipeline_file(name, catalog), catalog, ())


def _pipeline_file(name: str, catalog: Catalog) -> Path | Traversable:
    if name in catalog.pipelines:
        return catalog.pipelines[name]
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{name}: no such file. Registered pipelines: {', '.join(catalog.pipelines) or 'none'}.")
        return path
    raise UnknownNameError("pipeline", name, catalog.pipelines, hint="A YAML file can be given as well: ./my.yaml.")


def _read_pipeline(file: Path | Traversable, catalog: Catalog, below: tuple[str, ...]) -> PipelineSpec:
    data, _ = read_yaml(file)
    if not isinstance(data, dict) or "extends" not in data:
        return read_document(PipelineSpec, file)
    variant = read_document(PipelineVariant, file)
    chain = (*below, variant.name)
    if variant.extends in chain:
        raise DocumentError(str(file), [f"extends: {' extends '.join([*chain, variant.extends])}: a circle"])
    if variant.extends in catalog.pipelines:
        other = _read_pipeline(catalog.pipelines[variant.extends], catalog, chain)
    else:
        beside = file.with_name(f"{variant.extends}.yaml") if isinstance(file, Path) else None
        if beside is None or not beside.is_file():
            raise UnknownNameError(
                "pipeline",
                variant.extends,
                catalog.pipelines,
                hint=f"{file} extends it, and no such file is beside it.",
            )
        other = _read_pipeline(beside, catalog, chain)
    spec = other.model_copy(
        update={
            "name": variant.name,
            "summary": variant.summary or other.summary,
            "base": variant.base or other.base,
            "paper": variant.paper or other.paper,
        }
    )
    if variant.data is not None:
        spec = with_data(spec, variant.data)
    return with_settings(spec, variant.settings)


def with_settings(spec: PipelineSpec, settings: Mapping[str, object]) -> PipelineSpec:
    """The pipeline with `base=MODEL`, `STEP.OPTION=value`, `STEP.inputs.ROLE=MODEL` or `STEP.recipe=NAME` replaced.

    Raises `DocumentError` with every setting that names nothing, and suggestions.
    """
    base: object = spec.base
    steps = {step.name: step for step in spec.steps}
    problems = []
    for key, value in settings.items():
        owner = max((n for n in steps if key.startswith(f"{n}.")), key=len, default=None)
        if key == BASE:
            base = value
        elif owner is None:
            close = difflib.get_close_matches(key.partition(".")[0], [BASE, *steps], n=1)
            problems.append(f"{key}: no such step{f'; did you mean {close[0]}?' if close else ''}")
        else:
            steps[owner] = _changed(steps[owner], key.removeprefix(f"{owner}."), value)
    if problems:
        hint = f"Give base=MODEL or STEP.OPTION=VALUE; the steps are {', '.join(steps)}."
        raise DocumentError(f"settings of pipeline {spec.name}", problems, hint=hint)
    changed = spec.model_dump(mode="json") | {
        BASE: base,
        "steps": [step.model_dump(mode="json") for step in steps.values()],
    }
    return PipelineSpec.from_data(changed, f"pipeline {spec.name} with --set")


def _changed(step: PipelineStep, key: str, value: object) -> PipelineStep:
    if key == "recipe":
        return step.model_copy(update={"recipe": value})
    role = key.removeprefix("inputs.")
    if role != key:
        return step.model_copy(update={"inputs": {**step.inputs, role: value}})
    return step.model_copy(update={"options": {**step.options, key: value}})


def with_data(spec: PipelineSpec, data: Sequence[TrainingChoice]) -> PipelineSpec:
    """The pipeline trained on other tasks: those of every step that trains on any."""
    steps = tuple(step.model_copy(update={"data": None}) if step.data else step for step in spec.steps)
    return spec.model_copy(update={"data": tuple(data), "steps": steps})


def steps_until(spec: PipelineSpec, until: str | None) -> tuple[PipelineStep, ...]:
    """The steps up to `until` that it needs, or all. Raises `UnknownNameError`."""
    if until is None:
        return spec.steps
    by_name = {step.name: step for step in spec.steps}
    if until not in by_name:
        raise UnknownNameError("step", until, by_name, hint=f"(of pipeline {spec.name})")
    needed = {until}
    for number in range(len(spec.steps) - 1, -1, -1):
        step = spec.steps[number]
        if step.name in needed:
            needed |= {parent_of(spec, step), *step.inputs.values()}
    return tuple(step for step in spec.steps if step.name in needed)


def parent_of(spec: PipelineSpec, step: PipelineStep) -> str:
    """The step, or `base`, whose result a step starts from."""
    if step.from_step is not None:
        return step.from_step
    number = spec.steps.index(step)
    return spec.steps[number - 1].name if number else BASE


def checkpoint_name(spec: PipelineSpec, step: PipelineStep) -> str:
    """The name of a step's checkpoint: the pipeline's own for the last step."""
    return spec.name if step.name == spec.steps[-1].name else f"{spec.name}.{step.name}"


def check_pipeline(catalog: Catalog, spec: PipelineSpec, *, checkpoints_dir: Path | None = None) -> None:
    """Find mistakes of every step before the first is trained.

    Raises `DocumentError` with all unknown recipes, tasks, parents and inputs, and all wrong options.
    """
    problems = []
    names = [step.name for step in spec.steps]
    for step in spec.steps:
        try:
            validate_options(step.recipe, catalog.recipe(step.recipe), step.options)
        except (DocumentError, UnknownNameError) as error:
            problems += [f"step {step.name}: {line.strip()}" for line in str(error).splitlines()]
        if step.from_step is not None and step.from_step not in (BASE, *names):
            problems.append(f"step {step.name}: starts from {step.from_step!r}, and there is no such step")
        for role, name in step.inputs.items():
            if name not in (BASE, *names):
                try:
                    resolve_model(name, catalog, checkpoints_dir=checkpoints_dir)
                except MheError as error:
                    problems.append(f"step {step.name}: input {role}: {' '.join(str(error).split())}")
        for choice in step.data or ():
            if choice.task not in catalog.task_folders:
                problems.append(f"step {step.name}: no task is called {choice.task!r}")
    problems += [f"no task is called {c.task!r}" for c in spec.data if c.task not in catalog.task_folders]
    if problems:
        raise DocumentError(f"pipeline {spec.name}", problems, hint="See: mhe show recipes, mhe show tasks")


def run_pipeline(
    catalog: Catalog,
    spec: PipelineSpec,
    place: StepPlace,
    *,
    seed: int = 0,
    until: str | None = None,
    run: Callable[[Step], StepOutcome] | None = None,
) -> list[StepResult]:
    """Run the steps in order, those finished before not again; the result of each.

    `run` runs one step in the place of `run_step`, for those who show progress. Raises what `check_pipeline` and
    `run_step` raise; what was finished before an error stays, and an equal call goes on from there.
    """
    check_pipeline(catalog, spec, checkpoints_dir=place.directory)
    run = run or (lambda step: run_step(catalog, step, place))
    models: dict[str, ModelSpec] = {}

    def model(name: str) -> ModelSpec:
        if name not in models:
            wanted = spec.base if name == BASE else name
            models[name] = resolve_model(wanted, catalog, checkpoints_dir=place.directory)
        return models[name]

    results = []
    for step in steps_until(spec, until):
        outcome = run(step_of(spec, step, model, seed))
        models[step.name] = outcome.model
        results.append(StepResult(step, outcome))
    return results


def step_of(spec: PipelineSpec, step: PipelineStep, model: Callable[[str], ModelSpec], seed: int) -> Step:
    """A pipeline's step as `run_step` takes it; `model` finds the model behind a step's name, `base`, or any name."""
    return Step(
        name=checkpoint_name(spec, step),
        recipe=step.recipe,
        base=model(parent_of(spec, step)),
        settings=step.options,
        inputs={role: model(name) for role, name in step.inputs.items()},
        data=spec.data if step.data is None else step.data,
        seed=seed,
    )
