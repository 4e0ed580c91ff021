"""`mhe show`: what is there. Lists come from the catalogue alone; a name shows everything known of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.field_docs import field_docs
from mhe.cli.main import catalog_of, say
from mhe.cli.tables import table
from mhe.errors import UnknownNameError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import BaseModel

    from mhe.catalog import Catalog
    from mhe.documents.run import RunRecord
    from mhe.values import MetricValue, Provider

KINDS = ("tasks", "models", "backends", "metrics", "profiles", "recipes", "pipelines", "engines", "plugins", "readers")


@click.command("show", short_help="List what is there: tasks, models, metrics, runs and more.")
@click.argument("kind", metavar="KIND", type=click.Choice([*KINDS, "runs", "run"]))
@click.argument("name", metavar="[NAME]", required=False, shell_complete=lambda *a: _complete_name(*a))
@click.option("--runs-dir", type=click.Path(path_type=Path), help="Where runs are kept [default: runs].")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def show(ctx: click.Context, kind: str, name: str | None, runs_dir: Path | None, as_json: bool) -> None:
    """List one KIND of thing, or show all of one NAME.

    KIND is tasks, models, backends, metrics, profiles, recipes, pipelines, engines, readers, plugins or runs;
    `mhe show run FOLDER` shows one run.
    """
    if kind == "run":
        _show_run(name, as_json=as_json)
    elif kind == "runs":
        _show_runs(runs_dir, as_json=as_json)
    elif name is None:
        _list(catalog_of(ctx), kind, as_json=as_json)
    else:
        _detail(catalog_of(ctx), kind, name, as_json=as_json)


def _complete_name(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    from mhe.catalog import open_catalog

    kind = ctx.params.get("kind")
    if kind not in KINDS:
        return []
    return [row["name"] for row in _rows(open_catalog(), kind) if row["name"].startswith(incomplete)]


# ---------------------------------------------------------------- lists


def _rows(catalog: Catalog, kind: str) -> list[dict[str, str]]:
    """One mapping a thing; the keys are the table's headers."""
    if kind == "tasks":
        specs = [catalog.task(name) for name in catalog.task_folders]
        return [
            {"name": s.name, "version": str(s.version), "kind": s.kind, "primary": s.primary, "summary": s.summary}
            for s in specs
        ]
    if kind == "models":
        return [
            {"name": s.name, "backend": s.backend, "location": _short(s.location), "summary": s.summary}
            for s in catalog.models.values()
        ]
    if kind == "plugins":
        catalog.check_all()
        return [
            {
                "name": p.name,
                "distribution": f"{p.distribution} {p.version}".strip(),
                "state": "works" if p.is_working else "PROBLEM, see mhe doctor",
                "hooks": ", ".join(hook.removeprefix("register_") for hook in p.hooks),
            }
            for p in catalog.plugins
        ]
    if kind == "pipelines":
        return [{"name": name} for name in catalog.pipelines]
    providers: Mapping[str, Provider[object]] = getattr(catalog, kind)
    return [{"name": p.name, "summary": p.summary, "extra": p.extra or ""} for p in providers.values()]


def _short(location: str) -> str:
    return f"…/{Path(location).name}" if Path(location).is_absolute() else location


def _list(catalog: Catalog, kind: str, *, as_json: bool) -> None:
    rows = _rows(catalog, kind)
    if as_json:
        click.echo(json.dumps({"schema_version": 1, kind: rows}, indent=2, ensure_ascii=False))
        return
    if not rows:
        say(f"no {kind} are registered.")
        return
    headers = list(rows[0])
    click.echo(table(headers, [[row[header] for header in headers] for row in rows]))
    if kind != "plugins" and any(not plugin.is_working for plugin in catalog.plugins):
        say("some plugins have problems: mhe doctor")


# ---------------------------------------------------------------- one thing


