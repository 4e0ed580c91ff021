"""`mhe data`: what the data of a task holds, and what its splits share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.completion import complete_task
from mhe.cli.main import catalog_of, say
from mhe.cli.progress import ProgressLine
from mhe.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mhe.audit import AuditReport, SharedBetweenSplits, SplitCounts, WithinSplit
    from mhe.documents.task import TaskSpec

USERS_MISTAKE = 2
SHOWN = 5

_task_argument = click.argument("name", metavar="TASK", shell_complete=complete_task)
_data_dir_option = click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set.")
_offline_option = click.option("--offline", is_flag=True, help="Reach for no hub; the data must be on this machine.")
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_splits_option = click.option("--split", "splits", multiple=True, help="Only this split. Repeatable.")


@click.group(short_help="Count and audit the data of a task.")
def data() -> None:
    """Count, list and audit the data of a task."""


@data.command("info")
@_task_argument
@_data_dir_option
@_splits_option
@_offline_option
@_json_option
@click.pass_context
def info(
    ctx: click.Context, *, name: str, data_dir: Path | None, splits: tuple[str, ...], offline: bool, as_json: bool
) -> None:
    """Count samples and images by split and group, and compare with what the publisher counts.

    Leaves with 2 where a count differs.
    """
    from mhe.audit import count_splits

    catalog = catalog_of(ctx)
    task = catalog.task(name)
    counts, found = count_splits(catalog, task, data_dir=data_dir, offline=offline, splits=splits)
    place = next(iter(found.values())).record.place
    deviations = _deviations(counts)
    if as_json:
        document = {
            "task": task.key,
            "title": task.title,
            "kind": task.kind,
            "phantom": task.phantom,
            "licence": task.source.licence,
            "place": place,
            "splits": {split: count.model_dump(mode="json") for split, count in counts.items()},
            "deviations": deviations,
        }
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        for line in _head(task, place):
            click.echo(line)
        click.echo(_counts_table(counts))
        click.echo(_groups_table(counts))
    for deviation in deviations:
        say(f"warning: {deviation}")
    ctx.exit(USERS_MISTAKE if deviations else 0)


@data.command("list")
@_task_argument
@click.option("--split", help="The split; the task's own where left out.")
@click.option("--limit", type=int, help="Only the first N samples.")
@_data_dir_option
@_offline_option
@_json_option
@click.pass_context
def list_samples(
    ctx: click.Context,
    *,
    name: str,
    split: str | None,
    limit: int | None,
    data_dir: Path | None,
    offline: bool,
    as_json: bool,
) -> None:
    """List samples: id, image, question and reference. Of a task with a subset, these are its ids."""
    from mhe.samples import load_samples

    catalog = catalog_of(ctx)
    found = load_samples(
        catalog, catalog.task(name), split=split, limit=limit, data_dir=data_dir, offline=offline, need_images=False
    )
    if as_json:
        rows = [
            {
                "id": sample.id,
                "images": [image.id for image in sample.images],
                "question": sample.question,
                "references": list(sample.references),
                "answer_type": sample.answer_type,
                "groups": dict(sample.groups),
            }
            for sample in found.samples
        ]
        document = {"task": found.task.key, "split": found.split, "place": found.record.place, "samples": rows}
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
        return
    rows_of_text = [
        [sample.id, " ".join(image.id for image in sample.images), sample.question or "", " | ".join(sample.references)]
        for sample in found.samples
    ]
    click.echo(table(["id", "image", "question", "reference"], rows_of_text))


@data.command("audit")
@_task_argument
@_data_dir_option
@_splits_option
@click.option(
    "--threshold",
    type=click.IntRange(0, 32),
    help="Bits of 64 in which the perceptual hashes of near-duplicates may differ [default: 4].",
)
@click.option("--strict", is_flag=True, help="Leave with 2 where splits share images and task.yaml does not say so.")
@_offline_option
@_json_option
@click.pass_context
def audit_command(
    ctx: click.Context,
    *,
    name: str,
    data_dir: Path | None,
    splits: tuple[str, ...],
    threshold: int | None,
    strict: bool,
    offline: bool,
    as_json: bool,
) -> None:
    """Find what the splits share: the same and nearly the same images, repeated questions and answers.

    Reads every image once. Also counts duplicates inside each split, unreadable images and files that no sample shows.
    """
    from mhe.audit import THRESHOLD, audit

    catalog = catalog_of(ctx)
    task = catalog.task(name)
    with ProgressLine(task.name) as line:
        report = audit(
            catalog,
            task,
            data_dir=data_dir,
            offline=offline,
            splits=splits,
            threshold=THRESHOLD if threshold is None else threshold,
            progress=line.update,
        )
    if as_json:
        click.echo(report.model_dump_json(indent=2))
    else:
        _print_report(task, report)
    ctx.exit(USERS_MISTAKE if strict and report.undeclared else 0)


def _head(task: TaskSpec, place: str) -> list[str]:
    label = " (PHANTOM: drawn images, says nothing of medicine)" if task.phantom else ""
    lines = [f"{task.key}: {task.title}{label}", f"Data: {place}. Licence: {task.source.licence}"]
    if task.subset:
        by = f", stratified by {task.subset.stratify_by}" if task.subset.stratify_by else ""
        lines.append(f"Split {task.subset.split!r} is a fixed subset of {task.subset.size} samples{by}.")
    return [*lines, ""]


def _deviations(counts: Mapping[str, SplitCounts]) -> list[str]:
    return [
        f"split {name!r} has {count.samples} samples, the publisher counts {count.expected_samples}"
        for name, count in counts.items()
        if count.missing is None and count.expected_samples not in (None, count.samples)
    ]


def _counts_table(counts: Mapping[str, SplitCounts]) -> str:
    rows = []
    for name, count in counts.items():
        if count.missing is not None:
            rows.append([name, "-", "-", str(count.expected_samples or "-"), count.missing])
            continue
        types = ", ".join(f"{number} {kind}" for kind, number in count.answer_types.items())
        rows.append([name, str(count.samples), str(count.images), str(count.expected_samples or "-"), types])
    return table(["split", "samples", "images", "published", "notes"], rows, right={1, 2, 3}) + "\n"


def _groups_table(counts: Mapping[str, SplitCounts]) -> str:
    read = {name: count for name, count in counts.items() if count.missing is None}
    rows = []
    for group in dict.fromkeys(group for count in read.values() for group in count.groups):
        values = dict.fromkeys(value for count in read.values() for value in count.groups.get(group, {}))
        rows += [
            [group, value, *(str(count.groups.get(group, {}).get(value, 0)) for count in read.values())]
            for value in values
        ]
    return table(["group", "value", *read], rows, right=set(range(2, 2 + len(read)))) if rows else ""


def _print_report(task: TaskSpec, report: AuditReport) -> None:
    for shared in report.shared:
        if shared.images:
            click.echo(_warning(shared))
    if report.compared_by == "name":
        click.echo("NOTE: no image could be read here: images are compared by their names, near-duplicates are not.")
    if not any(shared.images for shared in report.shared):
        how = "byte for byte" if report.compared_by == "content" else "by name"
        click.echo(f"No image is in two of the splits read ({how}).")
    click.echo()
    for line in _head(task, report.place):
        click.echo(line)
    click.echo(_counts_table(report.splits))
    if report.shared:
        click.echo(_shared_table(report))
    click.echo(_within_table(report.within))
    _print_examples(report)


def _warning(shared: SharedBetweenSplits) -> str:
    first, second = shared.splits
    text = (
        f"WARNING: {shared.images} of the {shared.images_of[1]} images of {second!r} are also in {first!r} "
        f"({shared.samples[1]} samples of {second!r} show them)."
    )
    if shared.declared is None:
        return (
            f"{text}\n  task.yaml does not declare it: a score on {second!r} after training on {first!r} is inflated."
        )
    return f"{text}\n  task.yaml declares it: {shared.declared}"


def _shared_table(report: AuditReport) -> str:
    rows: list[list[str]] = []
    measures: list[tuple[str, Callable[[SharedBetweenSplits], str]]] = [
        ("images in both", lambda item: str(item.images)),
        ("  of the images of each", lambda item: f"{item.images_of[0]} / {item.images_of[1]}"),
        ("  samples that show them", lambda item: f"{item.samples[0]} / {item.samples[1]}"),
        (
            f"further near-duplicate images (<= {report.threshold} bits)",
            lambda item: f"{item.near_images[0]} / {item.near_images[1]}",
        ),
        ("samples repeated with image, question and answer", lambda item: str(item.repeated_samples)),
        ("samples repeated with question and answer", lambda item: str(item.repeated_texts)),
    ]
    for label, measure in measures:
        rows.append([label, *(measure(item) for item in report.shared)])
    headers = ["between splits", *(" / ".join(item.splits) for item in report.shared)]
    return table(headers, rows, right=set(range(1, len(headers)))) + "\n"


def _within_table(within: Mapping[str, WithinSplit]) -> str:
    rows = [
        ["images that repeat another byte for byte", *(str(item.duplicate_images) for item in within.values())],
        ["near-duplicate pairs of images", *(str(item.near_pairs) for item in within.values())],
        ["samples that repeat another", *(str(item.repeated_samples) for item in within.values())],
        ["questions with contradicting answers", *(str(item.contradictions) for item in within.values())],
    ]
    headers = ["within a split", *within]
    return table(headers, rows, right=set(range(1, len(headers)))) + "\n"


def _print_examples(report: AuditReport) -> None:
    for shared in report.shared:
        title = " / ".join(shared.splits)
        if shared.examples:
            click.echo(f"{title}, shared: {', '.join(shared.examples[:SHOWN])}{_more(shared.images)}")
        for pair in shared.near_examples[:SHOWN]:
            click.echo(f"{title}, near-duplicate: {pair.first} / {pair.second} ({pair.distance} bits)")
    for name, part in report.within.items():
        for group in part.duplicate_examples[:SHOWN]:
            click.echo(f"{name}, the same image: {', '.join(group)}")
        for pair in part.near_examples[:SHOWN]:
            click.echo(f"{name}, near-duplicate: {pair.first} / {pair.second} ({pair.distance} bits)")
    for image, problem in list(report.unreadable.items())[:SHOWN]:
        click.echo(f"unreadable: {image}: {problem}")
    click.echo(f"Unreadable images: {len(report.unreadable)}{_more(len(report.unreadable))}")
    names = ", ".join(report.unreferenced[:SHOWN])
    click.echo(
        f"Image files that no sample shows: {len(report.unreferenced)}"
        + (f" ({names}{_more(len(report.unreferenced))})" if names else "")
    )


def _more(number: int) -> str:
    return f", … ({number - SHOWN} more; see --json)" if number > SHOWN else ""
