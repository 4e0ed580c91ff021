"""A checkpoint made by a recipe: what it is, where it comes from, what it cost.

Written by the core, never by a plugin.
"""

from __future__ import annotations

from typing import Any

from mhe.documents.base import Document, Part
from mhe.documents.model import Lineage
from mhe.documents.run import CodeState, DataRecord, Environment


class TrainingCost(Part):
    """What the training took."""

    seconds: float
    samples_per_second: float | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    device: str | None = None


class ModuleShare(Part):
    """Parameters of one module of the model."""

    name: str
    total: int
    trainable: int


class TrainingData(Part):
    """What was trained on, after the data guard."""

    train: DataRecord
    validation: DataRecord | None = None
    dropped_pairs: int = 0
    """Training pairs dropped because they repeat an evaluated pair."""
    shared_images: int = 0
    """Images of the training data that an evaluated split shares (allowed only where the task declares it)."""


class Checkpoint(Document):
    """`checkpoint.json` beside the weights."""

    name: str
    seed: int
    backend: str
    """The backend that evaluates it."""
    model_folder: str
    """Relative folder of the weights."""
    options: dict[str, Any] = {}
    """Backend options it needs, such as the adapter's folder."""
    recipe: str
    recipe_version: str
    recipe_options: dict[str, Any]
    step_digest: str
    """Digest of everything the step depends on; equal digest: not run again."""
    parent: str
    parent_location: str
    parent_fingerprint: str
    lineage: tuple[Lineage, ...]
    fingerprint: str
    files: dict[str, str]
    bytes_on_disk: int
    data: TrainingData | None = None
    parameters: int
    trainable_parameters: int
    modules: tuple[ModuleShare, ...] = ()
    cost: TrainingCost
    history: tuple[dict[str, float], ...] = ()
    """The trainer's log: step, epoch, loss, validation loss, learning rate."""
    loads_in: tuple[str, ...] = ()
    """Libraries that load it without our code, such as `transformers`, `peft`, `vllm`."""
    needs_class: str | None = None
    """The class of ours that is needed where no library can express the result."""
    notes: tuple[str, ...] = ()
    environment: Environment
    code: CodeState
    command: str
    finished: str