def _detail(catalog: Catalog, kind: str, name: str, *, as_json: bool) -> None:
    details: dict[str, Callable[[Catalog, str], dict[str, object]]] = {
        "tasks": _task,
        "models": _model,
        "metrics": _metric,
        "profiles": _profile,
        "plugins": _plugin,
        "pipelines": _pipeline,
    }
    content = details[kind](catalog, name) if kind in details else _provider(catalog, kind, name)
    if as_json:
        click.echo(json.dumps({"schema_version": 1, **content}, indent=2, ensure_ascii=False, default=str))
    else:
        click.echo("\n".join(_as_text(content, "")))


def _as_text(content: Mapping[str, object], indent: str) -> list[str]:
    lines = []
    for key, value in content.items():
        if value in (None, "", [], (), {}):
            continue
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_as_text(value, indent + "  ")]
        elif isinstance(value, (list, tuple)):
            lines.append(f"{indent}{key}:")
            for item in value:
                if isinstance(item, dict):
                    lines.append(f"{indent}  - " + "; ".join(f"{k}: {v}" for k, v in item.items() if v not in (None, "")))
                else:
                    lines.append(f"{indent}  - {item}")
        else:
            first, *rest = str(value).splitlines() or [""]
            lines.append(f"{indent}{key}: {first}")
            lines += [f"{indent}{' ' * (len(key) + 2)}{line}" for line in rest]
    return lines


def _task(catalog: Catalog, name: str) -> dict[str, object]:
    task = catalog.task(name)
    content: dict[str, object] = task.model_dump(mode="json", exclude_defaults=True)
    folder = catalog.task_folders.get(name)
    if folder is not None and (folder / "README.md").is_file():
        content["readme"] = str(folder / "README.md")
    return content


def _model(catalog: Catalog, name: str) -> dict[str, object]:
    from mhe.checkpoints import find_checkpoint, list_checkpoints

    spec = catalog.models.get(name) or find_checkpoint(name)
    if spec is None:
        raise UnknownNameError("model", name, [*catalog.models, *list_checkpoints()])
    content: dict[str, object] = spec.model_dump(mode="json", exclude_defaults=True)
    return content


def _metric(catalog: Catalog, name: str) -> dict[str, object]:
    from mhe.digests import cache_dir
    from mhe.protocols import MetricContext

    content = _provider(catalog, "metrics", name)
    factory = catalog.metric(name)
    if not _needs_options(factory.Options):
        metric = factory(factory.Options(), MetricContext(cache_dir()))
        content |= {
            "version": metric.version,
            "for": sorted(metric.kinds),
            "requires": sorted(metric.requires),
            "values": [_value(value) for value in metric.values],
        }
    return content


def _value(value: MetricValue) -> dict[str, str]:
    low = "-∞" if value.floor is None else f"{value.floor:g}"
    high = "∞" if value.ceiling is None else f"{value.ceiling:g}"
    direction = "higher is better" if value.higher_is_better else "lower is better"
    return {"name": value.name, "range": f"{low} to {high}", "direction": direction, "summary": value.summary}


def _profile(catalog: Catalog, name: str) -> dict[str, object]:
    profile = catalog.profile(name)
    return {
        "name": profile.name,
        "version": profile.version,
        "kind": profile.kind,
        "summary": catalog.profiles[name].summary,
        "source": profile.source,
        "known defects, kept on purpose": list(profile.defects),
    }


def _plugin(catalog: Catalog, name: str) -> dict[str, object]:
    catalog.check_all()
    for plugin in catalog.plugins:
        if plugin.name == name:
            return {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "place": plugin.place,
                "hooks": list(plugin.hooks),
                "problems": [str(problem) for problem in plugin.problems],
            }
    raise UnknownNameError("plugin", name, [plugin.name for plugin in catalog.plugins])


def _pipeline(catalog: Catalog, name: str) -> dict[str, object]:
    from mhe.documents.pipeline import PipelineSpec
    from mhe.task_files import read_document

    if name not in catalog.pipelines:
        raise UnknownNameError("pipeline", name, catalog.pipelines)
    content: dict[str, object] = read_document(PipelineSpec, catalog.pipelines[name]).model_dump(mode="json")
    return content


