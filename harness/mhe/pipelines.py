"""Steps: the one mechanism below `mhe tune` and pipelines of several steps.

A step is a recipe applied to a model, and leaves a checkpoint. It is known by the digest of everything it depends
on: recipe, version and options, the parent's and the other inputs' fingerprints, every training prompt, image and
answer, and the seed. An equal digest whose checkpoint is finished is not run again, under whatever name it was made;
an interrupted one continues in its work folder, `CHECKPOINTS/.work/<digest>/`, which one process at a time may hold.
A pipeline calls `run_step` for each of its steps, with the model of the one before.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mhe.checkpoints import (
    WORK_FOLDER,
    adopt_checkpoint,
    changed_files,
    checkpoint_folder,
    checkpoints_dir,
    find_step,
    model_of,
    read_checkpoint,
    remove_work,
    write_checkpoint,
)
from mhe.digests import cache_dir, digest_of
from mhe.documents.base import is_answer_neutral, parse_options
from mhe.errors import BusyError, ShareDoneError, StorageError, UserError
from mhe.model_names import recorded_location
from mhe.processes import Processes, launched_processes, wait_for_first
from mhe.protocols import BackendContext, InputModel, RecipeJob
from mhe.provenance import describe_step
from mhe.run_folder import is_disk_refusing, is_locked, locked, write_atomically
from mhe.training_data import TrainingSet, load_training_set
from mhe.validation_scores import TaskScorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import BaseModel

    from mhe.catalog import Catalog
    from mhe.documents.checkpoint import Checkpoint
    from mhe.documents.model import ModelSpec
    from mhe.documents.pipeline import TrainingChoice
    from mhe.protocols import Recipe, RecipeFactory, RecipeResult
    from mhe.values import Sample

DIGEST_LENGTH = 16
JOB_FOLDER = "job"

Report = Callable[[str, Mapping[str, float]], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One application of a recipe."""

    name: str
    """Of the checkpoint; with `seed` it is its address."""
    recipe: str
    base: ModelSpec
    """Resolved."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """The recipe's options as given."""
    inputs: Mapping[str, ModelSpec] = field(default_factory=dict)
    """Further models by role, such as `teacher`."""
    data: tuple[TrainingChoice, ...] = ()
    """Empty for recipes that need none."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class StepPlace:
    """Where and how steps run; nothing here changes a result."""

    directory: Path | None = None
    """Of checkpoints; see `checkpoints_dir`."""
    data_dir: Path | None = None
    offline: bool = False
    replace: bool = False
    command: str = ""
    report: Report = lambda _phase, _numbers: None
    say: Callable[[str], None] = lambda _text: None
    """Sentences for the person: what is reused, what continues."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step with everything read and fingerprinted, before any training."""

    step: Step
    recipe: Recipe
    options: BaseModel
    base: InputModel
    inputs: Mapping[str, InputModel]
    data: TrainingSet | None
    digest: str
    processes: Processes = field(default_factory=Processes)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What came of a step."""

    status: Literal["trained", "reused", "linked"]
    """`reused`: was finished already; `linked`: an equal step was finished under another name."""
    checkpoint: Checkpoint
    folder: Path
    model: ModelSpec
    """To evaluate, or to start the next step from."""


# ---------------------------------------------------------------- planning


def plan_step(catalog: Catalog, step: Step, place: StepPlace) -> StepPlan:
    """Validate the options, read and guard the data, fingerprint the models, and digest it all.

    Raises `DocumentError` (all options at once), and what `load_training_set` and the backends' `describe` raise.
    """
    factory = catalog.recipe(step.recipe)
    options = validate_options(step.recipe, factory, step.settings)
    base = input_model(catalog, step.base, place)
    inputs = {role: input_model(catalog, spec, place) for role, spec in step.inputs.items()}
    data = None
    if step.data:
        data = load_training_set(catalog, step.data, seed=step.seed, data_dir=place.data_dir, offline=place.offline)
    return plan_with(step, factory(options), options, base, inputs, data)


def plan_with(
    step: Step,
    recipe: Recipe,
    options: BaseModel,
    base: InputModel,
    inputs: Mapping[str, InputModel],
    data: TrainingSet | None,
) -> StepPlan:
    """The plan of a step whose models and data are read already, with their digest."""
    content = {
        "recipe": [recipe.name, recipe.version],
        "options": _binding_options(options),
        "base": [base.fingerprint, base.spec.backend, base.spec.options],
        "inputs": {role: [model.fingerprint, model.spec.options] for role, model in inputs.items()},
        "data": data.digest if data else None,
        "seed": step.seed,
    }
    processes = launched_processes()
    if processes.count > 1:
        # Each adds its batch to every step, so that the result is another one.
        content["processes"] = processes.count
    return StepPlan(step, recipe, options, base, inputs, data, digest_of(content), processes)


def validate_options(name: str, factory: RecipeFactory, settings: Mapping[str, object]) -> BaseModel:
    """The recipe's options. Raises `DocumentError` with every problem, and suggestions for unknown keys."""
    return parse_options(factory.Options, settings, f"options of recipe {name}")


