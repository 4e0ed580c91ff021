"""A model by name: which backend runs it, where it lies, and with which options."""

from __future__ import annotations

from typing import Any

from mhe.documents.base import Document, Part


class Lineage(Part):
    """How a checkpoint came to be, shortest form: enough to walk up the tree."""

    recipe: str
    parent: str
    """Name or location of the parent model."""
    parent_fingerprint: str
    seed: int
    data: str | None = None
    """Task, version and split trained on."""


class TrainingSummary(Part):
    """What the last step of a checkpoint trained and what that took."""

    parameters: int
    """Of the model in training, adapters included."""
    trainable_parameters: int
    seconds: float
    peak_host_bytes: int | None = None
    """Of the whole process."""
    peak_device_bytes: int | None = None
    """Allocated by tensors."""
    device: str | None = None


class ModelSpec(Document):
    """What stands behind a model's name."""

    name: str
    backend: str
    """A registered backend: `hf`, `vllm`, `server`, …"""
    location: str
    """A folder, or `owner/name` on the hub; for backends without weights anything they understand."""
    revision: str | None = None
    """Commit of a hub model."""
    options: dict[str, Any] = {}
    """Backend options that belong to the model, overridden by `--set backend.…`."""
    summary: str = ""
    licence: str | None = None
    paper: str | None = None
    tiny_twin: str | None = None
    """Registered small model of the same classes."""
    lineage: tuple[Lineage, ...] = ()
    """From the checkpoint itself up to the base."""
    seed: int | None = None
    """Training seed of a checkpoint `NAME@SEED`."""
    training: TrainingSummary | None = None
    """Of a checkpoint."""
    needs_class: str | None = None
    """Of a checkpoint: the class of a plugin that is needed where no library can express the model."""
