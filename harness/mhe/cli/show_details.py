"""Everything about one registered thing, as a mapping for `--json` and as text for people."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from mhe.cli.option_fields import option_fields
from mhe.cli.readings import direction_text, range_text
from mhe.cli.tables import table
from mhe.errors import UnknownNameError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.catalog import Catalog
    from mhe.values import MetricValue, Preset

Details = dict[str, object]
README = "README.md"
WORD = 40
"""Items of a list that are longer stand on lines of their own."""


def details(catalog: Catalog, kind: str, name: str) -> Details:
    """All there is to say of a thing; `kind` is the noun. Raises `UnknownNameError`, `MissingExtraError`."""
    if kind == "task":
        return _task(catalog, name)
    if kind == "model":
        return _model(catalog, name)
    if kind == "pipeline":
        return _pipeline(catalog, name)
    if kind == "plugin":
        return _plugin(catalog, name)
    return _provided(catalog, kind, name)


def _task(catalog: Catalog, name: str) -> Details:
    task = catalog.task(name)
    folder = catalog.task_folders.get(name)
    if folder is None:
        folder = Path(name) if Path(name).is_dir() else Path(name).parent
    readme = folder / README
    return {
        **task.model_dump(mode="json", exclude={"schema_version"}),
        "file": str(folder / "task.yaml"),
        "readme": str(readme) if readme.is_file() else None,
        **_origin(catalog, "task", name),
    }


def _model(catalog: Catalog, name: str) -> Details:
    from mhe.checkpoints import find_checkpoint
    from mhe.model_names import resolve_location

    spec = catalog.models.get(name) or find_checkpoint(name)
    if spec is None:
        from mhe.checkpoints import list_checkpoints
        from mhe.model_names import refuse_pipeline_not_run

        refuse_pipeline_not_run(name, catalog)
        raise UnknownNameError("model", name, [*catalog.models, *list_checkpoints()], hint="See: mhe show models")
    found = spec.model_dump(mode="json", exclude={"schema_version"})
    return {**found, "location": resolve_location(spec.location), **_origin(catalog, "model", name)}


def _pipeline(catalog: Catalog, name: str) -> Details:
    from mhe.pipeline_runs import find_pipeline

    if name not in catalog.pipelines:
        raise UnknownNameError("pipeline", name, catalog.pipelines, hint="See: mhe show pipelines")
    spec = find_pipeline(name, catalog)
    found = spec.model_dump(mode="json", exclude={"schema_version"})
    return {**found, "file": str(catalog.pipelines[name]), **_origin(catalog, "pipeline", name)}


def _plugin(catalog: Catalog, name: str) -> Details:
    catalog.check_all()
    found = [plugin for plugin in catalog.plugins if plugin.name == name]
    if not found:
        raise UnknownNameError("plugin", name, [plugin.name for plugin in catalog.plugins])
    problems = [problem for plugin in found for problem in plugin.problems]
    return {
        "name": name,
        "distributions": [f"{plugin.distribution} {plugin.version}".strip() for plugin in found],
        "place": found[0].place,
        "working": all(plugin.is_working for plugin in found),
        "hooks": [hook for plugin in found for hook in plugin.hooks],
        "problems": [str(problem) for problem in problems],
        "details": "\n".join(problem.details for problem in problems if problem.details),
    }


def _provided(catalog: Catalog, kind: str, name: str) -> Details:
    load = {
        "backend": catalog.backend,
        "metric": catalog.metric,
        "profile": catalog.profile,
        "tagger": catalog.tagger,
        "recipe": catalog.recipe,
        "reader": catalog.reader,
        "engine": catalog.engine,
    }[kind]
    thing: object = load(name)
    providers: Mapping[str, object] = getattr(catalog, f"{kind}s")
    provider = providers[name]
    found: Details = {
        "name": name,
        "summary": getattr(provider, "summary", ""),
        "extra": getattr(provider, "extra", None),
        **_origin(catalog, kind, name),
    }
    for field in ("version", "kind", "source", "defects", "is_default", "usual_metrics"):
        value = getattr(thing, field, None)
        if value is not None and not callable(value):
            found[field] = list(value) if isinstance(value, list | tuple) else value
    if kind == "metric":
        found.update(_metric(thing))
    options = getattr(thing, "Options", None)
    if isinstance(options, type) and issubclass(options, BaseModel):
        found["options"] = [field.to_json() for field in option_fields(options)]
        found.update(_presets(options))
    found["about"] = _about(thing)
    return found


def _presets(options: type[BaseModel]) -> Details:
    """What `--set preset=NAME` stands for, of a recipe that has presets."""
    presets: Mapping[str, Preset] = getattr(options, "presets", {})
    listed = [
        {"name": name, "source": preset.source, "values": dict(preset.values), "notes": preset.notes or None}
        for name, preset in sorted(presets.items())
    ]
    return {"presets": listed} if listed else {}


def _metric(factory: object) -> Details:
    """Declarations of a metric, which may depend on its options: with their defaults, where those are enough."""
    from mhe.digests import cache_dir
    from mhe.protocols import MetricContext

    metric = factory
    options = getattr(factory, "Options", None)
    if isinstance(options, type) and callable(factory):
        try:
            metric = factory(options(), MetricContext(cache_dir=cache_dir()))
        except ValidationError:
            metric = factory
    values: Sequence[MetricValue] = getattr(metric, "values", ())
    if isinstance(values, property):
        values = ()
    return {
        "kinds": sorted(getattr(metric, "kinds", ())),
        "requires": sorted(getattr(metric, "requires", ())),
        "columns": list(getattr(metric, "columns", ())),
        "values": [
            {
                "name": value.name,
                "summary": value.summary,
                "floor": value.floor,
                "ceiling": value.ceiling,
                "higher_is_better": value.higher_is_better,
            }
            for value in values
        ],
    }


def _origin(catalog: Catalog, kind: str, name: str) -> Details:
    owner = catalog.owner_of(kind, name)
    return {"plugin": f"{owner.name} ({owner.distribution} {owner.version})"} if owner else {}


def _about(thing: object) -> str:
    """The docstring of a class and of its module: where a method is explained."""
    kind = thing if isinstance(thing, type) else type(thing)
    module = inspect.getmodule(kind)
    texts = [inspect.getdoc(module) if module is not None else None, kind.__doc__ and inspect.cleandoc(kind.__doc__)]
    return "\n\n".join(text for text in texts if text)


# ---------------------------------------------------------------- text


def detail_text(found: Details) -> str:
    """Fields under each other, then options and values as tables, then the docstring."""
    tables = {"options": _options_table, "values": _values_table, "presets": _presets_text}
    lines: list[str] = []
    for key, value in found.items():
        is_rows = key in tables and isinstance(value, list) and all(isinstance(row, dict) for row in value)
        if is_rows or key in ("about", "details") or value in (None, "", [], {}, ()):
            continue
        lines += _field(key, value, 0)
    parts = ["\n".join(lines)]
    for key, render in tables.items():
        rows = found.get(key)
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            parts.append(render(rows))
    parts += [str(found[key]).rstrip() for key in ("about", "details") if found.get(key)]
    return "\n\n".join(parts)


def _field(key: str, value: object, depth: int) -> list[str]:
    indent = "  " * depth
    label = f"{indent}{key.replace('_', ' ')}:"
    if isinstance(value, dict):
        inner = [
            line for name, item in value.items() if item is not None for line in _field(str(name), item, depth + 1)
        ]
        return [label, *inner] if inner else [f"{label} (default)"]
    if isinstance(value, list):
        return _list_field(label, value, depth)
    if isinstance(value, str) and "\n" in value.strip():
        return [label, *(f"{indent}  {line}" for line in value.strip().splitlines())]
    return [f"{label} {('yes' if value else 'no') if isinstance(value, bool) else value}"]


def _list_field(label: str, items: list[object], depth: int) -> list[str]:
    indent = "  " * (depth + 1)
    if not any(isinstance(item, dict) or len(str(item)) > WORD for item in items):
        return [f"{label} {', '.join(str(item) for item in items) or 'none'}"]
    lines = [label]
    for item in items:
        fields = item.items() if isinstance(item, dict) else []
        inner = [line for name, part in fields for line in _field(str(name), part, depth + 2)] or [str(item)]
        lines += [f"{indent}- {inner[0].strip()}", *inner[1:]]
    return lines


def _options_table(rows: Sequence[Mapping[str, object]]) -> str:
    cells = [
        [
            str(row["name"]),
            str(row["type"]),
            str(row["default"]),
            f"{row['summary']} (answer-neutral)".strip() if row["answer_neutral"] else str(row["summary"]),
        ]
        for row in rows
    ]
    return table(["option", "type", "default", ""], cells)


def _presets_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Each with its options as `--set` takes them."""
    lines = []
    for row in rows:
        values = row["values"]
        assert isinstance(values, dict)
        lines += ["", f"preset={row['name']}: {row['source']}"]
        lines += [f"  {name}={json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
        lines += [f"  {row['notes']}"] if row["notes"] else []
    return "\n".join(lines[1:])


def _values_table(rows: Sequence[Mapping[str, object]]) -> str:
    cells = [
        [
            str(row["name"]),
            _range(row),
            direction_text(_direction(row)),
            str(row["summary"]),
        ]
        for row in rows
    ]
    return table(["value", "range", "direction", ""], cells)


def _direction(row: Mapping[str, object]) -> bool | None:
    found = row["higher_is_better"]
    return None if found is None else bool(found)


def _range(row: Mapping[str, object]) -> str:
    floor, ceiling = (bound if isinstance(bound, float | int) else None for bound in (row["floor"], row["ceiling"]))
    return range_text(floor, ceiling, _direction(row), lowest="-inf", highest="inf")