def _provider(catalog: Catalog, kind: str, name: str) -> dict[str, object]:
    providers: Mapping[str, Provider[object]] = getattr(catalog, kind)
    load = getattr(catalog, kind.removesuffix("s"))
    thing = load(name)
    content: dict[str, object] = {"name": name, "summary": providers[name].summary, "extra": providers[name].extra}
    documentation = (thing.__doc__ or "").strip() if isinstance(thing, type) else ""
    if documentation:
        import inspect

        content["description"] = inspect.cleandoc(documentation)
    if options := getattr(thing, "Options", None):
        content["options"] = option_rows(options)
    return content


def option_rows(options: type[BaseModel]) -> list[dict[str, str]]:
    """Name, type, default and meaning of each option."""
    rows = []
    meanings = field_docs(options)
    for name, option in options.model_fields.items():
        annotation = option.annotation
        kind = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
        default = "required" if option.is_required() else repr(option.get_default(call_default_factory=True))
        extra = option.json_schema_extra
        meaning = option.description or meanings.get(name, "")
        neutral = "not in the run key" if isinstance(extra, dict) and extra.get("answer_neutral") else ""
        rows.append(
            {"name": name, "type": kind, "default": default, "meaning": meaning, "note": neutral}
        )
    return rows


def _needs_options(options: type[BaseModel]) -> bool:
    return any(option.is_required() for option in options.model_fields.values())


# ---------------------------------------------------------------- runs


def _show_run(name: str | None, *, as_json: bool) -> None:
    from mhe.cli.run_tables import run_table
    from mhe.documents.run import RunRecord

    if name is None:
        raise UserError("name the run's folder: mhe show run FOLDER (mhe show runs lists them).")
    folder = Path(name)
    path = folder if folder.name == "run.json" else folder / "run.json"
    if not path.is_file():
        unfinished = (folder / "samples.jsonl").is_file()
        detail = "the run is not finished; run its command again to go on." if unfinished else "there is no run here."
        raise UserError(f"{folder}: {detail} mhe show runs lists what there is.")
    record = RunRecord.from_json(path)
    click.echo(record.to_json() if as_json else run_table(record, path.parent), nl=False)


def _show_runs(runs_dir: Path | None, *, as_json: bool) -> None:
    from mhe.cli.evaluate import default_runs_dir
    from mhe.documents.run import RunRecord

    root = runs_dir or default_runs_dir()
    records = [(path.parent, RunRecord.from_json(path)) for path in sorted(root.glob("*/*/*/run.json"))]
    if as_json:
        rows = [{"folder": str(folder), **_run_row(record)} for folder, record in records]
        click.echo(json.dumps({"schema_version": 1, "runs": rows}, indent=2, ensure_ascii=False))
        return
    if not records:
        say(f"no finished run in {root}. Make one: mhe eval --model tiny-llava --task phantom-vqa")
        return
    headers = ["task", "model", "seed", "n", "status", "primary", "value", "finished", "folder"]
    lines = []
    for folder, record in records:
        row = _run_row(record)
        value = row["value"]
        shown = f"{value:.3f}" if isinstance(value, float) else "—"
        lines.append([str({**row, "value": shown, "folder": folder}[header]) for header in headers])
    click.echo(table(headers, lines, right={2, 3, 6}))


def _run_row(record: RunRecord) -> dict[str, object]:
    primary: Sequence[float | None] = [
        score.value for metric in record.metrics for score in metric.values if score.name == record.task.primary
    ]
    return {
        "task": record.task.name,
        "model": record.model.name,
        "seed": record.seed,
        "n": record.counts.answered,
        "status": record.status,
        "primary": record.task.primary,
        "value": primary[0] if primary else None,
        "finished": record.finished,
    }
