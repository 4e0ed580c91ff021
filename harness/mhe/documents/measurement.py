"""What a model costs, measured without scoring: several rounds over the same samples."""

from __future__ import annotations

from typing import Literal

from mhe.documents.base import Document, Part
from mhe.documents.run import BackendRecord, CodeState, DataRecord, Environment, ModelRecord
from mhe.documents.task import Generation


class Spread(Part):
    """Several measurements of one quantity."""

    median: float
    lowest: float
    highest: float


class BatchRecord(Part):
    """Samples at once."""

    asked: int | Literal["auto"]
    usual: int | None = None
    smallest: int | None = None
    largest: int | None = None


class Costs(Part):
    """Median, lowest and highest over the rounds; null with a reason where it was not measured.

    Rates are over the wall time of a round; latencies are percentiles over the samples of a round.
    """

    seconds: Spread
    """Wall time of a round, preprocessing included."""
    preprocess_seconds: Spread | None = None
    generate_seconds: Spread | None = None
    samples_per_second: Spread | None = None
    prompt_tokens_per_second: Spread | None = None
    generated_tokens_per_second: Spread | None = None
    latency_p50: Spread | None = None
    latency_p95: Spread | None = None
    first_token_p50: Spread | None = None
    first_token_p95: Spread | None = None
    energy_joules: Spread | None = None


class Measurement(Document):
    """Written by `mhe bench-model`."""

    model: ModelRecord
    random_weights: bool
    """Every weight was drawn from a seed: the cost is the model's, the answers are noise."""
    backend: BackendRecord
    task: str
    """`name@version`."""
    data: DataRecord
    generation: Generation
    exact_tokens: bool
    """Every answer was made to have `max_new_tokens` tokens."""
    batch: BatchRecord
    rounds: int
    warm_up_samples: int
    """Answered before the first round, and not measured."""
    failed_samples: int
    prompt_tokens: Spread | None = None
    """Over the samples, image places included."""
    image_tokens: float | None = None
    """Places of images in a prompt, on average; null with a reason for models that read images elsewhere."""
    generated_tokens: Spread | None = None
    """Over the samples."""
    load_seconds: float
    costs: Costs
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    peak_device_reserved_bytes: int | None = None
    reasons: dict[str, str] = {}
    """Field to reason, for each field that is null."""
    environment: Environment
    code: CodeState
    command: str
    started: str
    finished: str
