"""Score files: the per-sample statistics of one metric under one profile, from which boards and tests are made.

`scores/<metric>-<profile>-<8 hex of the score key>.json` holds ids, resampling units and groups beside one row of
statistics a sample, and the per-sample values that mean something: numbers and ids, no text of the data set.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from mhe.digests import digest_of
from mhe.run_folder import safe_name, write_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mhe.protocols import FloatArray, Metric, Profile
    from mhe.values import Case

SCHEMA_VERSION = 1


def score_file_name(metric: str, profile: str, score_key: str) -> str:
    """The path of a score file, relative to the run's folder."""
    return f"scores/{safe_name(metric)}-{safe_name(profile)}-{score_key[:8]}.json"


def score_head(
    metric: Metric,
    options: Mapping[str, object],
    profile: Profile,
    score_key: str,
    resources: Mapping[str, str],
    cases: Sequence[Case],
    groups: Sequence[str],
) -> dict[str, object]:
    """What stands in a score file before the samples' statistics: they are those of an equal head."""
    return {
        "schema_version": SCHEMA_VERSION,
        "metric": metric.name,
        "metric_version": metric.version,
        "profile": profile.name,
        "profile_version": profile.version,
        "options": options,
        **({"resources": resources} if resources else {}),
        "score_key": score_key,
        "columns": list(metric.columns),
        "ids": [case.sample.id for case in cases],
        "units": [case.sample.resampling_unit for case in cases],
        "groups": {group: [case.sample.groups.get(group) for case in cases] for group in groups},
        "answers": digest_of([[case.sample.id, case.answer] for case in cases]),
    }


def write_score_file(place: Path, head: Mapping[str, object], metric: Metric, statistics: FloatArray) -> None:
    """Write head, statistics and per-sample values, unless they stand there already. Raises `StorageError`."""
    per_sample = metric.per_sample(statistics)
    content = {
        **head,
        "statistics": [[_number(cell) for cell in row] for row in statistics.tolist()],
        "values": {name: [_number(cell) for cell in values.tolist()] for name, values in per_sample.items()},
    }
    # ASCII, because an id may hold a lone surrogate, which UTF-8 cannot carry.
    text = json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n"
    if not (place.exists() and place.read_bytes() == text.encode("ascii")):
        write_atomically(place, text)


def _number(value: float) -> float | int | None:
    """Whole numbers without a point (most statistics are counts), NaN as null."""
    if math.isnan(value):
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def kept_statistics(place: Path, head: Mapping[str, object], columns: int) -> FloatArray | None:
    """The statistics of an earlier scoring with an equal head; None where there is none, or not a sound one."""
    import numpy as np

    if not place.exists():
        return None
    try:
        content = json.loads(place.read_text(encoding="ascii"))
        if any(content[name] != wanted for name, wanted in head.items()):
            return None
        statistics = np.asarray(content["statistics"], dtype=np.float64)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_sound = statistics.shape == (len(content["ids"]), columns) and bool(np.isfinite(statistics).all())
    return statistics if is_sound else None
