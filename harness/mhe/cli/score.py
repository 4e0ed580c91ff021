"""`mhe score`: predictions made elsewhere, on a task or against a file, under any profiles, without the model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.completion import complete_profile, complete_task
from mhe.cli.main import catalog_of, say
from mhe.cli.progress import ProgressLine
from mhe.cli.settings import by_metric, parse_settings
from mhe.errors import DataMissingError, UserError

if TYPE_CHECKING:
    from mhe.catalog import Catalog
    from mhe.documents.run import MetricRecord
    from mhe.scoring import ScoredTask
    from mhe.text_pairs import Kind
    from mhe.values import Case, Sample

PARTIAL = 3
ALL = "all"


@click.command("score", short_help="Score predictions made elsewhere.")
@click.argument("file", metavar="PREDICTIONS", type=click.Path(path_type=Path))
@click.option("--task", "task_name", shell_complete=complete_task, help="The task that was answered.")
@click.option(
    "--references",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Without a task: a file of references, joined by id.",
)
@click.option(
    "--kind",
    type=click.Choice(["caption", "vqa"]),
    help="With --references: what the predictions are; caption where left out.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="With --references: images, for metrics that look at them; found by id, or by the references' field image.",
)
@click.option("--split", help="The split that was answered; the task's own where left out.")
@click.option("--limit", type=int, help="Only the first N samples.")
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder of the data set; its images are needed only by metrics that look at them.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    shell_complete=complete_profile,
    help="Scoring profile; the task's own where left out, without a task the default one of the kind. Repeatable; "
    "`all` for all that fit.",
)
@click.option(
    "--metrics",
    help="Metrics, with commas; the task's own where left out, without a task those usual under the profile "
    "(mhe show profiles NAME).",
)
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
    task_name: str | None,
    references: Path | None,
    kind: Kind | None,
    images: Path | None,
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
    """Score PREDICTIONS, with a line {"id": …, "prediction": …} for each sample, on a task or against a file.

    A file that ends in .csv or .tsv is a table with the columns id and prediction, or ID and Caption.

    With --task, answers are taken from the predictions by the task's own rule, as from a model's responses.

    With --references FILE, texts are scored as they stand against lines {"id": …, "references": […]}, or a table with
    the columns id and reference, or ID and Caption. Used where they are there: answer_type (closed or open), image
    (intervals resample by it), group:NAME (scores are reported by it), question. With --images FOLDER the image of a
    sample is the file that its field image names, with or without the ending, else the file that has its id.

    Exit code: 0 when everything was scored, 3 when samples have no prediction or a metric could not be computed, 2 for
    a mistake in the call or the files.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    rules = _Rules(
        metrics=tuple(name.strip() for name in (metrics or "").split(",") if name.strip()),
        profiles=profiles,
        options=by_metric(parse_settings(settings, ("metrics",))["metrics"]),
        allow_partial=allow_partial,
    )
    catalog = catalog_of(ctx)
    if (task_name is None) == (references is None):
        raise UserError("name what is scored against, one of: --task TASK, --references FILE.")
    if references is not None:
        _refuse({"--split": split, "--limit": limit, "--data-dir": data_dir}, "goes with --task, not with --references")
        joined = _read_files(catalog, file, references, kind or "caption", rules, images)
    else:
        assert task_name is not None
        _refuse({"--kind": kind, "--images": images}, "goes with --references; a task has its kind and its images")
        joined = _read_task(
            catalog, file, task_name, rules, split=split, limit=limit, data_dir=data_dir, offline=offline
        )
    return _score(catalog, file, joined, rules, out=out, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Rules:
    """How is scored, as asked for."""

    metrics: tuple[str, ...]
    profiles: tuple[str, ...]
    options: dict[str, dict[str, object]]
    allow_partial: bool


@dataclass(frozen=True, slots=True)
class _Joined:
    """Predictions beside what they are scored against."""

    task: ScoredTask
    metrics: Sequence[str]
    profiles: Sequence[str]
    cases: Sequence[Case]
    samples: Sequence[Sample]
    key: str
    """Stands for a run key: the same predictions on the same samples score alike."""
    about: dict[str, object]
    """What the document says of task and data."""
    title: str
    primary: str | None
    note: str = ""


def _refuse(options: Mapping[str, object], reason: str) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(f"{name} {reason}.")


def _checked(catalog: Catalog, task: ScoredTask, rules: _Rules, metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """The metrics and profiles, found to fit before anything is read."""
    from mhe.scoring import check_scoring

    names, chosen = list(rules.metrics or metrics), _profiles(catalog, task, rules.profiles)
    check_scoring(catalog, task, metrics=names, profiles=chosen, metric_options=rules.options)
    return names, chosen


def _profiles(catalog: Catalog, task: ScoredTask, asked: Sequence[str]) -> list[str]:
    if ALL in asked:
        fitting = [name for name in sorted(catalog.profiles) if catalog.profile(name).kind == task.kind]
        return sorted(fitting, key=lambda name: name != task.profile)
    return list(asked) or [task.profile]


def _read_task(
    catalog: Catalog,
    file: Path,
    task_name: str,
    rules: _Rules,
    *,
    split: str | None,
    limit: int | None,
    data_dir: Path | None,
    offline: bool,
) -> _Joined:
    from mhe.cli.run_tables import PHANTOM_NOTE
    from mhe.digests import digest_of
    from mhe.predictions import join_predictions, read_predictions
    from mhe.samples import load_samples
    from mhe.scoring import check_scoring

    task = catalog.task(task_name)
    names, chosen = _checked(catalog, task, rules, task.metrics)
    predictions = read_predictions(file)
    needs = check_scoring(catalog, task, metrics=names, profiles=chosen, metric_options=rules.options)
    load = partial(load_samples, catalog, task, split=split, limit=limit, data_dir=data_dir, offline=offline)
    try:
        data = load(need_images="image" in needs)
    except DataMissingError as error:
        if "image" not in needs:
            raise
        # The texts may be there without the images: what can be computed from them is not lost.
        data = load(need_images=False)
        say(f"{error}\nScored without the images: metrics that look at them are null.")
    texts = {prediction.id: prediction.text for prediction in predictions}
    return _Joined(
        task=task,
        metrics=names,
        profiles=chosen,
        cases=join_predictions(file, predictions, data, allow_partial=rules.allow_partial),
        samples=data.samples,
        key=digest_of(["predictions", task.key, data.split, data.record.digest, texts]),
        about={
            "task": task.key,
            "primary": task.primary,
            "phantom": task.phantom,
            "data": data.record.model_dump(mode="json"),
        },
        title=f"{file.name} on {task.name} (version {task.version}), split {data.split}",
        primary=task.primary,
        note=PHANTOM_NOTE if task.phantom else "",
    )


def _read_files(
    catalog: Catalog, file: Path, references: Path, kind: Kind, rules: _Rules, images: Path | None
) -> _Joined:
    from mhe.digests import digest_of, file_digest
    from mhe.references import read_pair
    from mhe.text_pairs import TextPairs
    from mhe.usual_scoring import usual_scoring

    asked = next((name for name in rules.profiles if name != ALL), None)
    usual = usual_scoring(catalog, kind, profile=asked, metrics=rules.metrics)
    task = TextPairs(references.name, kind, usual.profile)
    names, chosen = _checked(catalog, task, rules, usual.metrics)
    pair = read_pair(file, references, allow_partial=rules.allow_partial, images=images)
    digest = file_digest(references)
    seen = {} if images is None else _see(images, pair.samples)
    return _Joined(
        task=replace(task, groups=pair.groups),
        metrics=names,
        profiles=chosen,
        cases=pair.cases,
        samples=pair.samples,
        key=digest_of(
            ["files", digest, {prediction.id: prediction.text for prediction in pair.predictions}]
            + ([seen] if images is not None else [])
        ),
        about={
            "references": references.name,
            "references_digest": digest,
            "kind": kind,
            **({"images": images.name, "images_digest": digest_of(seen)} if images is not None else {}),
        },
        title=f"{file.name} against {references.name}",
        primary=None,
    )


def _see(images: Path, samples: Sequence[Sample]) -> dict[str, str]:
    """Sample id to the digest of its image; those that were not found are told."""
    from mhe.image_folders import absent_images
    from mhe.text_rows import shortened

    if absent := absent_images(samples):
        lines = shortened([f"{name!r}: {reason}" for name, reason in absent.items()], "more")
        say("\n  ".join([f"{len(absent)} of {len(samples)} samples have no image in {images}:", *lines]))
    return {sample.id: image.source.digest() for sample in samples for image in sample.images}


def _score(catalog: Catalog, file: Path, joined: _Joined, rules: _Rules, *, out: Path | None, as_json: bool) -> int:
    from mhe.scoring import score_cases, uncomputed

    with ProgressLine(joined.title) as line:
        records = score_cases(
            catalog,
            joined.task,
            joined.cases,
            all_samples=joined.samples,
            metrics=joined.metrics,
            profiles=joined.profiles,
            metric_options=rules.options,
            run_key=joined.key,
            folder=out,
            report=lambda what, done, total: line.update(
                f"score {len(joined.cases):,}", done, total, what, is_even=False
            ),
        )
    document = _document(file, joined, records)
    if out is not None:
        _keep(out, document)
    summaries = {name: profile.summary for name, profile in catalog.profiles.items()}
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else _text(joined, records, summaries))
    return PARTIAL if len(joined.cases) < len(joined.samples) or uncomputed(records) else 0


def _document(file: Path, joined: _Joined, records: Sequence[MetricRecord]) -> dict[str, object]:
    return {
        "schema_version": 1,
        "predictions": file.name,
        "status": "complete" if len(joined.cases) == len(joined.samples) else "partial",
        **joined.about,
        "samples": len(joined.samples),
        "answered": len(joined.cases),
        "metrics": [record.model_dump(mode="json") for record in records],
    }


def _keep(out: Path, document: dict[str, object]) -> None:
    from mhe.run_folder import write_atomically

    place = out / "score.json"
    write_atomically(place, json.dumps(document, indent=2) + "\n")
    say(f"Kept: {place}, with the statistics of each sample in {out / 'scores'}")


def _text(joined: _Joined, records: Sequence[MetricRecord], summaries: Mapping[str, str]) -> str:
    from mhe.cli.run_tables import groups_table, values_table

    answered, wanted = len(joined.cases), len(joined.samples)
    head = f"{joined.title}: {answered} of {wanted} samples have a prediction"
    if answered < wanted:
        head += "\nPARTIAL: values are provisional, over the samples that have one."
    groups = groups_table(records, joined.primary or records[0].values[0].name)
    return "\n\n".join(part for part in [head, values_table(records, summaries), groups, joined.note] if part) + "\n"
