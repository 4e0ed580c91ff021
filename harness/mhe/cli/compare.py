"""`mhe compare`: runs side by side, with intervals, paired tests and the samples that changed most."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.completion import complete_profile
from mhe.cli.main import catalog_of
from mhe.cli.run_tables import PHANTOM_NOTE, number
from mhe.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.compared_runs import Side
    from mhe.compared_values import ComparedValue, Difference, WinCount
    from mhe.comparison import Comparison

PARTIAL = 3
LONGEST_TEXT = 60


@click.command("compare", short_help="Compare runs: differences, paired tests, what changed.")
@click.argument("runs", nargs=-1, required=True, metavar="RUN_A RUN_B…", type=click.Path(path_type=Path))
@click.option(
    "--metric", "metrics", multiple=True, help="A value to show, as accuracy.closed; all left out. Repeatable."
)
@click.option("--profile", "profiles", multiple=True, shell_complete=complete_profile, help="A profile. Repeatable.")
@click.option("--by", "groups", multiple=True, metavar="GROUP", help="Count by this group, as modality. Repeatable.")
@click.option(
    "--samples", type=click.IntRange(min=0), default=5, show_default=True, help="Samples that changed most to list."
)
@click.option("--separate", is_flag=True, help="Do not pool the seeds of a model: each run is a side.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def compare(
    ctx: click.Context,
    runs: tuple[Path, ...],
    metrics: tuple[str, ...],
    profiles: tuple[str, ...],
    groups: tuple[str, ...],
    samples: int,
    separate: bool,
    as_json: bool,
) -> int:
    """Compare run folders with the first one; runs of one model with different seeds are pooled.

    Shows each value with its 95 % interval, differences with intervals of the paired bootstrap, p-values of the
    paired randomisation test corrected by Holm over everything shown, wins and losses by group, the samples that
    changed most, and the smallest difference these samples can show (2.8 standard errors: found at 5 % with a
    power of 80 %). Runs of another task, data, profile or version are refused.

    Exit code: 0, or 3 where a run is partial: it is compared over the samples that every run answered.
    """
    from mhe.cli.show_runs import read_run
    from mhe.comparison import compare as compare_runs

    read = [read_run(place) for place in runs]
    found = compare_runs(
        catalog_of(ctx), read, metrics=metrics, profiles=profiles, groups=groups, samples=samples, pool=not separate
    )
    click.echo(json.dumps(_document(found), indent=2, ensure_ascii=False) if as_json else _text(found, groups))
    return PARTIAL if found.provisional else 0


def _document(found: Comparison) -> dict[str, object]:
    return {
        "schema_version": 1,
        "task": found.record.task.model_dump(mode="json"),
        "data": found.record.data.model_dump(mode="json"),
        "provisional": found.provisional,
        "samples": found.samples,
        "samples_of": found.of,
        "units": found.units,
        "comparisons": found.comparisons,
        "left_out": found.left_out,
        "sides": [
            {
                "name": side.name,
                "model": side.model,
                "runs": [
                    {"folder": str(run.folder), "run_key": run.record.run_key, "seed": run.record.seed}
                    | {"training_seed": run.record.model.seed, "status": run.record.status}
                    for run in side.runs
                ],
            }
            for side in found.sides
        ],
        "values": [asdict(value) for value in found.values],
    }


# ---------------------------------------------------------------- for people


def _text(found: Comparison, groups: Sequence[str]) -> str:
    main = found.values[0]
    parts = [_head(found), _values_table(found), _differences_table(found), _notes(found)]
    for difference in main.differences:
        parts += [_groups_table(main, difference, groups), _changed_table(main, difference)]
    if found.record.task.phantom:
        parts.append(PHANTOM_NOTE)
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(found: Comparison) -> str:
    record = found.record
    name = f"{record.task.name} (version {record.task.version}), split {record.data.split}"
    lines = [f"{name}: {found.samples} of {found.of} samples compared, in {found.units} units (images, mostly)"]
    if found.provisional:
        lines.append("PARTIAL: a run has samples without an answer. Provisional, over the samples that all answered.")
    lines += [_side_line(side) for side in found.sides]
    if found.left_out:
        lines.append(f"Not computed in every run, and left out: {', '.join(found.left_out)}")
    return "\n".join(lines)


def _side_line(side: Side) -> str:
    folders = ", ".join(str(run.folder) for run in side.runs)
    pooled = f", mean of {len(side.runs)} seeds" if len(side.runs) > 1 else ""
    partial = ", partial" if any(run.record.status != "complete" for run in side.runs) else ""
    return f"{side.name}  {side.model}{pooled}{partial}: {folders}"


def _label(found: Comparison, value: ComparedValue) -> str:
    """The value's name, with its profile where several are shown."""
    return value.name if len({other.profile for other in found.values}) == 1 else f"{value.name} ({value.profile})"


