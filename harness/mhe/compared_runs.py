"""Which runs may stand side by side, and over which samples: everything `mhe compare` checks before it computes.

Runs of one model with different seeds are one side. Nothing is compared that differs in anything but the model: task
or references, samples, profile, metric and their versions must be equal, or it is refused with what differs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.boards.run_scores import scores_of_run
from mhe.errors import DocumentError, UnknownNameError, UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from mhe.boards.entries import EntryMetric, EntryScores
    from mhe.documents.run import MetricRecord
    from mhe.scored_folders import ScoredFolder

Pair = tuple[str, str]
"""Metric and profile."""


@dataclass(frozen=True, slots=True)
class ScoredRun:
    """One run with the statistics that are compared."""

    of: ScoredFolder
    scores: EntryScores

    def entry(self, pair: Pair) -> EntryMetric:
        """Its statistics of a metric under a profile; only pairs that `scored_runs` returned are asked for."""
        found = self.scores.of(*pair)
        assert found is not None, f"{pair} was not read"
        return found


@dataclass(frozen=True, slots=True)
class Side:
    """One model, with a run for each of its seeds."""

    name: str
    """`A`, `B`, … in the order given."""
    model: str
    runs: tuple[ScoredRun, ...]


@dataclass(frozen=True, slots=True)
class Shared:
    """The samples that every run answered, in the order of the first."""

    ids: tuple[str, ...]
    units: tuple[str, ...]
    groups: Mapping[str, tuple[str | None, ...]]
    of: int
    """Samples of the task's split, answered or not."""

    def rows(self, run: ScoredRun) -> list[int]:
        """Where the shared samples stand in a run's statistics."""
        place = {sample: row for row, sample in enumerate(run.scores.samples.ids)}
        return [place[sample] for sample in self.ids]


def scored_runs(
    runs: Sequence[ScoredFolder], *, metrics: Collection[str] = (), profiles: Collection[str] = ()
) -> tuple[list[ScoredRun], list[Pair]]:
    """The runs with their statistics of every metric and profile that all of them have, and those pairs.

    `metrics` are names of metric values (`accuracy.closed`); with them only the metrics that have these are looked
    at. Raises `UserError` with everything in which the runs differ and must not, for fewer than two runs, for a run
    given twice and for one without scores; `UnknownNameError` for a value or profile no run has; `DocumentError`
    for score files that are damaged.
    """
    if len(runs) < 2:
        raise UserError("one run cannot be compared: name two or more folders. See: mhe show runs")
    problems = _twice(runs) + _differences(runs)
    if problems:
        raise UserError("\n".join(["these runs cannot be compared:", *(f"  {problem}" for problem in problems)]))
    for run in runs:
        if not any(metric.file for metric in run.metrics):
            raise UserError(
                f"{run.folder}: no metric of this run has a value. Score it again with the same `mhe eval`, and "
                "--metrics."
            )
    chosen = [_chosen(run, metrics, profiles) for run in runs]
    _check_names(runs, chosen, metrics, profiles)
    pairs = [pair for pair in chosen[0] if all(pair in found for found in chosen[1:])]
    problems = _metric_problems(runs, chosen, pairs)
    if problems:
        raise UserError("\n".join(["these runs cannot be compared:", *(f"  {problem}" for problem in problems)]))
    found = [
        ScoredRun(run, scores_of_run(run.folder, [metrics_of[pair] for pair in pairs]))
        for run, metrics_of in zip(runs, chosen, strict=True)
    ]
    return found, pairs


def sides_of(runs: Sequence[ScoredRun], *, pool: bool = True) -> list[Side]:
    """The sides, in the order in which their first run is given.

    Runs are of one side where model, weights, backend, its options and generation are equal and only seeds differ;
    for checkpoints the training seed may differ, and the weights with it. Where a seed would stand twice in a side
    (a checkpoint trained again), each of its runs is a side of its own. Raises `UserError` where one side is left.
    """
    grouped: dict[str, list[ScoredRun]] = {}
    for number, run in enumerate(runs):
        grouped.setdefault(run.of.identity if pool else str(number), []).append(run)
    members: list[list[ScoredRun]] = []
    for group in grouped.values():
        is_pooled = len({(run.of.training_seed, run.of.seed) for run in group}) == len(group)
        members += [group] if is_pooled else [[run] for run in group]
    members.sort(key=lambda group: runs.index(group[0]))
    if len(members) < 2:
        raise UserError(
            f"all {len(runs)} runs are of {runs[0].of.model} with different seeds, which is one side. Name "
            "runs of another model, or compare the seeds with each other: --separate"
        )
    return [Side(_letter(place), _label(group), tuple(group)) for place, group in enumerate(members)]


def shared_samples(runs: Sequence[ScoredRun]) -> Shared:
    """The samples that all runs answered. Raises `UserError` where there is none."""
    first = runs[0].scores.samples
    common = set(first.ids).intersection(*(run.scores.samples.ids for run in runs[1:]))
    kept = [row for row, sample in enumerate(first.ids) if sample in common]
    if not kept:
        raise UserError("the runs share no answered sample, so there is nothing to compare.")
    return Shared(
        ids=tuple(first.ids[row] for row in kept),
        units=tuple(first.units[row] for row in kept),
        groups={group: tuple(labels[row] for row in kept) for group, labels in first.groups.items()},
        of=runs[0].of.samples,
    )


