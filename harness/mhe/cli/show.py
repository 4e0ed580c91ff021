"""`mhe show`: what is registered, and the runs on this machine.

Lists need nothing heavy; details load the one thing that is asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli import completion
from mhe.cli.main import catalog_of, say
from mhe.cli.tables import table
from mhe.errors import MheError, UnknownNameError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mhe.catalog import Catalog
    from mhe.cli.completion import Completer
    from mhe.values import Provider

Row = dict[str, object]


class ShowGroup(click.Group):
    """A group that suggests the nearest name for a mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion."""
        name = args[0] if args else ""
        if name not in self.commands and f"{name}s" in self.commands:
            # `show task phantom-vqa` reads as well as `show tasks`.
            return super().resolve_command(ctx, [f"{name}s", *args[1:]])
        if name and not name.startswith("-") and name not in self.commands:
            raise UnknownNameError("list", name, self.commands, hint="Type: mhe show --help")
        return super().resolve_command(ctx, args)


@click.group(cls=ShowGroup, short_help="List what is there: tasks, models, metrics, runs and more.")
def show() -> None:
    """List what is there. With a NAME, everything about one thing."""


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def print_json(content: Mapping[str, object]) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps({"schema_version": 1, **content}, indent=2, ensure_ascii=False, default=str))


def print_rows(rows: Sequence[Row], columns: Sequence[str], *, nothing: str, right: Sequence[str] = ()) -> None:
    """A table on stdout; where there is no row, a sentence on stderr."""
    if not rows:
        say(nothing)
        return
    cells = [["" if row.get(column) is None else str(row[column]) for column in columns] for row in rows]
    click.echo(table(columns, cells, right={columns.index(column) for column in right}))


def _warn(catalog: Catalog) -> None:
    broken = [plugin.name for plugin in catalog.plugins if not plugin.is_working]
    if broken:
        say(f"warning: plugins with problems: {', '.join(broken)}. See: mhe show plugins")


# ---------------------------------------------------------------- lists


def _task_rows(catalog: Catalog) -> list[Row]:
    rows: list[Row] = []
    for name in sorted(catalog.task_folders):
        try:
            task = catalog.task(name)
        except MheError as error:
            # One broken task must not hide the others.
            say(f"warning: {error}")
            rows.append({"name": name, "title": "(cannot be read)", "error": str(error)})
            continue
        row = {"name": name, "version": task.version, "kind": task.kind, "primary": task.primary}
        title = f"{task.title} (drawn images)" if task.phantom else task.title
        rows.append({**row, "profile": task.profile, "split": task.default_split, "title": title})
    return rows


def _model_rows(catalog: Catalog) -> list[Row]:
    from mhe.checkpoints import find_checkpoint, list_checkpoints

    found = [(name, "registered", spec) for name, spec in sorted(catalog.models.items())]
    for name in list_checkpoints():
        try:
            if (spec := find_checkpoint(name)) is not None:
                found.append((name, "checkpoint", spec))
        except MheError as error:
            say(f"warning: {error}")
    return [
        {
            "name": name,
            "from": origin,
            "backend": spec.backend,
            "location": f"{spec.location}@{spec.revision[:12]}" if spec.revision else spec.location,
            "tiny twin": spec.tiny_twin,
            "summary": spec.summary,
        }
        for name, origin, spec in found
    ]


def _provider_rows(
    kind: str, providers: Callable[[Catalog], Mapping[str, Provider[object]]]
) -> Callable[[Catalog], list[Row]]:
    def rows(catalog: Catalog) -> list[Row]:
        found: list[Row] = []
        for name, provider in sorted(providers(catalog).items()):
            owner = catalog.owner_of(kind, name)
            found.append(
                {
                    "name": name,
                    "plugin": owner.name if owner else "",
                    "extra": provider.extra,
                    "summary": provider.summary,
                }
            )
        return found

    return rows


def _plugin_rows(catalog: Catalog) -> list[Row]:
    catalog.check_all()
    return [
        {
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "state": "ok" if plugin.is_working else "PROBLEM",
            "place": plugin.place,
            "hooks": ", ".join(hook.removeprefix("register_") for hook in plugin.hooks),
        }
        for plugin in catalog.plugins
    ]


def _pipeline_rows(catalog: Catalog) -> list[Row]:
    return [{"name": name, "file": str(file)} for name, file in sorted(catalog.pipelines.items())]


PROVIDER_COLUMNS = ("name", "plugin", "extra", "summary")


def _show(
    catalog: Catalog,
    plural: str,
    singular: str,
    name: str | None,
    rows_of: Callable[[Catalog], list[Row]],
    columns: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """A list, or with a name all about one thing."""
    if name is not None:
        from mhe.cli.show_details import detail_text, details

        found = details(catalog, singular, name)
        if as_json:
            print_json({singular: found})
        else:
            click.echo(detail_text(found))
        return
    rows = rows_of(catalog)
    if as_json:
        problems = [str(problem) for problem in catalog.problems]
        print_json({plural: rows, "problems": problems})
        return
    print_rows(rows, columns, nothing=f"there are no {plural}.")
    if plural == "plugins":
        for problem in catalog.problems:
            say(f"problem: {problem}")
    else:
        _warn(catalog)


def _make_list(
    plural: str,
    singular: str,
    columns: Sequence[str],
    rows_of: Callable[[Catalog], list[Row]],
    complete: Completer | None,
    what: str,
) -> None:
    @click.argument("name", required=False, shell_complete=complete)
    @json_option
    @click.pass_context
    def run(ctx: click.Context, name: str | None, as_json: bool) -> None:
        _show(catalog_of(ctx), plural, singular, name, rows_of, columns, as_json=as_json)

    show.command(plural, short_help=what, help=f"{what} With NAME, everything about that {singular}.")(run)


TASK_COLUMNS = ("name", "version", "kind", "primary", "profile", "split", "title")


@show.command("tasks", short_help="Tasks that models are evaluated on.")
@click.argument("name", required=False, shell_complete=completion.complete_task)
@click.option("--sample", "place", type=int, help="Show the sample at this place of the split, from 1, and its prompt.")
@click.option("--model", shell_complete=completion.complete_model, help="Show the very text that this model reads.")
@click.option("--backend", shell_complete=completion.complete_backend, help="Through another backend than its own.")
@click.option("--split", help="Another split than the task's usual one.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where the data set lies.")
@click.option("--offline", is_flag=True, help="Reach for no hub; data and models must be on this machine.")
@json_option
@click.pass_context
def show_tasks(
    ctx: click.Context,
    name: str | None,
    place: int | None,
    model: str | None,
    backend: str | None,
    split: str | None,
    data_dir: Path | None,
    offline: bool,
    as_json: bool,
) -> None:
    """Tasks that models are evaluated on. With NAME, everything about that task.

    With --sample, one sample of it, the messages of its prompt, and with --model the text that this model reads,
    rendered by the template of its own processor: no weights are loaded.
    """
    catalog = catalog_of(ctx)
    if place is None or name is None:
        given = {"--model": model, "--backend": backend, "--split": split, "--data-dir": data_dir, "--sample": place}
        if lonely := next((option for option, value in given.items() if value is not None), None):
            raise UserError(f"{lonely} belongs to one sample of one task: mhe show tasks TASK --sample 1")
        _show(catalog, "tasks", "task", name, _task_rows, TASK_COLUMNS, as_json=as_json)
        return
    from mhe.cli.show_samples import sample_details, sample_text

    found = sample_details(
        catalog, name, place, split=split, data_dir=data_dir, model=model, backend=backend, offline=offline
    )
    if as_json:
        print_json(found)
    else:
        click.echo(sample_text(found))


_make_list(
    "models",
    "model",
    ("name", "from", "backend", "location", "tiny twin", "summary"),
    _model_rows,
    completion.complete_model,
    "Registered models, and checkpoints made here.",
)
_make_list(
    "backends",
    "backend",
    PROVIDER_COLUMNS,
    _provider_rows("backend", lambda catalog: catalog.backends),
    completion.complete_backend,
    "Ways to run a model.",
)
_make_list(
    "metrics",
    "metric",
    PROVIDER_COLUMNS,
    _provider_rows("metric", lambda catalog: catalog.metrics),
    completion.complete_metric,
    "What answers are measured by.",
)
_make_list(
    "profiles",
    "profile",
    PROVIDER_COLUMNS,
    _provider_rows("profile", lambda catalog: catalog.profiles),
    completion.complete_profile,
    "Scoring conventions.",
)
_make_list(
    "taggers",
    "tagger",
    PROVIDER_COLUMNS,
    _provider_rows("tagger", lambda catalog: catalog.taggers),
    completion.complete_tagger,
    "What finds the entities that some metrics weigh more.",
)
_make_list(
    "recipes",
    "recipe",
    PROVIDER_COLUMNS,
    _provider_rows("recipe", lambda catalog: catalog.recipes),
    completion.complete_recipe,
    "Ways to train or transform a model.",
)
_make_list(
    "readers",
    "reader",
    PROVIDER_COLUMNS,
    _provider_rows("reader", lambda catalog: catalog.readers),
    completion.complete_reader,
    "Readers of data sets.",
)
_make_list(
    "engines",
    "engine",
    PROVIDER_COLUMNS,
    _provider_rows("engine", lambda catalog: catalog.engines),
    completion.complete_engine,
    "Where requests run.",
)
_make_list(
    "pipelines",
    "pipeline",
    ("name", "file"),
    _pipeline_rows,
    completion.complete_pipeline,
    "Pipelines of recipes.",
)
_make_list(
    "plugins",
    "plugin",
    ("name", "distribution", "version", "state", "place", "hooks"),
    _plugin_rows,
    completion.complete_plugin,
    "Installed plugins, and what is wrong with them.",
)


# ---------------------------------------------------------------- runs


@show.command("runs", short_help="Runs on this machine.")
@click.option(
    "--runs-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="Where runs are kept [default: $MHE_RUNS_DIR, else runs].",
)
@click.option("--task", shell_complete=completion.complete_task, help="Only runs of this task.")
@json_option
def show_runs(runs_dir: Path | None, task: str | None, as_json: bool) -> None:
    """Runs on this machine, the primary value of each with its interval.

    `provisional`: some samples have no answer, and the value is over the others. `unfinished`: interrupted; the same
    `mhe eval` goes on.
    """
    from mhe.cli.evaluate import default_runs_dir
    from mhe.cli.show_runs import RUN_COLUMNS, run_rows, text_row

    folder = runs_dir or default_runs_dir()
    rows, problems = run_rows(folder, task)
    for problem in problems:
        say(f"warning: {problem}")
    if as_json:
        print_json({"runs_dir": str(folder), "runs": rows, "problems": problems})
        return
    texts = [text_row(row) for row in rows]
    print_rows(texts, RUN_COLUMNS, nothing=f"there are no runs in {folder}. Make one: mhe eval", right=["value", "n"])


@show.command("run", short_help="One run in full.")
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def show_run(folder: Path, as_json: bool) -> None:
    """One run in full: values with intervals, groups, cost, warnings. FOLDER is its folder or its run.json."""
    from mhe.cli.run_tables import run_table
    from mhe.cli.show_runs import read_run

    record, place = read_run(folder)
    if as_json:
        print_json({"run": {**record.model_dump(mode="json"), "folder": str(place)}})
    else:
        click.echo(run_table(record, place))
