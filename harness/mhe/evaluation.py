"""The loop of a run, one function a step: predict → score → record.

A run that is done is found first, and the model is not loaded.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.answers import answer_of
from mhe.digests import cache_dir, digest_of
from mhe.documents.run import BackendRecord, Counts, MetricRecord, ModelRecord, RunRecord, TaskRecord
from mhe.efficiency import measure_efficiency
from mhe.environment import describe_code, describe_environment
from mhe.errors import StorageError
from mhe.model_names import recorded_location
from mhe.protocols import MetricContext
from mhe.run_folder import locked
from mhe.scoring import score_cases
from mhe.values import Case

if TYPE_CHECKING:
    from mhe.documents.task import TaskSpec
    from mhe.protocols import Engine
    from mhe.run_plan import RunPlan
    from mhe.values import BackendDescription, Response

Progress = Callable[[str, int, int], None]
"""`progress(phase, done, total)`; phases are `predict` and `score`."""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What came of a run."""

    record: RunRecord
    folder: Path
    was_done: bool
    """True where no model call was made."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What happened while predicting."""

    uninterrupted: bool
    """All answers came from this process, in one go."""
    seconds: float
    description: BackendDescription
    """After loading."""
    usage: Mapping[str, float]
    warnings: tuple[str, ...]


def run(plan: RunPlan, progress: Progress) -> RunOutcome:
    """Resume or start the run, score it and write its record.

    Raises `BusyError` where another process works on the same key, `StorageError` for a full disk, and whatever
    the backend's `load` raises; answers given before are kept in every case.
    """
    with locked(plan.folder.path, "evaluating"):
        if plan.options.fresh:
            plan.folder.clear()
        plan.folder.start(plan.key, plan.parts)
        record = plan.folder.record()
        if record is not None and _is_done(plan, record):
            return RunOutcome(record=record, folder=plan.folder.path, was_done=True)
        digests = {request.sample_id: request.digest for request in plan.requests}
        started = record.started if record else datetime.now(UTC).isoformat(timespec="seconds")
        responses = plan.folder.responses(digests, retry_system=True)
        pending = [request.sample_id for request in plan.requests if request.sample_id not in responses]
        prediction = _predict(plan, responses, pending, progress) if pending else None
        outcome = _score_and_record(plan, responses, prediction, record, started, progress)
    for warning in plan.catalog.run_finished(outcome.record, outcome.folder):
        plan.folder.log(warning)
    return outcome


def _asked_metrics(plan: RunPlan) -> tuple[str, ...]:
    return plan.options.metrics or plan.task.metrics


def _asked_profiles(plan: RunPlan) -> tuple[str, ...]:
    return plan.options.profiles or (plan.task.profile,)


def _is_done(plan: RunPlan, record: RunRecord) -> bool:
    """Complete, with every metric that is asked for, under its present version and options, and its file there."""
    if record.status != "complete" or record.run_key != plan.key or plan.options.metric_options:
        return False
    there = {(m.metric, m.profile): m for m in record.metrics}
    for profile in _asked_profiles(plan):
        for metric in _asked_metrics(plan):
            found = there.get((metric, profile))
            if found is None or found.file is None or not (plan.folder.path / found.file).exists():
                return False
            if not _is_present(plan, found):
                return False
    return True


def _is_present(plan: RunPlan, found: MetricRecord) -> bool:
    """Whether a metric's record is of the versions that are installed, and of the metric's own options."""
    factory = plan.catalog.metric(found.metric)
    options = factory.Options()
    metric = factory(options, MetricContext(cache_dir=cache_dir(), open_tagger=plan.catalog.open_tagger))
    return (found.metric_version, found.profile_version, dict(found.options)) == (
        metric.version,
        plan.catalog.profile(found.profile).version,
        options.model_dump(mode="json"),
    )


def _predict(plan: RunPlan, responses: dict[str, Response], pending: Sequence[str], progress: Progress) -> Prediction:
    """Ask the engine for what is missing and append each answer as it comes.

    An exception of the backend while it generates ends the run as partial: it is logged with its traceback, and
    the next start goes on from there.
    """
    engine = plan.catalog.engine(plan.options.engine)
    digests = {request.sample_id: request.digest for request in plan.requests}
    waiting = set(pending)
    uninterrupted = not responses
    warnings: list[str] = []
    total = len(plan.requests)
    progress("predict", len(responses), total)
    start = time.perf_counter()
    with plan.folder.appending() as folder:
        stream = engine.run(plan.open_backend, plan.requests, frozenset(pending))
        try:
            for response in stream:
                _accept(response, waiting)
                folder.append([(response, digests[response.sample_id])])
                responses[response.sample_id] = response
                progress("predict", len(responses), total)
        except StorageError:
            raise
        except Exception as error:  # a backend may raise anything; what it answered is kept
            if not _has_loaded(engine):
                raise
            plan.folder.log(traceback.format_exc())
            warnings.append(
                f"the backend stopped with {type(error).__name__}: {error} ({len(waiting)} of {total} samples "
                f"unanswered; traceback in {plan.folder.path / 'mhe.log'}). {_how_to_go_on(plan)}"
            )
        finally:
            if isinstance(stream, Generator):
                stream.close()
    if waiting and not warnings:
        warnings.append(f"the backend ended without answering {len(waiting)} of {total} samples")
    usage = engine.usage()
    return Prediction(
        uninterrupted=uninterrupted and not warnings,
        seconds=max(0.0, time.perf_counter() - start - usage.get("load_seconds", 0.0)),
        description=engine.describe(),
        usage=usage,
        warnings=tuple(warnings),
    )