def _binding_options(options: BaseModel) -> dict[str, object]:
    """Options that can change the result, as JSON-able values."""
    neutral = {name for name, field in type(options).model_fields.items() if is_answer_neutral(field)}
    return options.model_dump(mode="json", exclude=neutral)


def input_model(catalog: Catalog, spec: ModelSpec, place: StepPlace) -> InputModel:
    """A model with the fingerprint of its weights. Raises what its backend's `describe` raises."""
    factory = catalog.backend(spec.backend)

    def training_samples() -> Sequence[Sample]:
        raise UserError(f"model {spec.name} (backend {spec.backend}) has no weights: a recipe cannot start from it.")

    options = parse_options(factory.Options, spec.options, f"options of model {spec.name}")
    context = BackendContext(offline=place.offline, cache_dir=cache_dir(), training_samples=training_samples)
    fingerprint = factory(spec, options, context).describe().fingerprint
    return InputModel(
        spec=spec,
        fingerprint=fingerprint.digest,
        location=recorded_location(catalog, spec),
        bytes_on_disk=fingerprint.bytes_on_disk,
    )


# ---------------------------------------------------------------- running


def preview_step(
    catalog: Catalog, plan: StepPlan, place: StepPlace, folder: Path | None = None, *, expected_examples: int = 0
) -> RecipeResult:
    """What the recipe says it would do (`--dry-run`): modules, parameters, steps, memory.

    The shape of the result is written into `folder`, from which a later step can be planned; where left out, nothing
    stays. `expected_examples` stand for data that is not on this machine.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="mhe-plan-") as passing:
            return preview_step(catalog, plan, place, Path(passing), expected_examples=expected_examples)
    job = _job(catalog, plan, place, folder, dry_run=True)
    return plan.recipe.run(replace(job, expected_examples=expected_examples))


def finished_step(plan: StepPlan, place: StepPlace) -> tuple[Path, Checkpoint] | None:
    """An equal step's finished and unchanged checkpoint under any name; None where there is none."""
    return _twin(plan, place)


def run_step(catalog: Catalog, step: Step, place: StepPlace) -> StepOutcome:
    """Make the step's checkpoint, or find it made.

    Raises `UserError` where the name holds another step's result and `place.replace` is false, `BusyError` where
    another process makes it, and what planning and the recipe raise. Killed at any instant, an equal call goes on.
    """
    return run_plan(catalog, plan_step(catalog, step, place), place)


def run_plan(catalog: Catalog, plan: StepPlan, place: StepPlace) -> StepOutcome:
    """`run_step` for a step that is planned already."""
    name = f"{plan.step.name}@{plan.step.seed}"
    root = checkpoints_dir(place.directory)
    if done := _finished(plan, place):
        return done
    _check_processes(plan)
    work = _work_folder(plan, place)
    if not plan.processes.is_first:
        return _take_part(catalog, plan, place, work)
    with locked(root / WORK_FOLDER / name, f"making the checkpoint {name}"):
        with locked(work, f"running the step {name}"):
            # Another process may have finished it since.
            outcome = _finished(plan, place) or _linked(plan, place) or _run_locked(catalog, plan, place, work)
            remove_work(work)
        _remove_stale_work(plan, place)
        remove_work(root / WORK_FOLDER / name)
    return outcome


def _check_processes(plan: StepPlan) -> None:
    """Raises `UserError` for a recipe that would do in every process what one should do."""
    if plan.processes.count > 1 and not getattr(type(plan.options), "may_share", False):
        raise UserError(
            f"the recipe {plan.recipe.name} works in one process, and {plan.processes.count} were started: "
            "run this step without torchrun or accelerate launch."
        )


def _take_part(catalog: Catalog, plan: StepPlan, place: StepPlace, work: Path) -> StepOutcome:
    """The step in a process that is not the first: train along, write nothing, wait for the first one's checkpoint.

    Raises `FirstProcessGoneError`, and what the recipe raises.
    """
    # What was finished under another name is linked by the first process, without training.
    if _twin(plan, place) is None:
        try:
            plan.recipe.run(_job(catalog, plan, place, work / JOB_FOLDER, dry_run=False))
        except ShareDoneError:
            pass
        else:
            raise RuntimeError(f"recipe {plan.recipe.name} wrote a result in process {plan.processes.rank} as well")
    return wait_for_first(lambda: _finished(plan, place), lambda: is_locked(work))


def _finished(plan: StepPlan, place: StepPlace) -> StepOutcome | None:
    """The checkpoint where it is there already under this name. Raises `UserError` where another step's is."""
    name, seed = plan.step.name, plan.step.seed
    folder = checkpoint_folder(name, seed, place.directory)
    found = read_checkpoint(folder)
    if found is not None and found.step_digest == plan.digest:
        changed = changed_files(folder, found)
        if not changed:
            place.say(f"{name}@{seed} is finished already: nothing is run again ({folder}).")
            return StepOutcome("reused", found, folder, model_of(folder, found))
        if not place.replace:
            raise UserError(
                f"{folder}: {', '.join(changed[:3])} changed since the recipe wrote it. "
                "Give --replace to make it again, or another --name."
            )
        return None
    if folder.exists() and not place.replace:
        what = f"the result of another step ({found.recipe} of {found.parent})" if found else "something else"
        raise UserError(
            f"{folder} holds {what}: data, options, base, recipe or the number of processes differ. "
            "Give --replace to make it anew, or another --name."
        )
    return None


