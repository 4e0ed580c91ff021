"""What makes two runs the same run: everything that can change an answer, and nothing else."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from mhe.digests import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.documents.run import DataRecord
    from mhe.documents.task import Generation, TaskSpec
    from mhe.values import BackendDescription, Request

KEY_FORMAT = 1
"""Raised when the composition of the key changes: no old run is then taken for a new one."""


def key_parts(
    task: TaskSpec,
    data: DataRecord,
    backend: BackendDescription,
    generation: Generation,
    seed: int,
    requests: Sequence[Request],
    *,
    reuse_unverified: bool = False,
) -> dict[str, object]:
    """The parts of a run key, kept in `key.json` so that one can see why two runs differ.

    Requests enter as messages and image contents, so that no tokenizer is loaded. A model whose content cannot be
    seen (a server) gets a key of its own each time, unless `reuse_unverified`.
    """
    parts: dict[str, object] = {
        "format": KEY_FORMAT,
        "task": task.key,
        "split": data.split,
        "limit": data.limit,
        "data": data.digest,
        "requests": digest_of([request.digest for request in requests]),
        "model": backend.fingerprint.digest,
        "backend": [backend.name, backend.version],
        "options": _plain(backend.key_options),
        "generation": generation.model_dump(mode="json"),
        "seed": seed,
    }
    if not backend.fingerprint.verified and not reuse_unverified:
        parts["unverified"] = secrets.token_hex(8)
    return parts


def run_key(parts: Mapping[str, object]) -> str:
    """Hex SHA-256 over the parts."""
    return digest_of(dict(parts))


def _plain(options: Mapping[str, object]) -> dict[str, object]:
    return {name: options[name] for name in sorted(options)}
