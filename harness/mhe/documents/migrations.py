"""How an old document becomes a current one: a function a step, one per document and past version.

`MIGRATIONS[("RunRecord", 1)]` turns version 1 into version 2. `tests/data/` keeps one example of every past version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mhe.errors import DocumentError

Data = dict[str, Any]


def _as_it_is(data: Data) -> Data:
    """For a version that only adds fields with defaults, or allows more values."""
    return data


MIGRATIONS: dict[tuple[str, int], Callable[[Data], Data]] = {
    # Version 2 says what each value is and its range, and allows values without a direction.
    ("RunRecord", 1): _as_it_is,
}


def migrate(document: str, data: Data, current: int, place: str) -> Data:
    """Bring `data` to version `current`. Raises `DocumentError` for a version of the future or an unknown one."""
    version = data.get("schema_version", current)
    if not isinstance(version, int) or isinstance(version, bool):
        raise DocumentError(place, [f"schema_version: expected a whole number, found {version!r}"])
    if version > current:
        raise DocumentError(
            place,
            [f"schema_version {version} is newer than this mhe reads ({current}): pip install --upgrade mhe"],
        )
    while version < current:
        step = MIGRATIONS.get((document, version))
        if step is None:
            raise DocumentError(place, [f"schema_version {version}: no migration to {version + 1} is known"])
        data = {**step(dict(data)), "schema_version": version + 1}
        version += 1
    return data