def _twin(plan: StepPlan, place: StepPlace) -> tuple[Path, Checkpoint] | None:
    """An equal step's finished checkpoint, under any name."""
    twin = find_step(plan.digest, place.directory)
    return None if twin is None or changed_files(*twin) else twin


def _linked(plan: StepPlan, place: StepPlace) -> StepOutcome | None:
    """An equal step's result under another name, given this name as well."""
    name, seed = plan.step.name, plan.step.seed
    folder = checkpoint_folder(name, seed, place.directory)
    twin = _twin(plan, place)
    if twin is None:
        return None
    place.say(f"{name}@{seed}: the same step was finished as {twin[1].name}@{twin[1].seed}; its files are linked.")
    renamed = twin[1].model_copy(update={"name": name, "seed": seed})
    written = adopt_checkpoint(folder, twin[0], renamed, replace=place.replace)
    return StepOutcome("linked", written, folder, model_of(folder, written))


def _run_locked(catalog: Catalog, plan: StepPlan, place: StepPlace, work: Path) -> StepOutcome:
    job_folder = work / JOB_FOLDER
    if job_folder.is_dir() and any(job_folder.iterdir()):
        place.say(f"continuing the interrupted training in {job_folder}")
    try:
        job_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{job_folder} cannot be made: {error.strerror}.") from None
    write_atomically(
        work / "step.json", json.dumps({"name": plan.step.name, "seed": plan.step.seed, "digest": plan.digest}) + "\n"
    )
    try:
        result = plan.recipe.run(_job(catalog, plan, place, job_folder, dry_run=False))
    except Exception as error:
        if not is_disk_refusing(error):
            raise
        raise StorageError(
            f"the disk of {job_folder} is full ({error}). "
            "What was saved before is kept: make room and run the same command."
        ) from None
    if not result.model_folder.is_dir() or not result.model_folder.resolve().is_relative_to(job_folder.resolve()):
        raise RuntimeError(f"recipe {plan.recipe.name} returned {result.model_folder}, which is no folder of its job")
    folder = checkpoint_folder(plan.step.name, plan.step.seed, place.directory)
    texts = {
        path.name: path.read_text(encoding="utf-8")
        for path in sorted(job_folder.glob("curve.*"))
        if path.suffix in (".svg", ".csv", ".json")
    }
    texts |= {name: (job_folder / name).read_text(encoding="utf-8") for name in result.kept_files}
    draft = describe_step(
        name=plan.step.name,
        seed=plan.step.seed,
        digest=plan.digest,
        recipe=plan.recipe,
        options=plan.options,
        base=plan.base,
        base_location=plan.base.location,
        data=plan.data,
        result=result,
        command=place.command,
    )
    written = write_checkpoint(folder, result.model_folder, draft, replace=place.replace, curve=texts)
    return StepOutcome("trained", written, folder, model_of(folder, written))


def _job(catalog: Catalog, plan: StepPlan, place: StepPlace, folder: Path, *, dry_run: bool) -> RecipeJob:
    data = plan.data
    return RecipeJob(
        base=plan.base,
        inputs=plan.inputs,
        train=data.train if data else (),
        validation=data.validation if data else (),
        folder=folder,
        seed=plan.step.seed,
        report=place.report,
        tasks=data.tasks if data else {},
        architectures=catalog.architectures,
        offline=place.offline,
        dry_run=dry_run,
        process=plan.processes.rank,
        processes=plan.processes.count,
        scorer=TaskScorer(catalog, data.tasks, data.validation, plan.step.seed) if data else None,
    )


# ---------------------------------------------------------------- work folders


def _work_folder(plan: StepPlan, place: StepPlace) -> Path:
    return checkpoints_dir(place.directory) / WORK_FOLDER / plan.digest[:DIGEST_LENGTH]


def _remove_stale_work(plan: StepPlan, place: StepPlace) -> None:
    """Work of abandoned attempts at this name, made with other options, is of no use to anyone."""
    for note in sorted((checkpoints_dir(place.directory) / WORK_FOLDER).glob("*/step.json")):
        try:
            about = json.loads(note.read_text(encoding="utf-8"))
            if (about.get("name"), about.get("seed")) != (plan.step.name, plan.step.seed):
                continue
            with locked(note.parent, "removing an abandoned attempt"):
                shutil.rmtree(note.parent, ignore_errors=True)
        except FileNotFoundError:
            continue  # another process has just finished and removed it
        except BusyError:
            place.say(f"{note.parent} is in use by another process and is left alone.")