def _accept(response: Response, waiting: set[str]) -> None:
    """Hold a backend to its contract: each pending request once, a text or an error."""
    if response.sample_id not in waiting:
        raise RuntimeError(f"the backend answered {response.sample_id!r}, which was not asked or is answered already")
    if (response.text is None) == (response.error is None):
        raise RuntimeError(f"the backend gave {response.sample_id!r} neither or both of a text and an error")
    waiting.discard(response.sample_id)


def _has_loaded(engine: Engine) -> bool:
    try:
        engine.describe()
    except RuntimeError:
        return False
    return True


def _how_to_go_on(plan: RunPlan) -> str:
    if plan.description.fingerprint.verified or plan.options.reuse_unverified:
        return "Run the same command again to go on."
    return (
        "What the model is cannot be verified, so the same command starts from nothing; a run goes on only with "
        "--reuse-unverified, given from its first start on."
    )


def _score_and_record(
    plan: RunPlan,
    responses: Mapping[str, Response],
    prediction: Prediction | None,
    previous: RunRecord | None,
    started: str,
    progress: Progress,
) -> RunOutcome:
    samples = {sample.id: sample for sample in plan.data.samples}
    answered = [
        responses[sample_id] for sample_id in samples if sample_id in responses and responses[sample_id].error is None
    ]
    cases = [Case(samples[r.sample_id], answer_of(plan.task, r), r) for r in answered]
    progress("score", 0, len(cases))
    begin = time.perf_counter()
    metrics = score_cases(
        plan.catalog,
        plan.task,
        cases,
        all_samples=plan.data.samples,
        metrics=_asked_metrics(plan),
        profiles=_asked_profiles(plan),
        metric_options=plan.options.metric_options,
        run_key=plan.key,
        folder=plan.folder.path,
    )
    progress("score", len(cases), len(cases))
    score_seconds = time.perf_counter() - begin
    record = _record(plan, responses, cases, prediction, previous, metrics, started, score_seconds)
    plan.folder.finish(record)
    return RunOutcome(record=record, folder=plan.folder.path, was_done=prediction is None)


def _record(
    plan: RunPlan,
    responses: Mapping[str, Response],
    cases: Sequence[Case],
    prediction: Prediction | None,
    previous: RunRecord | None,
    metrics: Sequence[MetricRecord],
    started: str,
    score_seconds: float,
) -> RunRecord:
    description = prediction.description if prediction else plan.description
    counts = count_responses(len(plan.requests), responses, cases)
    if previous is not None and prediction is None:
        efficiency, model, backend = previous.efficiency, previous.model, previous.backend
        warnings = previous.warnings
    else:
        model, backend = model_record(plan, description), backend_record(plan, description)
        warnings = prediction.warnings if prediction else ()
        efficiency = measure_efficiency(
            [responses[name] for name in responses],
            description,
            prediction.usage if prediction else {},
            uninterrupted=prediction is not None and prediction.uninterrupted,
            generate_seconds=prediction.seconds if prediction else 0.0,
            score_seconds=score_seconds,
        )
    fresh = {(m.metric, m.profile) for m in metrics}
    kept = [m for m in previous.metrics if (m.metric, m.profile) not in fresh] if previous and not prediction else []
    return RunRecord(
        run_key=plan.key,
        status="complete" if counts.errors == 0 else "partial",
        task=describe_task(plan.task),
        data=plan.data.record,
        model=model,
        backend=backend,
        generation=plan.generation,
        seed=plan.options.seed,
        counts=counts,
        metrics=(*kept, *metrics),
        efficiency=efficiency,
        environment=describe_environment(),
        code=describe_code(),
        command=plan.options.command,
        started=started,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        warnings=warnings,
    )


def describe_task(task: TaskSpec) -> TaskRecord:
    """The task as a record keeps it."""
    return TaskRecord(
        name=task.name,
        version=task.version,
        digest=digest_of(task.model_dump(mode="json")),
        kind=task.kind,
        title=task.title,
        phantom=task.phantom,
        primary=task.primary,
    )


def count_responses(samples: int, responses: Mapping[str, Response], cases: Sequence[Case]) -> Counts:
    """How the samples fared; a sample without a response counts as an error of the system."""
    kinds = Counter(r.error.kind for r in responses.values() if r.error is not None)
    return Counts(
        samples=samples,
        answered=len(cases),
        data_errors=kinds["data"],
        model_errors=kinds["model"],
        system_errors=kinds["system"] + samples - len(responses),
        cut_at_limit=sum(case.response is not None and case.response.finish_reason == "length" for case in cases),
        empty=sum(not case.answer for case in cases),
    )


def model_record(plan: RunPlan, description: BackendDescription) -> ModelRecord:
    """The model as a record keeps it."""
    model, fingerprint = plan.model, description.fingerprint
    return ModelRecord(
        name=model.name,
        location=recorded_location(plan.catalog, model),
        revision=model.revision,
        fingerprint=fingerprint.digest,
        verified=fingerprint.verified,
        files=dict(fingerprint.files),
        lineage=model.lineage,
        seed=model.seed,
        training=model.training,
        needs_class=model.needs_class,
        parameters=description.parameters,
        module_parameters=dict(description.module_parameters),
        bytes_on_disk=fingerprint.bytes_on_disk,
        bits_per_weight=description.bits_per_weight,
    )


def backend_record(plan: RunPlan, description: BackendDescription) -> BackendRecord:
    """The backend as a record keeps it."""
    return BackendRecord(
        name=description.name,
        version=description.version,
        key_options=dict(description.key_options),
        neutral_options=dict(description.neutral_options),
        device=description.device,
        precision=description.precision,
        engine=plan.options.engine,
    )
