"""What a model costs on a task's samples, without scoring: warm-up, then several rounds over the same samples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from mhe.documents.measurement import BatchRecord, Costs, Measurement, Spread
from mhe.efficiency import NO_DEVICE_MEMORY, NO_ENERGY, NOT_TOLD, SHARED, peak_host_bytes, percentile
from mhe.environment import describe_code, describe_environment
from mhe.errors import ModelUnusableError, UserError
from mhe.evaluation import backend_record, model_record
from mhe.run_plan import RunOptions, plan_run

if TYPE_CHECKING:
    from mhe.catalog import Catalog
    from mhe.documents.model import ModelSpec
    from mhe.documents.task import TaskSpec
    from mhe.protocols import ModelBackend
    from mhe.run_plan import RunPlan
    from mhe.values import BackendDescription, Request, Response

Progress = Callable[[str, int, int], None]
"""`progress(phase, done, total)`; phases are `load`, `warm up` and `round 1` to the last."""
EXACT, RANDOM, BATCH = "exact_tokens", "random_weights", "batch_size"
"""Options by which a backend says that it can: write up to the limit, draw the weights, be told the batch size."""
NO_IMAGE_PLACES = "the backend does not tell, or the model reads images elsewhere than in the prompt"


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """How a model is measured."""

    run: RunOptions
    batch_size: int | Literal["auto"] = 1
    rounds: int = 3
    random_weights: bool = False
    exact_tokens: bool = False
    """Every answer as long as `max_new_tokens`."""


@dataclass(frozen=True, slots=True)
class _Round:
    """One pass over all samples."""

    seconds: float
    answered: Sequence[Response]
    failed: Sequence[Response]
    usage: Mapping[str, float]
    """Of this round alone."""


def measure_model(
    catalog: Catalog, model: ModelSpec, task: TaskSpec, options: MeasureOptions, progress: Progress
) -> Measurement:
    """Load once, warm up, measure each round.

    With batch 1 a backend's `Options.measured_alone`, a mapping, says what else to set so that the latency of a
    sample holds the work for this sample alone. Raises `UserError` for what the backend cannot do or where no
    sample could be answered, and whatever the backend's `load` raises.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    plan = plan_run(catalog, model, task, _with_backend_options(catalog, model, options))
    backend = plan.open_backend()
    try:
        progress("load", 0, 1)
        begin = time.perf_counter()
        backend.load()
        load_seconds = time.perf_counter() - begin
        description = backend.describe()
        first = plan.requests if options.batch_size == "auto" else plan.requests[: 2 * options.batch_size]
        progress("warm up", 0, len(first))
        warm = _round(backend, plan, first)
        if not warm.answered:
            failure = warm.failed[0].error
            raise ModelUnusableError(f"{model.name} answers none of the samples: {failure.message if failure else '?'}")
        rounds = []
        for number in range(1, options.rounds + 1):
            progress(f"round {number}", 0, len(plan.requests))
            rounds.append(_round(backend, plan, plan.requests))
        usage = dict(backend.usage())
    finally:
        backend.close()
    return _record(plan, options, description, rounds, usage, load_seconds, len(first), started)


