"""What `mhe tune --dry-run` shows: of one step its modules and notes, of a pipeline a table of all its steps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import click

from mhe.cli.main import say
from mhe.cli.run_tables import readable_bytes
from mhe.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mhe.catalog import Catalog
    from mhe.documents.pipeline import PipelineSpec
    from mhe.pipelines import Step, StepPlace, StepPlan
    from mhe.previews import StepPreview

HEADERS = ("step", "recipe", "from", "parameters", "trained", "steps", "memory", "checkpoint")


def announce(plan: StepPlan) -> None:
    """Say what is trained on, and what the data guard found."""
    data = plan.data
    if data is None:
        return
    say(f"training on {len(data.train):,} pairs, validating on {len(data.validation):,}.")
    if data.guard.dropped_pairs:
        say(f"{data.guard.dropped_pairs:,} training pair(s) dropped, because they repeat an evaluated pair.")
    if data.guard.shared_images:
        say(
            f"warning: {data.guard.shared_images:,} image(s) of the training data are in the evaluated split as well; "
            "the task declares it, and boards show it."
        )


def plan_text(numbers: Mapping[str, float]) -> str:
    """What is trained, a line a module."""
    rows = []
    for name, total in numbers.items():
        module, _, what = name.rpartition(" ")
        if what == "parameters" and module:
            rows.append(f"  {module}: {numbers.get(f'{module} trainable', 0):,.0f} of {total:,.0f} parameters trained")
    if "cache bytes" in numbers:
        rows.append(f"  kept of the teacher on disk: {readable_bytes(numbers['cache bytes'])} more")
    total, trained = numbers.get("parameters", 0.0), numbers.get("trainable", 0.0)
    rows.append(
        f"  together: {trained:,.0f} of {total:,.0f} ({trained / total if total else 0:.3%}), "
        f"{numbers.get('steps', 0):,.0f} steps"
    )
    return "\n".join(rows)


def show_step_previews(catalog: Catalog, steps: Sequence[Step], place: StepPlace, *, as_json: bool) -> None:
    """Steps that do not depend on each other, such as one for each seed."""
    from mhe.previews import preview_alone

    documents = []
    for step in steps:
        numbers: dict[str, float] = {}
        found = preview_alone(catalog, step, replace(place, report=_watcher(numbers)))
        documents.append(_document(found, numbers))
        if as_json:
            continue
        announce(found.plan)
        if numbers:
            say(plan_text(numbers))
        for note in _lines(found):
            click.echo(f"{step.name}@{step.seed}: {note}")
    if as_json:
        _echo_json(documents)


def show_pipeline_previews(
    catalog: Catalog, spec: PipelineSpec, place: StepPlace, seeds: Iterable[int], until: str | None, *, as_json: bool
) -> None:
    """The whole plan of a pipeline. A step that cannot be planned is an error, after those before it were shown."""
    from mhe.previews import preview_pipeline

    documents: list[dict[str, object]] = []
    for seed in seeds:
        rows: list[list[str]] = []
        lines: list[str] = []
        seen: dict[str, float] = {}
        watched = replace(place, report=_watcher(seen))
        try:
            for found in preview_pipeline(catalog, spec, watched, seed=seed, until=until):
                documents.append({"step": _own_name(spec, found), **_document(found, seen)})
                rows.append(_row(spec, found, seen))
                lines += [f"{_own_name(spec, found)}: {line}" for line in _lines(found)]
                seen.clear()
        finally:
            if not as_json and rows:
                title = f"{spec.name}@{seed}, from {spec.base}: a plan, nothing is trained"
                click.echo(f"{title}\n\n{table(HEADERS, rows, right={3, 4, 5, 6})}\n")
                click.echo("\n".join(lines))
    if as_json:
        _echo_json(documents)


def _watcher(seen: dict[str, float]) -> Callable[[str, Mapping[str, float]], None]:
    def report(phase: str, numbers: Mapping[str, float]) -> None:
        if phase == "plan":
            seen.update(numbers)

    return report


def _own_name(spec: PipelineSpec, found: StepPreview) -> str:
    """The step's name inside its pipeline."""
    name = found.plan.step.name
    return spec.steps[-1].name if name == spec.name else name.removeprefix(f"{spec.name}.")


def _row(spec: PipelineSpec, found: StepPreview, numbers: Mapping[str, float]) -> list[str]:
    step = found.plan.step
    made = found.result if found.finished is None else found.finished[1]
    assert made is not None
    memory = None if found.result is None else found.result.needed_bytes
    steps = numbers.get("steps")
    return [
        _own_name(spec, found),
        step.recipe,
        step.base.name.removeprefix(f"{spec.name}."),
        f"{made.parameters:,}",
        f"{made.trainable_parameters:,}",
        "—" if not steps else f"{steps:,.0f}",
        readable_bytes(memory),
        f"{step.name}@{step.seed}" + (" (finished)" if found.finished else ""),
    ]


def _lines(found: StepPreview) -> list[str]:
    if found.finished is not None:
        return [f"finished already as {found.finished[1].name}@{found.finished[1].seed}", *found.remarks]
    assert found.result is not None
    needs = [f"needs the class {found.result.needs_class}"] if found.result.needs_class else []
    return [*found.result.notes, *needs, *found.remarks]


def _document(found: StepPreview, numbers: Mapping[str, float]) -> dict[str, object]:
    plan, data = found.plan, found.plan.data
    made = found.result if found.finished is None else found.finished[1]
    assert made is not None
    modules = (
        {name: {"total": total, "trainable": own} for name, (total, own) in found.result.modules.items()}
        if found.result is not None
        else {}
    )
    return {
        "name": plan.step.name,
        "seed": plan.step.seed,
        "recipe": plan.step.recipe,
        "base": plan.step.base.name,
        "status": "planned" if found.finished is None else "finished",
        "step_digest": found.digest,
        "parameters": made.parameters,
        "trainable_parameters": made.trainable_parameters,
        "modules": modules,
        "steps": numbers.get("steps"),
        "needed_bytes": None if found.result is None else found.result.needed_bytes,
        "needs_class": made.needs_class,
        "train": len(data.train) if data else 0,
        "validation": len(data.validation) if data else 0,
        "dropped_pairs": data.guard.dropped_pairs if data else 0,
        "shared_images": data.guard.shared_images if data else 0,
        "notes": list(made.notes),
        "remarks": list(found.remarks),
    }


def _echo_json(documents: Sequence[Mapping[str, object]]) -> None:
    document = {"schema_version": 1, "dry_run": True, "steps": documents}
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
