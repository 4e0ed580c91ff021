"""`mhe score`: predictions made elsewhere, under any profiles, without the model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.completion import complete_profile, complete_task
from mhe.cli.main import catalog_of, say
from mhe.cli.progress import ProgressLine
from mhe.cli.settings import by_metric, parse_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.catalog import Catalog
    from mhe.documents.run import MetricRecord
    from mhe.documents.task import TaskSpec
    from mhe.predictions import Prediction
    from mhe.samples import SampleSet

PARTIAL = 3
ALL = "all"


@click.command("score", short_help="Score predictions made elsewhere.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--task", "task_name", required=True, shell_complete=complete_task, help="The task that was answered.")
@click.option("--split", help="The split that was answered; the task's own where left out.")
@click.option("--limit", type=int, help="Only the first N samples.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set; its images are not needed.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    shell_complete=complete_profile,
    help="Scoring profile; the task's own where left out. Repeatable; `all` for all that fit.",
)
@click.option("--metrics", help="Metrics, with commas; the task's own where left out.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="metrics.NAME.OPTION=…. Repeatable.")
@click.option("--allow-partial", is_flag=True, help="Score what is there, where samples have no prediction.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Keep the scores and per-sample statistics in this folder."
)
@click.option("--offline", is_flag=True, help="Reach for no hub; the data must be on this machine.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def score(
    ctx: click.Context,
    file: Path,
    task_name: str,
    split: str | None,
    limit: int | None,
    data_dir: Path | None,
    profiles: tuple[str, ...],
    metrics: str | None,
    settings: tuple[str, ...],
    allow_partial: bool,
    out: Path | None,
    offline: bool,
    as_json: bool,
) -> int:
    """Score FILE, with a line {"id": …, "prediction": …} for each sample of the task.

    Answers are taken from the predictions by the task's own rule, as from a model's responses. Exit code: 0 when
    everything was scored, 3 when samples have no prediction or a metric could not be computed, 2 for a mistake in
    the call or the file.
    """
    from mhe.predictions import join_predictions, read_predictions
    from mhe.samples import load_samples
    from mhe.scoring import check_scoring, score_cases, uncomputed

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    catalog = catalog_of(ctx)
    task = catalog.task(task_name)
    names = tuple(name.strip() for name in (metrics or "").split(",") if name.strip()) or task.metrics
    chosen = _profiles(catalog, task, profiles)
    options = by_metric(parse_settings(settings, ("metrics",))["metrics"])
    check_scoring(catalog, task, metrics=names, profiles=chosen, metric_options=options)
    predictions = read_predictions(file)
    data = load_samples(catalog, task, split=split, limit=limit, data_dir=data_dir, offline=offline, need_images=False)
    cases = join_predictions(file, predictions, data, allow_partial=allow_partial)
    with ProgressLine(f"{file.name} on {task.name}") as line:
        line.update("score", 0, len(cases))
        records = score_cases(
            catalog,
            task,
            cases,
            all_samples=data.samples,
            metrics=names,
            profiles=chosen,
            metric_options=options,
            run_key=_key(data, predictions),
            folder=out,
        )
        line.update("score", len(cases), len(cases))
    document = _document(file, data, len(cases), records)
    if out is not None:
        _keep(out, document)
    click.echo(
        json.dumps(document, indent=2, ensure_ascii=False) if as_json else _text(file, data, len(cases), records)
    )
    return PARTIAL if len(cases) < len(data.samples) or uncomputed(records) else 0


def _profiles(catalog: Catalog, task: TaskSpec, asked: Sequence[str]) -> list[str]:
    if ALL in asked:
        fitting = [name for name in sorted(catalog.profiles) if catalog.profile(name).kind == task.kind]
        return sorted(fitting, key=lambda name: name != task.profile)
    return list(asked) or [task.profile]


def _key(data: SampleSet, predictions: Sequence[Prediction]) -> str:
    """Stands for a run key: the same predictions on the same samples score alike."""
    from mhe.digests import digest_of

    texts = {prediction.id: prediction.text for prediction in predictions}
    return digest_of(["predictions", data.task.key, data.split, data.record.digest, texts])


def _document(file: Path, data: SampleSet, answered: int, records: Sequence[MetricRecord]) -> dict[str, object]:
    return {
        "schema_version": 1,
        "predictions": file.name,
        "status": "complete" if answered == len(data.samples) else "partial",
        "task": data.task.key,
        "primary": data.task.primary,
        "data": data.record.model_dump(mode="json"),
        "samples": len(data.samples),
        "answered": answered,
        "metrics": [record.model_dump(mode="json") for record in records],
    }


def _keep(out: Path, document: dict[str, object]) -> None:
    from mhe.run_folder import write_atomically

    place = out / "score.json"
    write_atomically(place, json.dumps(document, indent=2) + "\n")
    say(f"Kept: {place}, with the statistics of each sample in {out / 'scores'}")


def _text(file: Path, data: SampleSet, answered: int, records: Sequence[MetricRecord]) -> str:
    from mhe.cli.run_tables import PHANTOM_NOTE, groups_table, values_table

    head = (
        f"{file.name} on {data.task.name} (version {data.task.version}), split {data.split}: "
        f"{answered} of {len(data.samples)} samples have a prediction"
    )
    if answered < len(data.samples):
        head += "\nPARTIAL: values are provisional, over the samples that have one."
    groups = groups_table(records, data.task.primary)
    note = PHANTOM_NOTE if data.task.phantom else ""
    return "\n\n".join(part for part in [head, values_table(records), groups, note] if part) + "\n"
