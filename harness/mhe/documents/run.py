"""The record of a run: stands on its own, anyone can check it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from mhe.documents.base import Document, Part
from mhe.documents.model import Lineage, TrainingSummary
from mhe.documents.task import Generation


class TaskRecord(Part):
    """Which task exactly."""

    name: str
    version: int
    digest: str
    """Digest of the whole task document."""
    kind: Literal["caption", "vqa"]
    title: str
    phantom: bool
    primary: str


class DataRecord(Part):
    """Which samples exactly."""

    task: str
    """`name@version`."""
    split: str
    digest: str
    """Over ids, questions, references and image contents, in order."""
    samples: int
    images: int
    limit: int | None = None
    subset_ids: tuple[str, ...] | None = None
    """The drawn ids, where the task defines a subset."""
    place: str
    """`local` or `hub:owner/name@revision` or `generated`."""


class ModelRecord(Part):
    """Which weights exactly."""

    name: str
    location: str
    revision: str | None = None
    fingerprint: str
    verified: bool
    files: dict[str, str] = {}
    lineage: tuple[Lineage, ...] = ()
    seed: int | None = None
    training: TrainingSummary | None = None
    """Of a checkpoint; None in records made before this was kept."""
    needs_class: str | None = None
    """The class of a plugin without which the checkpoint does not load."""
    parameters: int | None = None
    module_parameters: dict[str, int] = {}
    bytes_on_disk: int | None = None
    bits_per_weight: float | None = None


class BackendRecord(Part):
    """What ran it."""

    name: str
    version: str
    key_options: dict[str, Any]
    neutral_options: dict[str, Any]
    device: str | None = None
    precision: str | None = None
    engine: str = "local"


class Counts(Part):
    """How the samples fared."""

    samples: int
    answered: int
    data_errors: int = 0
    model_errors: int = 0
    system_errors: int = 0
    cut_at_limit: int = 0
    """Answers that reached the token limit."""
    empty: int = 0
    """Answers with no text."""

    @property
    def errors(self) -> int:
        """All samples without an answer."""
        return self.samples - self.answered


class ScoreRecord(Part):
    """One value with its interval."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    samples: int
    worst_case: float | None = None
    """With every unanswered sample at the floor; only for partial runs of metrics that have one."""
    reason: str | None = None
    higher_is_better: bool | None = True
    """None where neither more nor less is better: such a value is never ranked."""
    summary: str = ""
    """What the value is, in a few words; empty in records of version 1."""
    floor: float | None = None
    """The worst possible value; None where there is none, and in records of version 1."""
    ceiling: float | None = None
    """The best possible value; None where there is none, and in records of version 1."""
    groups: dict[str, dict[str, float | None]] = {}
    """Group name to group value to score, for the groups of the task."""


class MetricRecord(Part):
    """One metric under one profile."""

    metric: str
    metric_version: str
    options: dict[str, Any] = {}
    resources: dict[str, str] = {}
    """Content digests of what the metric read besides answers and references, such as an encoder's weights."""
    profile: str
    profile_version: str
    score_key: str
    file: str | None
    """Relative path of the per-sample statistics; None where nothing could be computed."""
    provisional: bool
    """Over the answered samples only, because some have no answer."""
    values: tuple[ScoreRecord, ...]


class Efficiency(Part):
    """Cost of the run. Null with a reason where it was not measured in one piece."""

    device: str | None = None
    batch_size: int | None = None
    """Samples at once; where that was found on the way, the size in which most were answered."""
    smallest_batch_size: int | None = None
    largest_batch_size: int | None = None
    uninterrupted: bool
    load_seconds: float | None = None
    preprocess_seconds: float | None = None
    generate_seconds: float | None = None
    score_seconds: float | None = None
    samples_per_second: float | None = None
    prompt_tokens_per_second: float | None = None
    generated_tokens_per_second: float | None = None
    latency_p50: float | None = None
    latency_p95: float | None = None
    first_token_p50: float | None = None
    first_token_p95: float | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    """Allocated by tensors."""
    peak_device_reserved_bytes: int | None = None
    """Held by the library, free blocks included."""
    energy_joules: float | None = None
    """Of the devices, while answers were generated."""
    reasons: dict[str, str] = {}
    """Field to reason, for each field that is null."""


class Environment(Part):
    """Where it ran."""

    python: str
    platform: str
    cpu_count: int | None
    packages: dict[str, str]
    cuda: str | None = None


class CodeState(Part):
    """Which code ran."""

    mhe_version: str
    commit: str | None = None
    dirty: bool | None = None


class RunRecord(Document):
    """`run.json`, written last."""

    current_version: ClassVar[int] = 2

    schema_version: int = 2
    run_key: str
    status: Literal["complete", "partial"]
    task: TaskRecord
    data: DataRecord
    model: ModelRecord
    backend: BackendRecord
    generation: Generation
    seed: int
    counts: Counts
    metrics: tuple[MetricRecord, ...]
    efficiency: Efficiency
    environment: Environment
    code: CodeState
    command: str
    started: str
    finished: str
    warnings: tuple[str, ...] = ()
    responses_from: str = Field(default="backend")
    """`backend`, or the file name for predictions made elsewhere."""
