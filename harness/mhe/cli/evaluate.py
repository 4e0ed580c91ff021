"""`mhe eval`: models on tasks, one run for each model, task and seed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.batch_size import BatchSize, refuse_batch_size_in
from mhe.cli.completion import complete_backend, complete_model, complete_profile, complete_task
from mhe.cli.main import catalog_of, say
from mhe.cli.progress import ProgressLine
from mhe.cli.settings import by_metric, parse_settings
from mhe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mhe.catalog import Catalog
    from mhe.evaluation import RunOutcome
    from mhe.run_plan import RunOptions

PARTIAL = 3


@click.command("eval", short_help="Evaluate models on tasks.")
@click.option(
    "--model",
    "models",
    required=True,
    multiple=True,
    shell_complete=complete_model,
    help="A registered name, NAME[@SEED] of a checkpoint, a folder, or org/name[@revision] on the hub. Repeatable.",
)
@click.option("--task", "tasks", required=True, multiple=True, shell_complete=complete_task, help="A task. Repeatable.")
@click.option("--backend", shell_complete=complete_backend, help="Run the model with this backend instead of its own.")
@click.option("--split", help="The split to evaluate; the task's own where left out.")
@click.option("--limit", type=int, help="Only the first N samples.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of generation.")
@click.option("--seeds", type=int, help="Runs with the seeds 0 to N-1.")
@click.option(
    "--batch-size", type=BatchSize(), help="Samples in one batch, or auto where the backend finds it by itself."
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set on this machine.")
@click.option("--runs-dir", type=click.Path(path_type=Path), default=None, help="Where runs are kept [default: runs].")
@click.option(
    "--checkpoints-dir", type=click.Path(path_type=Path), default=None, help="Where `mhe tune` keeps checkpoints."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="generation.temperature=0.7, backend.dtype=float32, metrics.NAME.OPTION=…. Repeatable.",
)
@click.option("--metrics", help="Metrics, with commas; the task's own where left out.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    shell_complete=complete_profile,
    help="Scoring profile; the task's own where left out. Repeatable.",
)
@click.option("--engine", default="local", show_default=True, help="Where requests run.")
@click.option("--fresh", is_flag=True, help="Run again, even if this very run is done.")
@click.option("--reuse-unverified", is_flag=True, help="Resume runs of models whose content cannot be seen (servers).")
@click.option("--offline", is_flag=True, help="Reach for no hub; data and models must be on this machine.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def evaluate_command(
    ctx: click.Context,
    models: tuple[str, ...],
    tasks: tuple[str, ...],
    backend: str | None,
    split: str | None,
    limit: int | None,
    seed: int,
    seeds: int | None,
    batch_size: int | str | None,
    data_dir: Path | None,
    runs_dir: Path | None,
    checkpoints_dir: Path | None,
    settings: tuple[str, ...],
    metrics: str | None,
    profiles: tuple[str, ...],
    engine: str,
    fresh: bool,
    reuse_unverified: bool,
    offline: bool,
    as_json: bool,
) -> int:
    """Evaluate models on tasks.

    A run that is done is shown, not made again; one that was interrupted goes on where it stopped. Exit code: 0
    when every sample was answered, 3 when some were not, 2 for a mistake in the call.
    """
    from mhe.environment import portable_command
    from mhe.run_plan import RunOptions
    from mhe.scoring import uncomputed

    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds {seeds}: give 1 or more.")
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    catalog = catalog_of(ctx)
    chosen = parse_settings(settings, ("generation", "backend", "metrics"))
    if batch_size is not None:
        refuse_batch_size_in(chosen["backend"])
        chosen["backend"]["batch_size"] = batch_size
    base = RunOptions(
        runs_dir=runs_dir or default_runs_dir(),
        split=split,
        limit=limit,
        data_dir=data_dir,
        offline=offline,
        generation=chosen["generation"],
        backend_options=chosen["backend"],
        metric_options=by_metric(chosen["metrics"]),
        metrics=tuple(name.strip() for name in metrics.split(",") if name.strip()) if metrics else (),
        profiles=profiles,
        fresh=fresh,
        reuse_unverified=reuse_unverified,
        engine=engine,
        command=portable_command(["mhe", *sys.argv[1:]]),
    )
    seed_list = range(seeds) if seeds is not None else (seed,)
    running = _run_all(catalog, models, tasks, seed_list, backend, checkpoints_dir, base)
    outcomes = _shown(catalog, running, as_json=as_json)
    is_whole = all(o.record.status == "complete" and not uncomputed(o.record.metrics) for o in outcomes)
    return 0 if is_whole else PARTIAL


def _shown(catalog: Catalog, outcomes: Iterator[RunOutcome], *, as_json: bool) -> list[RunOutcome]:
    """The outcomes when all are there, shown; where one fails, those before are shown all the same."""
    summaries = {name: profile.summary for name, profile in catalog.profiles.items()}
    found: list[RunOutcome] = []
    try:
        # One after the other, so that what came before a failure is in the list.
        found.extend(outcomes)
    except BaseException:
        # Half a JSON document is none.
        if found and not as_json:
            _show(found, summaries, as_json=False)
        raise
    _show(found, summaries, as_json=as_json)
    return found


def default_runs_dir() -> Path:
    """`$MHE_RUNS_DIR`, else `runs` in the current folder."""
    return Path(os.environ.get("MHE_RUNS_DIR") or "runs")


def _run_all(
    catalog: Catalog,
    models: Sequence[str],
    tasks: Sequence[str],
    seeds: Sequence[int],
    backend: str | None,
    checkpoints_dir: Path | None,
    base: RunOptions,
) -> Iterator[RunOutcome]:
    from dataclasses import replace

    from mhe.evaluation import run
    from mhe.model_names import resolve_model
    from mhe.run_plan import plan_run
    from mhe.scoring import check_scoring

    specs = [resolve_model(name, catalog, backend=backend, checkpoints_dir=checkpoints_dir) for name in models]
    task_specs = [catalog.task(name) for name in tasks]
    catalog.engine(base.engine)
    for task in task_specs:
        # A mistyped metric must not be found after an hour of generating.
        check_scoring(
            catalog,
            task,
            metrics=base.metrics or task.metrics,
            profiles=base.profiles or (task.profile,),
            metric_options=base.metric_options,
        )
    for spec in specs:
        for task in task_specs:
            for seed in seeds:
                plan = plan_run(catalog, spec, task, replace(base, seed=seed))
                with ProgressLine(f"{spec.name} on {task.name}") as line:
                    outcome = run(plan, line.update)
                if outcome.was_done:
                    say(f"{spec.name} on {task.name}, seed {seed}: already done, no model call ({outcome.folder})")
                yield outcome


def _show(outcomes: Sequence[RunOutcome], summaries: Mapping[str, str], *, as_json: bool) -> None:
    if as_json:
        import json

        runs = [{**o.record.model_dump(mode="json"), "folder": str(o.folder), "was_done": o.was_done} for o in outcomes]
        click.echo(json.dumps({"schema_version": 1, "runs": runs}, indent=2, ensure_ascii=False))
        return
    from mhe.cli.run_tables import run_table

    for outcome in outcomes:
        click.echo(run_table(outcome.record, outcome.folder, summaries))