def texts_of(folder: Path, ids: Collection[str]) -> dict[str, str]:
    """What the model answered, by sample id, from `samples.jsonl`; empty where the run keeps no such file.

    Raises `DocumentError` for a damaged line.
    """
    path = folder / "samples.jsonl"
    if not path.is_file():
        return {}
    found: dict[str, str] = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                if content["id"] in ids and content.get("text") is not None:
                    found[content["id"]] = str(content["text"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DocumentError(str(path), [f"line {number}: damaged ({type(error).__name__}: {error})"]) from None
    return found


# ---------------------------------------------------------------- sides


def _letter(place: int) -> str:
    name = ""
    while place >= 0:
        place, rest = divmod(place, 26)
        name = chr(ord("A") + rest) + name
        place -= 1
    return name


def _label(runs: Sequence[ScoredRun]) -> str:
    model, seed = runs[0].of.model, runs[0].of.training_seed
    return model if seed is None or len(runs) > 1 else f"{model}@{seed}"


# ---------------------------------------------------------------- refusals


def _twice(runs: Sequence[ScoredFolder]) -> list[str]:
    keys = [run.key for run in runs]
    return [f"{run.folder}: given twice" for place, run in enumerate(runs) if run.key in keys[:place]]


def _differences(runs: Sequence[ScoredFolder]) -> list[str]:
    """The first thing in which each run differs from the first one: the others mostly follow from it."""
    first = runs[0]
    problems = []
    for run in runs[1:]:
        for what, value in first.basis.items():
            if run.basis.get(what) != value:
                problems.append(f"{what}: {value} in {first.folder}, {run.basis.get(what)} in {run.folder}")
                break
    return problems


def _chosen(record: ScoredFolder, values: Collection[str], profiles: Collection[str]) -> dict[Pair, MetricRecord]:
    return {
        (metric.metric, metric.profile): metric
        for metric in record.metrics
        if metric.file is not None
        and (not values or any(value.name in values for value in metric.values))
        and (not profiles or metric.profile in profiles)
    }


def _check_names(
    runs: Sequence[ScoredFolder],
    chosen: Sequence[Mapping[Pair, MetricRecord]],
    values: Collection[str],
    profiles: Collection[str],
) -> None:
    """A name that a run does not have is a mistake in the call, not a difference of the runs."""
    for run, found in zip(runs, chosen, strict=True):
        has_profiles = {metric.profile for metric in run.metrics}
        has_values = {value.name for metric in run.metrics for value in metric.values}
        for known, asked, kind in ((has_profiles, profiles, "profile"), (has_values, values, "metric value")):
            for name in asked:
                if name not in known:
                    hint = f"(in {run.folder}; {_again(run)} with --metrics or --profile adds one without the model)"
                    raise UnknownNameError(kind, name, known, hint)
        for name in values:
            if not any(value.name == name for metric in found.values() for value in metric.values):
                reasons = {v.reason for m in run.metrics for v in m.values if v.name == name and v.reason}
                raise UserError(
                    f"{run.folder}: {name} was not computed: {'; '.join(sorted(reasons)) or 'no statistics'}"
                )


def _metric_problems(
    runs: Sequence[ScoredFolder], chosen: Sequence[Mapping[Pair, MetricRecord]], pairs: Sequence[Pair]
) -> list[str]:
    problems = []
    first, place = chosen[0], runs[0].folder
    for name in dict.fromkeys(metric for metric, _ in first):
        if any(pair[0] == name for pair in pairs):
            continue
        for found, run in zip(chosen[1:], runs[1:], strict=True):
            here, there = ({profile for metric, profile in side if metric == name} for side in (first, found))
            if there and not here & there:
                problems.append(
                    f"profile: {name} is scored under {', '.join(sorted(here))} in {place}, under "
                    f"{', '.join(sorted(there))} in {run.folder}: {_again(run)} with --profile scores again without "
                    "the model"
                )
    for pair in pairs:
        for found, run in zip(chosen[1:], runs[1:], strict=True):
            ours, theirs = first[pair], found[pair]
            problems += [
                f"{what} of {pair[0]} ({pair[1]}): {mine} in {place}, {other} in {run.folder}"
                for what, mine, other in (
                    ("metric version", ours.metric_version, theirs.metric_version),
                    ("profile version", ours.profile_version, theirs.profile_version),
                    ("options", ours.options, theirs.options),
                    ("resources", ours.resources, theirs.resources),
                )
                if mine != other
            ]
    if not pairs and not problems:
        problems.append(f"no metric in common; {_again(runs[0])} with --metrics adds one without the model:")
        problems += [
            f"  {run.folder}: {', '.join(f'{metric} ({profile})' for metric, profile in found) or 'none asked for'}"
            for found, run in zip(chosen, runs, strict=True)
        ]
    return problems


def _again(run: ScoredFolder) -> str:
    return f"the same `{run.basis['made by']}`"
