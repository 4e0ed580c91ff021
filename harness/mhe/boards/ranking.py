"""Places on a board: entrants that a paired test cannot tell apart share one.

The best entrant opens a group. Every other one still without a place is tested against it by a paired
randomisation test over the units of the samples both answered, the p-values corrected by Holm; those not told
apart at the 5 % level share its place. The best of the rest opens the next group, whose place is one more than
the number of entrants placed before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.statistics import holm, paired_p_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.protocols import FloatArray
    from mhe.statistics import Aggregate

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Contender:
    """One entrant with its per-sample statistics of the metric that ranks."""

    name: str
    value: float | None
    """What is shown; None is not ranked."""
    ids: tuple[str, ...]
    units: tuple[str, ...]
    statistics: FloatArray
    """Shape (samples, columns), averaged over seeds."""


def places(
    contenders: Sequence[Contender], aggregate: Aggregate, value: str, *, higher_is_better: bool | None = True
) -> dict[str, int]:
    """Name to place, from 1; contenders without a value have none. Does not depend on the order given.

    Nobody has a place by a value without a direction.
    """
    if higher_is_better is None:
        return {}
    sign = -1.0 if higher_is_better else 1.0
    waiting = sorted((c for c in contenders if c.value is not None), key=lambda c: (sign * (c.value or 0.0), c.name))
    found: dict[str, int] = {}
    while waiting:
        place = len(found) + 1
        best, rest = waiting[0], waiting[1:]
        p_values = holm([p_value(best, other, aggregate, value) for other in rest])
        found[best.name] = place
        waiting = []
        for other, p in zip(rest, p_values, strict=True):
            if p < LEVEL:
                waiting.append(other)
            else:
                found[other.name] = place
    return found


def p_value(left: Contender, right: Contender, aggregate: Aggregate, value: str) -> float:
    """Of the paired randomisation test over the samples both have; 1 where they share none."""
    positions = {sample: index for index, sample in enumerate(right.ids)}
    shared = [index for index, sample in enumerate(left.ids) if sample in positions]
    if not shared:
        return 1.0
    return paired_p_value(
        left.statistics[shared],
        right.statistics[[positions[left.ids[index]] for index in shared]],
        aggregate,
        value,
        [left.units[index] for index in shared],
    )