def _record(
    plan: RunPlan,
    options: MeasureOptions,
    description: BackendDescription,
    rounds: Sequence[_Round],
    usage: Mapping[str, float],
    load_seconds: float,
    warm_up_samples: int,
    started: str,
) -> Measurement:
    reasons: dict[str, str] = {}
    costs = _costs(rounds, reasons)
    answered = rounds[0].answered
    figures: dict[str, int | None] = {
        "peak_host_bytes": peak_host_bytes(description.fingerprint.digest),
        **{name: _whole(usage.get(name)) for name in ("peak_device_bytes", "peak_device_reserved_bytes")},
    }
    why = {"peak_host_bytes": SHARED}
    reasons |= {name: why.get(name, NO_DEVICE_MEMORY) for name, value in figures.items() if value is None}
    places = rounds[0].usage.get("image_tokens")
    if not places:
        reasons["image_tokens"] = NO_IMAGE_PLACES
    return Measurement(
        model=model_record(plan, description),
        random_weights=options.random_weights,
        backend=backend_record(plan, description),
        task=plan.task.key,
        data=plan.data.record,
        generation=plan.generation,
        exact_tokens=options.exact_tokens,
        batch=BatchRecord(
            asked=options.batch_size,
            usual=_whole(usage.get("batch_size")),
            smallest=_whole(usage.get("smallest_batch_size")),
            largest=_whole(usage.get("largest_batch_size")),
        ),
        rounds=options.rounds,
        warm_up_samples=warm_up_samples,
        failed_samples=len(rounds[0].failed),
        prompt_tokens=_spread("prompt_tokens", [r.prompt_tokens for r in answered], reasons),
        image_tokens=places / len(answered) if places and answered else None,
        generated_tokens=_spread("generated_tokens", [r.generated_tokens for r in answered], reasons),
        load_seconds=load_seconds,
        costs=costs,
        **figures,
        reasons=reasons,
        environment=describe_environment(),
        code=describe_code(),
        command=options.run.command,
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _with_backend_options(catalog: Catalog, model: ModelSpec, options: MeasureOptions) -> RunOptions:
    """The run's options with what measuring sets; what the user has set himself stays."""
    kind = catalog.backend(model.backend).Options
    wanted: dict[str, object] = {BATCH: options.batch_size}
    for name, is_asked in ((EXACT, options.exact_tokens), (RANDOM, options.random_weights)):
        if is_asked:
            wanted[name] = True
    lacking = [name for name in wanted if name not in kind.model_fields]
    if lacking:
        raise UserError(
            f"the backend {model.backend} of {model.name} has no option {', '.join(lacking)}, which this measurement "
            f"needs. Its options: mhe show backends {model.backend}"
        )
    if options.batch_size == 1:
        wanted = {**getattr(kind, "measured_alone", {}), **wanted}
    return replace(options.run, backend_options={**wanted, **options.run.backend_options})


def _round(backend: ModelBackend, plan: RunPlan, requests: Sequence[Request]) -> _Round:
    before = dict(backend.usage())
    begin = time.perf_counter()
    responses = list(backend.generate(plan.requests, frozenset(request.sample_id for request in requests)))
    seconds = time.perf_counter() - begin
    usage = {name: value - before.get(name, 0.0) for name, value in backend.usage().items()}
    return _Round(
        seconds=seconds,
        answered=[response for response in responses if response.error is None],
        failed=[response for response in responses if response.error is not None],
        usage=usage,
    )


def _costs(rounds: Sequence[_Round], reasons: dict[str, str]) -> Costs:
    def of_usage(name: str, reason: str = NOT_TOLD) -> Spread | None:
        return _spread(f"costs.{name}", [found.usage.get(name) for found in rounds], reasons, reason)

    def rate(name: str, amount: Callable[[Response], int | None]) -> Spread | None:
        totals = [[amount(response) for response in found.answered] for found in rounds]
        values = [
            sum(n for n in total if n is not None) / found.seconds if total and None not in total else None
            for total, found in zip(totals, rounds, strict=True)
        ]
        return _spread(f"costs.{name}", values, reasons)

    def ranks(name: str, of: Callable[[Response], float | None], share: float) -> Spread | None:
        told = [[value for response in found.answered if (value := of(response)) is not None] for found in rounds]
        return _spread(f"costs.{name}", [percentile(values, share) for values in told], reasons)

    seconds = [found.seconds for found in rounds]
    return Costs(
        seconds=Spread(median=statistics.median(seconds), lowest=min(seconds), highest=max(seconds)),
        preprocess_seconds=of_usage("preprocess_seconds"),
        generate_seconds=of_usage("generate_seconds"),
        samples_per_second=rate("samples_per_second", lambda _: 1),
        prompt_tokens_per_second=rate("prompt_tokens_per_second", lambda response: response.prompt_tokens),
        generated_tokens_per_second=rate("generated_tokens_per_second", lambda response: response.generated_tokens),
        latency_p50=ranks("latency_p50", lambda response: response.seconds, 0.5),
        latency_p95=ranks("latency_p95", lambda response: response.seconds, 0.95),
        first_token_p50=ranks("first_token_p50", lambda response: response.first_token_seconds, 0.5),
        first_token_p95=ranks("first_token_p95", lambda response: response.first_token_seconds, 0.95),
        energy_joules=of_usage("energy_joules", NO_ENERGY),
    )


def _spread(
    name: str, values: Sequence[float | None], reasons: dict[str, str], reason: str = NOT_TOLD
) -> Spread | None:
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        reasons[name] = reason
        return None
    return Spread(median=statistics.median(known), lowest=min(known), highest=max(known))


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
