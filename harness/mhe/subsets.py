"""Fixed subsets by a rule over the ids alone: everyone draws the same samples, with no list to pass around."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from mhe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.documents.task import Subset
    from mhe.values import Sample


def draw_subset(samples: Sequence[Sample], subset: Subset) -> list[Sample]:
    """The subset's samples, in their order of publication.

    Places go to strata in proportion to their size by largest remainder (ties to the stratum whose name comes
    first), then to samples by SHA-256 of salt and id. Raises `UserError` where there are too few samples.
    """
    if len(samples) < subset.size:
        raise UserError(
            f"the subset needs {subset.size} samples of split {subset.split!r}, and the data on disk has "
            f"{len(samples)}: the release is incomplete, get the whole split."
        )
    strata: dict[str, list[Sample]] = {}
    for sample in samples:
        name = sample.groups.get(subset.stratify_by, "unknown") if subset.stratify_by else ""
        strata.setdefault(name, []).append(sample)
    places = allot_places({name: len(members) for name, members in strata.items()}, subset.size)
    chosen: set[str] = set()
    for name, members in strata.items():
        ranked = sorted(members, key=lambda sample: _rank(subset.salt, sample.id))
        chosen.update(sample.id for sample in ranked[: places[name]])
    return [sample for sample in samples if sample.id in chosen]


def allot_places(sizes: dict[str, int], places: int) -> dict[str, int]:
    """Places for strata in proportion to their sizes, by largest remainder, in whole numbers without rounding error."""
    total = sum(sizes.values())
    allotted = {name: size * places // total for name, size in sizes.items()}
    rest = sorted(sizes, key=lambda name: (-(sizes[name] * places % total), name))
    for name in rest[: places - sum(allotted.values())]:
        allotted[name] += 1
    return allotted


def _rank(salt: str, sample_id: str) -> str:
    return hashlib.sha256(f"{salt}:{sample_id}".encode()).hexdigest()
