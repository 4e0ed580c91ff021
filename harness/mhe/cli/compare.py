"""`mhe compare`: runs side by side, with intervals, paired tests and the samples that changed most."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.completion import complete_profile
from mhe.cli.main import catalog_of
from mhe.cli.readings import direction_text
from mhe.cli.run_tables import PHANTOM_NOTE, number
from mhe.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.compared_runs import Side
    from mhe.compared_values import ComparedValue, Difference, WinCount
    from mhe.comparison import Comparison, RunAgreement

PARTIAL = 3
LONGEST_TEXT = 60
VALUES_ABREAST = 3
"""Values in one table of groups: what a terminal is wide enough for."""


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
    """Compare run folders, or folders of `mhe score --out`, with the first one.

    Runs of one model that differ in seeds alone (also those of a checkpoint NAME@SEED) are pooled into one side, in
    any order: its values are means over seeds, with their standard deviation. Predictions scored by `mhe score` carry
    no seed, and each folder of them is a side.

    Shows each value with its 95 % interval, differences with intervals of the paired bootstrap, p-values of the
    paired randomisation test corrected by Holm over everything shown, wins and losses by group, the samples that
    changed most, and the smallest difference these samples can show (2.8 standard errors: found at 5 % with a
    power of 80 %). Groups are shown for the values asked for with --metric, else for the first of every metric; the
    samples that changed for the values asked for, else for the first. Where runs keep their texts, it is told how many
    are equal, and the first word that differs. Runs of another task, data, references, profile or version are refused.

    Exit code: 0, or 3 where a run is partial: it is compared over the samples that every run answered.
    """
    from mhe.comparison import compare as compare_runs
    from mhe.scored_folders import read_scored_folder

    read = [read_scored_folder(place) for place in runs]
    found = compare_runs(
        catalog_of(ctx), read, metrics=metrics, profiles=profiles, groups=groups, samples=samples, pool=not separate
    )
    as_text = _text(found, groups, samples, asked=bool(metrics)) if not as_json else ""
    click.echo(json.dumps(_document(found, samples), indent=2, ensure_ascii=False) if as_json else as_text)
    return PARTIAL if found.provisional else 0


def _document(found: Comparison, samples: int) -> dict[str, object]:
    return {
        "schema_version": 1,
        **found.first.about,
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
                    {"folder": str(run.of.folder), "run_key": run.of.key, "seed": run.of.seed}
                    | {"training_seed": run.of.training_seed, "status": run.of.status}
                    for run in side.runs
                ],
            }
            for side in found.sides
        ],
        "values": [asdict(value) for value in found.values],
        "agreement": [
            {
                "side": agreement.side,
                "first": str(agreement.first),
                "second": str(agreement.second),
                "samples": agreement.texts.samples,
                "equal": agreement.texts.equal,
                "share": agreement.texts.share,
                "differences": [
                    {"sample": sample, **asdict(difference)}
                    for sample, difference in list(agreement.texts.differences.items())[:samples]
                ],
            }
            for agreement in found.agreements
        ],
    }


# ---------------------------------------------------------------- for people


def _text(found: Comparison, groups: Sequence[str], samples: int, *, asked: bool) -> str:
    main = list(found.values) if asked else _first_of_each_metric(found.values)
    parts = [_head(found), _values_table(found), _differences_table(found), _notes(found)]
    abreast = [main[start : start + VALUES_ABREAST] for start in range(0, len(main), VALUES_ABREAST)]
    parts += [_groups_table(found, some, place, groups) for place in range(len(found.sides) - 1) for some in abreast]
    for value in main if asked else main[:1]:
        parts += [_changed_table(_label(found, value), value, difference) for difference in value.differences]
    parts += [_agreement_text(agreement, found.sides[0].name, samples) for agreement in found.agreements]
    if not asked and len(found.values) > 1:
        parts.append("Groups and changed samples of another value: --metric NAME; of all of them: --json.")
    if found.first.is_phantom:
        parts.append(PHANTOM_NOTE)
    return "\n\n".join(part for part in parts if part) + "\n"


def _first_of_each_metric(values: Sequence[ComparedValue]) -> list[ComparedValue]:
    """The first shown of every metric and profile: the task's own first, then each metric's most telling one."""
    found: dict[tuple[str, str], ComparedValue] = {}
    for value in values:
        found.setdefault((value.metric, value.profile), value)
    return list(found.values())


def _head(found: Comparison) -> str:
    units = f"{found.samples} of {found.of} samples compared, in {found.units} units (images, mostly)"
    lines = [f"{found.first.title}: {units}"]
    if found.provisional:
        lines.append("PARTIAL: a run has samples without an answer. Provisional, over the samples that all answered.")
    lines += [_side_line(side) for side in found.sides]
    if found.left_out:
        lines.append(f"Not computed in every run, and left out: {', '.join(found.left_out)}")
    return "\n".join(lines)


def _side_line(side: Side) -> str:
    folders = ", ".join(str(run.of.folder) for run in side.runs)
    pooled = f", mean of {len(side.runs)} seeds" if len(side.runs) > 1 else ""
    partial = ", partial" if any(run.of.status != "complete" for run in side.runs) else ""
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
            "" if value.higher_is_better else direction_text(value.higher_is_better),
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


def _groups_table(found: Comparison, values: Sequence[ComparedValue], place: int, groups: Sequence[str]) -> str:
    """A row for each group and label, and two columns for each value."""
    changes = [(value, value.differences[place]) for value in values if value.differences[place].groups]
    names = groups or list(dict.fromkeys(name for _, change in changes for name in change.groups))
    rows = []
    for name in names:
        labels = sorted({label for _, change in changes for label in change.groups.get(name, {})})
        for position, label in enumerate(labels):
            row = [name if position == 0 else "", label]
            for _, change in changes:
                counts = change.groups.get(name, {}).get(label)
                row += [_signed(counts.difference) if counts else "—", _wins(counts)]
            rows.append(row)
    if not rows:
        return ""
    headers = ["group", f"{found.sides[place + 1].name} - {found.sides[0].name}"]
    for value, _ in changes:
        headers += [_label(found, value), "win/lose/tie"]
    return table(headers, rows, right=set(range(2, len(headers), 2)))


def _changed_table(label: str, value: ComparedValue, change: Difference) -> str:
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
    title = f"{label} changed in {change.changed_samples} samples; most in:"
    return f"{title}\n\n{table(headers, rows, right={1, 2})}"


def _agreement_text(agreement: RunAgreement, first: str, samples: int) -> str:
    texts, name = agreement.texts, agreement.side
    title = f"{name} says the same as {first} in {texts.equal} of {texts.samples} samples ({agreement.second})"
    listed = list(texts.differences.items())[:samples]
    if not listed:
        return f"{title}."
    rows = [
        [sample, str(difference.place), _word(difference.first), _word(difference.second)]
        for sample, difference in listed
    ]
    return f"{title}; first word that differs:\n\n{table(['sample', 'word', first, name], rows, right={1})}"


def _word(word: str) -> str:
    return (repr(word) if word.isspace() else _shortened(word)) or "(end)"


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
