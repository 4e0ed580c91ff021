"""A run before it happens: samples, requests, fingerprint and run key, with nothing heavy imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.digests import cache_dir
from mhe.documents.base import parse_options
from mhe.errors import UserError
from mhe.prompting import build_request
from mhe.protocols import BackendContext
from mhe.run_folder import RunFolder
from mhe.run_key import key_parts, run_key
from mhe.samples import SampleSet, load_samples

if TYPE_CHECKING:
    from mhe.catalog import Catalog
    from mhe.documents.model import ModelSpec
    from mhe.documents.task import Generation, TaskSpec
    from mhe.protocols import ModelBackend
    from mhe.values import BackendDescription, Request, Sample


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a run is made, beyond model and task."""

    runs_dir: Path
    split: str | None = None
    limit: int | None = None
    seed: int = 0
    data_dir: Path | None = None
    offline: bool = False
    generation: Mapping[str, object] = field(default_factory=dict)
    """Overrides of the task's generation settings."""
    backend_options: Mapping[str, object] = field(default_factory=dict)
    metric_options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    """The task's where empty."""
    profiles: tuple[str, ...] = ()
    """The task's where empty."""
    fresh: bool = False
    reuse_unverified: bool = False
    engine: str = "local"
    command: str = ""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run before it happens."""

    catalog: Catalog
    model: ModelSpec
    """Resolved."""
    data: SampleSet
    requests: Sequence[Request]
    generation: Generation
    options: RunOptions
    open_backend: Callable[[], ModelBackend]
    description: BackendDescription
    """Before loading."""
    key: str
    parts: Mapping[str, object]
    folder: RunFolder

    @property
    def task(self) -> TaskSpec:
        """The task."""
        return self.data.task


def plan_run(catalog: Catalog, model: ModelSpec, task: TaskSpec, options: RunOptions) -> RunPlan:
    """Read the samples, build the requests, fingerprint the model, compute the run key. Imports nothing heavy."""
    data = load_samples(
        catalog,
        task,
        split=options.split,
        limit=options.limit,
        data_dir=options.data_dir,
        offline=options.offline,
    )
    generation = _override(task.generation, options.generation)
    requests = [build_request(task, sample, generation, options.seed) for sample in data.samples]
    open_backend = _backend_opener(catalog, model, task, options)
    backend = open_backend()
    description = backend.describe()
    parts = key_parts(
        task,
        data.record,
        description,
        generation,
        options.seed,
        requests,
        reuse_unverified=options.reuse_unverified,
    )
    key = run_key(parts)
    return RunPlan(
        catalog=catalog,
        model=model,
        data=data,
        requests=requests,
        generation=generation,
        options=options,
        open_backend=open_backend,
        description=description,
        key=key,
        parts=parts,
        folder=RunFolder.of(options.runs_dir, task.name, model.name, key),
    )


def _override(generation: Generation, changes: Mapping[str, object]) -> Generation:
    return parse_options(type(generation), {**generation.model_dump(), **changes}, "--set generation")


def _backend_opener(
    catalog: Catalog, model: ModelSpec, task: TaskSpec, options: RunOptions
) -> Callable[[], ModelBackend]:
    factory = catalog.backend(model.backend)
    settings = {**model.options, **options.backend_options}
    chosen = parse_options(factory.Options, settings, f"--set backend (options of backend {model.backend})")

    def training_samples() -> Sequence[Sample]:
        if task.train_split is None:
            # load_samples would take the split that is evaluated.
            raise UserError(f"task {task.name} has no training split, which backend {model.backend} learns from.")
        found = load_samples(
            catalog,
            task,
            split=task.train_split,
            data_dir=options.data_dir,
            offline=options.offline,
            need_images=False,
        )
        return found.samples

    context = BackendContext(
        offline=options.offline,
        cache_dir=cache_dir(),
        training_samples=training_samples,
        seed=options.seed,
    )
    return lambda: factory(model, chosen, context)
