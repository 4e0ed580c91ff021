"""`mhe board`: make a board, put runs on it, build its page, prove that it is right."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from mhe.cli.completion import complete_profile, complete_task
from mhe.cli.main import catalog_of, say
from mhe.documents.board import EntrantKind
from mhe.errors import DataMissingError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.boards.checking import BoardCheck
    from mhe.boards.folders import BoardFolder
    from mhe.boards.verification import MetricShelf
    from mhe.catalog import Catalog
    from mhe.documents.board import BoardSpec, BoardTask

USERS_MISTAKE = 2

_root_option = click.option(
    "--leaderboards-dir",
    "root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("leaderboards"),
    show_default=True,
    help="Folder of all boards.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_day_option = click.option("--date", "day", help="Date of entry, YYYY-MM-DD; today (UTC) where empty.")


@click.group(short_help="Make, fill, build and check leaderboards.")
def board() -> None:
    """Make, fill, build and check leaderboards.

    BOARD is a name (its latest version), NAME@vN, or the folder of a version.
    """


# ------------------------------------------------------------ new


@board.command("new")
@click.argument("name")
@click.option("--title", help="Shown at the top; the earlier version's, or the name, where empty.")
@click.option("--summary", help="A paragraph below the title.")
@click.option("--task", "tasks", multiple=True, shell_complete=complete_task, help="A task to pin. Repeatable.")
@click.option(
    "--from-run",
    "runs",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Pin exactly what this run did. Repeatable.",
)
@click.option("--split", help="The task's default split where empty.")
@click.option("--profile", shell_complete=complete_profile, help="Scoring profile; the task's where empty.")
@click.option("--metrics", help="Metrics or values to show, such as bleu-4,cider; the task's where empty.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first N samples.")
@click.option("--costs", help="Columns of cost, such as parameters,bytes; the usual ones where empty.")
@click.option(
    "--relative-to", metavar="ENTRANT", help="Show all others beside this entrant, such as students beside a teacher."
)
@click.option("--seeds", type=click.IntRange(min=1), help="Seeds 0 to N-1. Default: 1, or the earlier version's.")
@click.option("--set", "settings", multiple=True, help="Another generation, such as generation.max_new_tokens=32.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set, to pin its digest now.")
@click.option("--new-version", is_flag=True, help="The board exists: make its next version; the old one is frozen.")
@_root_option
@_json_option
@click.pass_context
def new(
    ctx: click.Context,
    *,
    name: str,
    title: str | None,
    summary: str | None,
    tasks: tuple[str, ...],
    runs: tuple[Path, ...],
    split: str | None,
    profile: str | None,
    metrics: str | None,
    limit: int | None,
    costs: str | None,
    relative_to: str | None,
    seeds: int | None,
    settings: tuple[str, ...],
    data_dir: Path | None,
    new_version: bool,
    root: Path,
    as_json: bool,
) -> None:
    """Make a board that pins tasks, split, profile, metrics, generation, seeds and data.

    Everything is taken from the task, or with --from-run from a run that is to be its first entry. Where the data is
    not on this machine, its digest is pinned by the first run that is added.
    """
    from mhe.boards.folders import create_board

    catalog = catalog_of(ctx)
    old = _earlier_version(name, root, new_version=new_version)
    shown = _parts(metrics)
    pins = [_pin_run(catalog, folder, profile, shown) for folder in runs]
    pins += [
        _pin_task(
            catalog,
            task,
            split=split,
            limit=limit,
            profile=profile,
            metrics=shown,
            settings=settings,
            data_dir=data_dir,
        )
        for task in tasks
    ]
    if not pins:
        raise UserError("a board pins at least one task: give --task TASK or --from-run RUN_FOLDER.")
    given: dict[str, object] = {
        **({"title": title} if title else {}),
        **({"summary": summary} if summary is not None else {}),
        **({"seeds": tuple(range(seeds))} if seeds else {}),
        **({"costs": _parts(costs)} if costs is not None else {}),
        **({"relative_to": {relative_to: ()}} if relative_to else {}),
    }
    made = create_board(root, _new_spec(name, pins, old, given))
    say(f"Made {made.spec.key} in {made.path}. Next: mhe board add {made.spec.name} RUN_FOLDER")
    if as_json:
        click.echo(json.dumps({"board": made.spec.key, "folder": str(made.path), **_document(made.spec)}, indent=2))


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def _document(spec: BoardSpec) -> dict[str, object]:
    return {"spec": spec.model_dump(mode="json")}


def _earlier_version(name: str, root: Path, *, new_version: bool) -> BoardSpec | None:
    from mhe.boards.folders import open_board, versions

    known = versions(root / name)
    if known and not new_version:
        raise UserError(
            f"board {name!r} exists in {root}. A changed rule is a new version: add --new-version, and v{known[-1]} "
            "stays as it is."
        )
    if new_version and not known:
        raise UserError(f"--new-version: there is no board {name!r} in {root} yet; leave the option out.")
    return open_board(root / name / f"v{known[-1]}").spec if known else None


def _new_spec(name: str, pins: Sequence[BoardTask], old: BoardSpec | None, given: Mapping[str, object]) -> BoardSpec:
    """With what is given; the rest as the earlier version has it."""
    from mhe.documents.board import BoardSpec

    on_board = {pin.name for pin in pins} | {pin.task for pin in pins}
    kept: dict[str, object] = {"title": name}
    if old is not None:
        kept = old.model_dump(include={"title", "summary", "seeds", "costs", "relative_to", "enter"})
        kept["reported"] = [row.model_dump() for row in old.reported if row.task in on_board]
    data = {
        "name": name,
        "version": old.version + 1 if old else 1,
        "tasks": [pin.model_dump() for pin in pins],
        **kept,
        **given,
    }
    return BoardSpec.from_data(data, f"mhe board new {name}")


def _pin_run(catalog: Catalog, folder: Path, profile: str | None, metrics: Sequence[str]) -> BoardTask:
    from mhe.boards.pinning import pin_run
    from mhe.documents.run import RunRecord

    if not (folder / "run.json").is_file():
        raise UserError(f"{folder} holds no run.json: give the folder of a finished run (mhe show runs).")
    return pin_run(catalog, RunRecord.from_json(folder / "run.json"), profile=profile, metrics=metrics)


def _pin_task(
    catalog: Catalog,
    name: str,
    *,
    split: str | None,
    limit: int | None,
    profile: str | None,
    metrics: Sequence[str],
    settings: Sequence[str],
    data_dir: Path | None,
) -> BoardTask:
    from mhe.boards.pinning import pin_task
    from mhe.cli.settings import parse_settings
    from mhe.documents.base import parse_options
    from mhe.samples import load_samples

    task = catalog.task(name)
    changes = parse_settings(settings, ["generation"])["generation"]
    kept = task.generation.model_dump()
    generation = parse_options(type(task.generation), {**kept, **changes}, "--set generation")
    digest = None
    try:
        found = load_samples(catalog, task, split=split, limit=limit, data_dir=data_dir, offline=True)
        digest = found.record.digest
    except DataMissingError:
        if data_dir is not None:
            raise
        say(f"The data of {task.name} is not on this machine: its digest is pinned by the first run that is added.")
    return pin_task(
        catalog,
        task,
        split=split,
        limit=limit,
        profile=profile,
        metrics=metrics,
        data_digest=digest,
        generation=generation,
    )


# ------------------------------------------------------------ add


@board.command("add")
@click.argument("board_name", metavar="BOARD")
@click.argument("runs", nargs=-1, required=True, metavar="RUN_FOLDER…", type=click.Path(path_type=Path))
@click.option("--entrant", help="Row of all these runs; the model's name where empty.")
@click.option("--kind", type=click.Choice(get_args(EntrantKind)), help="What the entrant is.")
@click.option("--summary", help="A few words beside the entrant's name.")
@click.option("--replace", is_flag=True, help="Put these runs in the place of entries that stand there.")
@_day_option
@_root_option
@_json_option
@click.pass_context
def add(
    ctx: click.Context,
    *,
    board_name: str,
    runs: tuple[Path, ...],
    entrant: str | None,
    kind: EntrantKind | None,
    summary: str | None,
    replace: bool,
    day: str | None,
    root: Path,
    as_json: bool,
) -> None:
    """Put finished runs on a board: all of them, or none with every reason.

    A run is taken when it is complete, everything the board pins is equal, its statistics make its values, and its
    weights, hashed again where they lie on this machine, are still those of the run.
    """
    from mhe.boards.folders import locate_board
    from mhe.boards.publishing import Admission, add_runs

    admission = Admission(day=_checked_day(day), entrant=entrant, kind=kind, summary=summary, replace=replace)
    changed, changes = add_runs(locate_board(board_name, root), runs, _shelf(ctx), admission)
    for change in changes:
        say(f"{change.action} {change.entrant} on {change.task}, seed {change.seed} (weights: {change.weights})")
    if not changes:
        say("nothing changed: these runs stand on the board already.")
    say(f"Next: mhe board build {changed.spec.name}")
    if as_json:
        document = {
            "board": changed.spec.key,
            "folder": str(changed.path),
            "changes": [change.model_dump(mode="json") for change in changes],
        }
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))


def _checked_day(day: str | None) -> str:
    if day is None:
        return datetime.now(UTC).date().isoformat()
    try:
        return datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).date().isoformat()
    except ValueError:
        raise UserError(f"--date {day!r}: write YYYY-MM-DD.") from None


def _shelf(ctx: click.Context) -> MetricShelf:
    from mhe.boards.verification import MetricShelf

    return MetricShelf(catalog_of(ctx))


# ------------------------------------------------------------ build and check


@board.command("build")
@click.argument("board_name", metavar="BOARD")
@_root_option
@_json_option
@click.pass_context
def build(ctx: click.Context, *, board_name: str, root: Path, as_json: bool) -> None:
    """Make README.md, the drawings beside it and the index of all boards from the entries alone."""
    from mhe.boards.checking import build_board
    from mhe.boards.folders import locate_board

    path = locate_board(board_name, root)
    files = build_board(path, _shelf(ctx))
    if as_json:
        click.echo(json.dumps({"board": _key(path), "files": [str(file) for file in files]}, indent=2))
    else:
        click.echo(files[0])


def _key(path: Path) -> str:
    from mhe.boards.folders import open_board

    opened: BoardFolder = open_board(path)
    return opened.spec.key


def _verdict(result: BoardCheck) -> str:
    from mhe.boards.checking import WHOLE

    parts = [f"{result.entries} {'entry' if result.entries == 1 else 'entries'}"] if result.board != WHOLE else []
    count = len(result.problems)
    return ", ".join([*parts, f"{count} {'problem' if count == 1 else 'problems'}" if count else "right"])


@board.command("check")
@click.argument("boards", nargs=-1, metavar="[BOARD…]")
@_root_option
@_json_option
@click.pass_context
def check(ctx: click.Context, *, boards: tuple[str, ...], root: Path, as_json: bool) -> None:
    """Prove boards: rules kept, numbers recomputed from the statistics, pages byte for byte, nothing vanished.

    All boards where none is named. Leaves with 2 where something is wrong. In a git checkout, the last commit says
    what was published.
    """
    from mhe.boards.checking import check_root
    from mhe.boards.folders import locate_board

    if not boards and not root.is_dir():
        raise UserError(f"{root} is no folder: give --leaderboards-dir.")
    chosen = [locate_board(name, root) for name in boards]
    # A board given as a folder may lie below another root than the option says.
    roots = {path.resolve().parent.parent for path in chosen} or {root.resolve()}
    checks = [
        result
        for place in sorted(roots)
        for result in check_root(place, _shelf(ctx), [path for path in chosen if path.resolve().parent.parent == place])
    ]
    is_right = not any(result.problems for result in checks)
    if as_json:
        document = {
            "ok": is_right,
            "boards": [{"board": c.board, "entries": c.entries, "problems": list(c.problems)} for c in checks],
        }
        click.echo(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        for result in checks:
            click.echo(f"{result.board}: {_verdict(result)}")
            for problem in result.problems:
                click.echo(f"  {problem}")
    ctx.exit(0 if is_right else USERS_MISTAKE)
