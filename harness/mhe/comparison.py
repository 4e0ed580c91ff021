"""Runs side by side: differences with intervals, paired tests, who wins where, and what the test set can show at all.

Every side is compared with the first over the samples that all runs answered. Rules that are ours:

- *Draws.* One set of bootstrap draws serves every side, value and difference: an interval of a difference is of
  paired samples, and much narrower than the two intervals side by side suggest.
- *Seeds.* A side's value is the mean over its seeds, in every resample too. Its per-sample values, and the statistics
  that the randomisation test swaps, are means over seeds; for a corpus value (BLEU) the tested difference is then that
  of the mean statistics, next to the one shown.
- *Holm* counts every comparison shown: each value of each side but the first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mhe.agreement import agreement_of_texts
from mhe.boards.verification import MetricShelf
from mhe.compared_runs import scored_runs, shared_samples, sides_of, texts_of
from mhe.compared_values import Answer, Block
from mhe.errors import UnknownNameError
from mhe.statistics import holm

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from mhe.agreement import TextAgreement
    from mhe.catalog import Catalog
    from mhe.compared_runs import Pair, Side
    from mhe.compared_values import ComparedValue
    from mhe.scored_folders import ScoredFolder


@dataclass(frozen=True, slots=True)
class RunAgreement:
    """How far a run's texts are those of a run of the first side: of the same seed where that has several."""

    side: str
    first: Path
    second: Path
    """The two folders."""
    texts: TextAgreement


@dataclass(frozen=True, slots=True)
class Comparison:
    """Everything that `mhe compare` shows."""

    first: ScoredFolder
    """The first one given; what it answered is what all did."""
    sides: tuple[Side, ...]
    samples: int
    """Compared: answered by every run."""
    of: int
    units: int
    """What is resampled and swapped: images, mostly."""
    provisional: bool
    comparisons: int
    """Over how many Holm corrected."""
    left_out: tuple[str, ...]
    """Metrics that not every run has."""
    values: tuple[ComparedValue, ...]
    agreements: tuple[RunAgreement, ...]
    """None of runs that keep no texts."""


def compare(
    catalog: Catalog,
    runs: Sequence[ScoredFolder],
    *,
    metrics: Sequence[str] = (),
    profiles: Sequence[str] = (),
    groups: Sequence[str] = (),
    samples: int = 5,
    pool: bool = True,
) -> Comparison:
    """Compare runs with the first one given.

    `metrics` are values to show (all that the runs share where empty), `groups` those to count by (all of the task),
    `samples` how many of the samples that changed most to list for each value. Raises what `scored_runs`, `sides_of`
    and `shared_samples` raise, `UnknownNameError` for a group, and `UserError` for a metric that is not installed.
    """
    found, pairs = scored_runs(runs, metrics=metrics, profiles=profiles)
    sides = sides_of(found, pool=pool)
    shared = shared_samples([run for side in sides for run in side.runs])
    for group in groups:
        if group not in shared.groups:
            raise UnknownNameError("group", group, shared.groups, f"(of {runs[0].groups_of})")
    shared = replace(shared, groups={name: shared.groups[name] for name in groups or shared.groups})
    shelf = MetricShelf(catalog)
    values = [value for pair in pairs for value in Block(pair, sides, shared, shelf).compared(metrics, samples)]
    order = list(metrics) or ([runs[0].primary] if runs[0].primary else [])
    values.sort(key=lambda value: order.index(value.name) if value.name in order else len(order))
    values = _answered(_corrected(values), sides)
    return Comparison(
        first=runs[0],
        sides=tuple(sides),
        samples=len(shared.ids),
        of=shared.of,
        units=len(set(shared.units)),
        provisional=any(run.status != "complete" for run in runs),
        comparisons=sum(d.p_value is not None for value in values for d in value.differences),
        left_out=() if metrics or profiles else _left_out(runs, pairs),
        values=tuple(values),
        agreements=_agreements(sides, shared.ids),
    )


def _agreements(sides: Sequence[Side], ids: Collection[str]) -> tuple[RunAgreement, ...]:
    first = sides[0].runs
    by_seed = {run.of.seed_shown: run for run in first}
    wanted = set(ids)
    known = {run.of.folder: texts_of(run.of.folder, wanted) for run in first}
    found = []
    for side in sides[1:]:
        for run in side.runs:
            partner = first[0] if len(first) == 1 else by_seed.get(run.of.seed_shown)
            texts = texts_of(run.of.folder, wanted)
            if partner is not None and texts and known[partner.of.folder]:
                agreement = agreement_of_texts(known[partner.of.folder], texts)
                found.append(RunAgreement(side.name, partner.of.folder, run.of.folder, agreement))
    return tuple(found)


def _left_out(runs: Sequence[ScoredFolder], pairs: Sequence[Pair]) -> tuple[str, ...]:
    there = {(metric.metric, metric.profile) for run in runs for metric in run.metrics}
    return tuple(f"{metric} ({profile})" for metric, profile in sorted(there - set(pairs)))


def _corrected(values: Sequence[ComparedValue]) -> list[ComparedValue]:
    tested = [d.p_value for value in values for d in value.differences if d.p_value is not None]
    corrected = iter(holm(tested))
    return [
        replace(
            value,
            differences=tuple(
                d if d.p_value is None else replace(d, p_holm=next(corrected)) for d in value.differences
            ),
        )
        for value in values
    ]


def _answered(values: Sequence[ComparedValue], sides: Sequence[Side]) -> list[ComparedValue]:
    """With what each run of the two sides said on the samples that changed most."""
    wanted = {sample.id for value in values for d in value.differences for sample in d.changed}
    texts = {
        side.name: [(run.of.seed_shown, texts_of(run.of.folder, wanted) if wanted else {}) for run in side.runs]
        for side in sides
    }

    def answers(place: str, sample: str) -> tuple[Answer, ...]:
        return tuple(
            Answer(name, seed, found[sample])
            for name in (sides[0].name, place)
            for seed, found in texts[name]
            if sample in found
        )

    return [
        replace(
            value,
            differences=tuple(
                replace(d, changed=tuple(replace(sample, answers=answers(d.side, sample.id)) for sample in d.changed))
                for d in value.differences
            ),
        )
        for value in values
    ]
