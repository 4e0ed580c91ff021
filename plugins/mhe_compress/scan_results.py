"""What `mhe scan-layers` measured, as a document; and ratios by layer that follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from mhe import Part


class ScannedBlock(Part):
    """One attention or feed-forward network, pruned alone."""

    key: str
    """Its name in the model."""
    module: Literal["vision", "language"]
    kind: Literal["heads", "neurons"]
    units: int
    """That it has."""
    kept: int
    """That it had while it was measured."""
    loss: float
    """Of the model then."""
    rise: float
    """Over the loss of the whole model; below 0 where pruning helped."""


class LayerScan(Part):
    """Loss when each layer alone is pruned."""

    schema_version: Literal[1] = 1
    model: str
    fingerprint: str
    task: str
    samples: int
    seed: int = 0
    importance: Literal["magnitude", "activation", "taylor"]
    ratio: float
    """That left each block."""
    loss: float
    """Of the whole model."""
    blocks: Annotated[tuple[ScannedBlock, ...], Field(min_length=1)]


def read_scan(given: object) -> object:
    """The scan that lies in a file, where its path is given. Raises `ValueError` for a file that is none."""
    if not isinstance(given, str | Path):
        return given
    path = Path(given).expanduser()
    try:
        found: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"{path} cannot be read ({reason}): write it with mhe scan-layers MODEL --task TASK --out {path}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): write it again with mhe scan-layers") from None
    return found


def ratios_by_block(scan: LayerScan, module: str, kind: str, ratio: float, spread: float) -> dict[str, float]:
    """A ratio for each block of one kind, with this mean: less where the loss rose more.

    The rises are scaled to 0 (least) to 1 (most); a block has `ratio x (1 + spread x (mean - own))`.
    """
    rises = {block.key: block.rise for block in scan.blocks if (block.module, block.kind) == (module, kind)}
    if not rises:
        return {}
    low, high = min(rises.values()), max(rises.values())
    scaled = {key: (rise - low) / (high - low) if high > low else 0.0 for key, rise in rises.items()}
    mean = sum(scaled.values()) / len(scaled)
    return {key: ratio * (1 + spread * (mean - own)) for key, own in scaled.items()}