def _values_table(found: Comparison) -> str:
    rows = [
        [
            _label(found, value) if place == 0 else "",
            side.side,
            number(side.value),
            _interval(side.low, side.high),
            number(side.std) if len(side.seeds) > 1 else "—",
        ]
        for value in found.values
        for place, side in enumerate(value.sides)
    ]
    return table(["metric", "", "value", "95 % interval", "± over seeds"], rows, right={2, 4})


def _differences_table(found: Comparison) -> str:
    rows = [
        [
            _label(found, value) if place == 0 else "",
            f"{change.side} - {found.sides[0].name}",
            _signed(change.difference),
            _interval(change.low, change.high, signed=True),
            _p(change.p_value),
            _p(change.p_holm),
            _wins(change.counts),
            number(change.smallest),
            "" if value.higher_is_better else "lower is better",
        ]
        for value in found.values
        for place, change in enumerate(value.differences)
    ]
    headers = ["metric", "", "difference", "95 % interval", "p", "p (Holm)", "win/lose/tie", "smallest", ""]
    return table(headers, rows, right={2, 4, 5, 7})


def _notes(found: Comparison) -> str:
    return (
        f"p: paired randomisation test; Holm corrects it over the {found.comparisons} comparisons shown. "
        "win/lose/tie: samples.\nsmallest: the smallest difference that these samples can show (5 %, power 80 %)."
    )


def _groups_table(value: ComparedValue, change: Difference, groups: Sequence[str]) -> str:
    rows = [
        [group if place == 0 else "", label, _signed(counts.difference), _wins(counts)]
        for group in (groups or change.groups)
        for place, (label, counts) in enumerate(change.groups.get(group, {}).items())
    ]
    if not rows:
        return ""
    headers = ["group", "", f"{value.name}: {change.side} - {value.sides[0].side}", "win/lose/tie"]
    return table(headers, rows, right={2})


def _changed_table(value: ComparedValue, change: Difference) -> str:
    if not change.changed:
        return ""
    first = value.sides[0].side
    rows = [
        [sample.id, number(sample.first), number(sample.second)]
        + ["; ".join(_shortened(answer.text) for answer in sample.answers if answer.side == side) or "—"
           for side in (first, change.side)]
        for sample in change.changed
    ]  # fmt: skip
    headers = ["sample", first, change.side, f"{first} said", f"{change.side} said"]
    title = f"{value.name} changed in {change.changed_samples} samples; most in:"
    return f"{title}\n\n{table(headers, rows, right={1, 2})}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_TEXT else line[: LONGEST_TEXT - 1] + "…"


def _signed(value: float | None) -> str:
    # Adding 0 makes a negative zero a plain one.
    return "—" if value is None else f"{round(value, 3) + 0.0:+.3f}"


def _interval(low: float | None, high: float | None, *, signed: bool = False) -> str:
    if low is None or high is None:
        return "—"
    show = _signed if signed else number
    return f"{show(low)} to {show(high)}"


def _p(value: float | None) -> str:
    return "—" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _wins(counts: WinCount | None) -> str:
    return "—" if counts is None else f"{counts.wins}/{counts.losses}/{counts.ties}"
