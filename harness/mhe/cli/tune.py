"""`mhe tune`: a recipe applied to a model, or a pipeline of several; the results are checkpoints that have names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.completion import complete_model, complete_pipeline, complete_recipe, complete_task
from mhe.cli.main import catalog_of, say
from mhe.cli.progress import ProgressLine
from mhe.cli.run_tables import readable_bytes
from mhe.cli.settings import parse_value
from mhe.cli.training_choices import read_choices
from mhe.cli.tune_previews import announce, plan_text, show_pipeline_previews, show_step_previews
from mhe.environment import portable_command
from mhe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mhe.catalog import Catalog
    from mhe.documents.pipeline import PipelineSpec, TrainingChoice
    from mhe.pipeline_runs import StepResult
    from mhe.pipelines import Step, StepOutcome, StepPlace

EPILOG = (
    "The options of a recipe, with their defaults: mhe show recipes RECIPE. "
    "The steps of a pipeline: mhe show pipelines PIPELINE"
)


@click.command("tune", short_help="Train or transform a model with a recipe.", epilog=EPILOG)
@click.argument("pipeline", required=False, shell_complete=complete_pipeline)
@click.option(
    "--model",
    shell_complete=complete_model,
    help="The model to start from: a registered name, NAME[@SEED], a folder, or org/name[@revision].",
)
@click.option("--recipe", shell_complete=complete_recipe, help="How to train it, such as full.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="ROLE=MODEL",
    help="A further model that the recipe reads, such as teacher=llava-1.5-7b. Repeatable.",
)
@click.option(
    "--task",
    "tasks",
    multiple=True,
    shell_complete=complete_task,
    help="A task whose training split is learnt; of a pipeline, in the place of its own. Repeatable.",
)
@click.option("--name", help="Name of the checkpoint; it is NAME@SEED. A pipeline's is its own where left out.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the recipe, such as learning_rate=1e-4; of a pipeline base=MODEL or STEP.KEY=VALUE. Repeatable.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the training.")
@click.option("--seeds", type=int, help="Trains NAME@0 to NAME@N-1.")
@click.option("--until", metavar="STEP", help="Of a pipeline: end with this step.")
@click.option("--split", help="Train on this split instead of the task's training split.")
@click.option("--limit", type=int, help="Only the first N samples of each task.")
@click.option("--fraction", type=float, help="Only this share of each task's samples, drawn by the seed: 0.01.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="TASK=NUMBER",
    help="How often an epoch sees each sample of a task, such as slake=0.5 or vqa-rad=2. Repeatable.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set on this machine.")
@click.option(
    "--checkpoints-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Where checkpoints are kept [default: $MHE_CHECKPOINTS_DIR, else checkpoints].",
)
@click.option("--offline", is_flag=True, help="Reach for no hub; data and models must be on this machine.")
@click.option("--dry-run", is_flag=True, help="Show modules, parameters, steps and memory; train nothing.")
@click.option("--replace", is_flag=True, help="Replace another checkpoint of this name.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def tune(
    ctx: click.Context,
    pipeline: str | None,
    model: str | None,
    recipe: str | None,
    inputs: tuple[str, ...],
    tasks: tuple[str, ...],
    name: str | None,
    settings: tuple[str, ...],
    seed: int,
    seeds: int | None,
    until: str | None,
    split: str | None,
    limit: int | None,
    fraction: float | None,
    weights: tuple[str, ...],
    data_dir: Path | None,
    checkpoints_dir: Path | None,
    offline: bool,
    dry_run: bool,
    replace: bool,
    as_json: bool,
) -> int:
    """Train a model on the training split of tasks; the checkpoint is then evaluated as `mhe eval --model NAME`.

    Either `mhe tune --model M --recipe R --name NAME --task T`, or `mhe tune PIPELINE`, a registered name or a YAML
    file of steps.

    An equal call that was finished is not run again; one that was interrupted goes on from its last save. Splits
    that boards evaluate are refused, and training pairs that repeat an evaluated pair are dropped and counted.
    """
    from mhe.pipelines import StepPlace
    from mhe.processes import first_process_speaks

    ctx.with_resource(first_process_speaks())
    _check_arguments(name, seed, seeds)
    data = read_choices(tasks, split, limit, fraction, weights)
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    catalog = catalog_of(ctx)
    chosen = parse_options(settings)
    seeds_wanted = range(seeds) if seeds is not None else [seed]
    place = StepPlace(
        directory=checkpoints_dir,
        data_dir=data_dir,
        offline=offline,
        replace=replace,
        command=portable_command(["mhe", *sys.argv[1:]]),
        say=say,
    )
    if pipeline is not None:
        _check_pipeline_call(pipeline, model, recipe, inputs)
        spec = _pipeline(catalog, pipeline, name, chosen, data)
        if dry_run:
            show_pipeline_previews(catalog, spec, place, seeds_wanted, until, as_json=as_json)
            return 0
        results = [run_pipeline_shown(catalog, spec, place, seed=number, until=until) for number in seeds_wanted]
        _show_pipeline(catalog, spec, results, place, as_json=as_json)
        return 0
    steps = _single_steps(catalog, model, recipe, inputs, name, until, chosen, data, seeds_wanted, checkpoints_dir)
    if dry_run:
        show_step_previews(catalog, steps, place, as_json=as_json)
        return 0
    _show([_run(catalog, step, place) for step in steps], as_json=as_json)
    return 0


def _single_steps(
    catalog: Catalog,
    model: str | None,
    recipe: str | None,
    inputs: Sequence[str],
    name: str | None,
    until: str | None,
    settings: Mapping[str, object],
    data: tuple[TrainingChoice, ...],
    seeds: Iterable[int],
    checkpoints_dir: Path | None,
) -> list[Step]:
    from mhe.model_names import resolve_model
    from mhe.pipelines import Step

    if model is None or recipe is None or name is None:
        lacking = [f"--{key}" for key, value in (("model", model), ("recipe", recipe), ("name", name)) if value is None]
        raise UserError(
            f"{', '.join(lacking)} missing. Give --model, --recipe and --name, or a pipeline: mhe tune PIPELINE "
            f"({', '.join(catalog.pipelines) or 'none is registered; a YAML file will do'})."
        )
    if until is not None:
        raise UserError("--until is for pipelines: mhe tune PIPELINE --until STEP.")
    roles = read_inputs(recipe, getattr(catalog.recipe(recipe).Options, "input_roles", ()), inputs)
    base = resolve_model(model, catalog, checkpoints_dir=checkpoints_dir)
    further = {role: resolve_model(other, catalog, checkpoints_dir=checkpoints_dir) for role, other in roles.items()}
    return [
        Step(name=name, recipe=recipe, base=base, settings=settings, inputs=further, data=data, seed=number)
        for number in seeds
    ]


def read_inputs(recipe: str, known: Sequence[str], inputs: Sequence[str]) -> dict[str, str]:
    """`ROLE=MODEL` as role to model. Raises `UserError` listing all that the recipe cannot use."""
    found: dict[str, str] = {}
    problems = []
    for given in inputs:
        role, _, model = (part.strip() for part in given.partition("="))
        if not role or not model:
            problems.append(f"{given!r}: write ROLE=MODEL")
        elif role not in known:
            has = f"it reads {', '.join(known)}" if known else "it reads no further model"
            problems.append(f"{role!r}: the recipe {recipe} has no such role; {has}")
        elif role in found:
            problems.append(f"{role!r}: given twice")
        else:
            found[role] = model
    if problems:
        raise UserError("--input cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
    return found


def _check_pipeline_call(pipeline: str, model: str | None, recipe: str | None, inputs: Sequence[str]) -> None:
    if inputs:
        raise UserError(f"{pipeline} is a pipeline, whose steps name their inputs: leave out --input.")
    if recipe is not None:
        raise UserError(f"{pipeline} is a pipeline, which names its recipes: leave out --recipe.")
    if model is not None:
        raise UserError(f"to start {pipeline} from another model, give --set base={model} in place of --model.")


def _pipeline(
    catalog: Catalog,
    pipeline: str,
    name: str | None,
    settings: Mapping[str, object],
    data: tuple[TrainingChoice, ...],
) -> PipelineSpec:
    from mhe.pipeline_runs import find_pipeline, with_data, with_settings

    spec = with_settings(find_pipeline(pipeline, catalog), settings)
    if data:
        spec = with_data(spec, data)
    return spec if name is None else spec.model_copy(update={"name": name})


def run_pipeline_shown(
    catalog: Catalog, spec: PipelineSpec, place: StepPlace, *, seed: int, until: str | None
) -> list[StepResult]:
    """Run a pipeline with a line of progress a step."""
    from mhe.pipeline_runs import run_pipeline, steps_until

    total = len(steps_until(spec, until))
    started = 0

    def run(step: Step) -> StepOutcome:
        nonlocal started
        started += 1
        say(f"step {started} of {total}: {step.recipe} of {step.base.name}, to {step.name}@{step.seed}")
        return _run(catalog, step, place)

    return run_pipeline(catalog, spec, place, seed=seed, until=until, run=run)


def parse_options(settings: Sequence[str]) -> dict[str, object]:
    """`KEY=VALUE` as option to value. Raises `UserError` listing all that cannot be read."""
    chosen: dict[str, object] = {}
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        key = key.strip()
        if not equals or not key:
            problems.append(f"{setting!r}: write KEY=VALUE")
        elif key in chosen:
            problems.append(f"{key!r}: given twice")
        else:
            try:
                chosen[key] = parse_value(text)
            except ValueError as error:
                problems.append(f"{setting!r}: {error}")
    if problems:
        raise UserError("--set cannot be read:\n" + "\n".join(f"  {problem}" for problem in problems))
    return chosen


def _check_arguments(name: str | None, seed: int, seeds: int | None) -> None:
    from mhe.checkpoints import CheckpointName

    parts = CheckpointName.parse(name) if name is not None else None
    problems = []
    if name is not None and (parts is None or parts.seed is not None):
        problems.append(
            f"--name {name!r}: lower-case letters, digits, dots, dashes and underscores, such as my-model; the seed is "
            "given with --seed"
        )
    if seed < 0:
        problems.append(f"--seed {seed}: give 0 or more")
    if seeds is not None and seeds < 1:
        problems.append(f"--seeds {seeds}: give 1 or more")
    if problems:
        raise UserError("\n".join(problems))


def _run(catalog: Catalog, step: Step, place: StepPlace) -> StepOutcome:
    from dataclasses import replace

    from mhe.pipelines import plan_step, run_plan

    plan = plan_step(catalog, step, place)
    announce(plan)
    with ProgressLine(f"{step.name}@{step.seed}") as line:

        def report(phase: str, numbers: Mapping[str, float]) -> None:
            if phase == "plan":
                say(plan_text(numbers))
            elif "step" in numbers and "steps" in numbers:
                line.update(phase, int(numbers["step"]), int(numbers["steps"]), training_text(numbers))

        return run_plan(catalog, plan, replace(place, report=report))


def training_text(numbers: Mapping[str, float]) -> str:
    """Losses, the metric that weights are chosen by, learning rate, speed and memory, in that order."""
    shown = {"loss": "loss", "validation_loss": "validation"}
    shown |= {key: key.replace("_", " ") for key in numbers if key.startswith("validation_") and key not in shown}
    shown["learning_rate"] = "rate"
    parts = [f"{label} {numbers[key]:.3g}" for key, label in shown.items() if key in numbers]
    if "samples_per_second" in numbers:
        parts.append(f"{numbers['samples_per_second']:.1f} samples/s")
    if "peak_bytes" in numbers:
        parts.append(f"at most {readable_bytes(numbers['peak_bytes'])}")
    return ", ".join(parts)


def _show_pipeline(
    catalog: Catalog,
    spec: PipelineSpec,
    results: Sequence[Sequence[StepResult]],
    place: StepPlace,
    *,
    as_json: bool,
) -> None:
    """Every step's outcome, and then the tree of each seed."""
    from mhe.cli.evaluate import default_runs_dir
    from mhe.cli.pipeline_tree import tree_rows, tree_text

    outcomes = [result.outcome for of_seed in results for result in of_seed]
    trees = [tree_rows(catalog, spec, of_seed, place, default_runs_dir()) for of_seed in results]
    if as_json:
        _echo_json(outcomes, tree=[row.to_json() for rows in trees for row in rows])
        return
    _show(outcomes, as_json=False)
    tasks = list(dict.fromkeys(choice.task for choice in spec.data))
    for rows in trees:
        click.echo(f"\n{tree_text(rows, tasks)}")


def _echo_json(outcomes: Sequence[StepOutcome], **more: object) -> None:
    import json

    found = [{**o.checkpoint.model_dump(mode="json"), "folder": str(o.folder), "status": o.status} for o in outcomes]
    click.echo(json.dumps({"schema_version": 1, "checkpoints": found, **more}, indent=2, ensure_ascii=False))


def _show(outcomes: Sequence[StepOutcome], *, as_json: bool) -> None:
    if as_json:
        _echo_json(outcomes)
        return
    for outcome in outcomes:
        made = outcome.checkpoint
        trained = f"{made.trainable_parameters:,} of {made.parameters:,} parameters trained"
        click.echo(
            f"{made.name}@{made.seed}: {outcome.status}, {trained} in {made.cost.seconds:,.0f} s ({outcome.folder})"
        )
        for note in made.notes:
            click.echo(f"  {note}")
    last = outcomes[-1].checkpoint
    say(f"evaluate it: mhe eval --model {last.name}@{last.seed} --task TASK")
