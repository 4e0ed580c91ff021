"""What a plugin implements. Structure only: nothing to inherit from, nothing to call back into.

Factories follow one pattern: a class with an `Options` model (a pydantic `Part`) that is called with an
instance of it. The options model gives validation, help and `--set` its keys. That an instance of the factory's
own `Options` is meant cannot be said in a Protocol without a type variable in every list of providers: hence `Any`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from mhe.entity_taggers import no_tagger

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from pydantic import BaseModel

    from mhe.documents.model import ModelSpec
    from mhe.documents.task import TaskSpec
    from mhe.entity_taggers import EntityTagger
    from mhe.validation import ValidationScorer
    from mhe.values import Architecture, BackendDescription, Case, MetricValue, Request, Response, Sample

    FloatArray: TypeAlias = NDArray[np.float64]


# ---------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class ReadContext:
    """What a reader is asked for."""

    split: str
    """The reader's own name of the split."""
    data_dir: Path | None
    """The data set's folder on disk; None where none was found."""
    hub: str | None = None
    """`owner/name` of the hub copy, to be used where `data_dir` is None and `offline` is false."""
    revision: str | None = None
    offline: bool = False
    limit: int | None = None
    """No more than this many samples will be used: a hint that allows streaming."""
    need_images: bool = True
    """False where only texts and image names are used: an absent image folder is then no error."""


class DatasetReader(Protocol):
    """Turns files into samples."""

    def read(self, context: ReadContext) -> Iterator[Sample]:
        """Samples in the publisher's order, images not yet read.

        Raises `DataMissingError` where the data is neither in `data_dir` nor on the hub, and `DocumentError`
        (all problems at once) for annotations that cannot be understood. A missing image file is no error here:
        it becomes the sample's own when it is opened.
        """
        ...


class DatasetReaderFactory(Protocol):
    """A class with `Options`, called with them."""

    @property
    def Options(self) -> type[BaseModel]:  # noqa: N802 - a class is what stands under this name
        """The model of its options."""
        ...

    def __call__(self, options: Any, /) -> DatasetReader:  # noqa: ANN401
        """A reader."""
        ...


# ---------------------------------------------------------------- backends


@dataclass(frozen=True, slots=True)
class BackendContext:
    """What a backend may use besides its options."""

    offline: bool
    cache_dir: Path
    training_samples: Callable[[], Sequence[Sample]]
    """The task's training split, read when called: for baselines."""
    seed: int = 0


class ModelBackend(Protocol):
    """Answers requests with one model."""

    def describe(self) -> BackendDescription:
        """Fingerprint, version and options. Before `load` it must be cheap: no heavy import, no weights in memory.

        Raises `ModelUnusableError` where the model cannot be found or read.
        """
        ...

    def load(self) -> None:
        """Heavy imports and weights. Raises `ModelUnusableError`, `MissingExtraError`."""
        ...

    def generate(self, requests: Sequence[Request], pending: Collection[str]) -> Iterator[Response]:
        """Answer each request whose `sample_id` is in `pending`, once, in any order.

        `requests` is the whole run, in its order, so that a resumed run can form the batches of an undisturbed one;
        other batches must not change answers, but for texts where two tokens are tied. Requests that are not pending
        must not be answered. A sample that fails is a response with an `error`; an exception ends the run as partial.
        """
        ...

    def usage(self) -> Mapping[str, float]:
        """Measured so far: any of `preprocess_seconds`, `generate_seconds`, `peak_device_bytes` and, with what is
        reserved, `peak_device_reserved_bytes`, `energy_joules`, `image_tokens` (in all prompts), `batch_size`,
        `smallest_batch_size`, `largest_batch_size`. Empty where nothing is known.
        """
        ...

    def close(self) -> None:
        """Free the device. Called once, also after an error."""
        ...


class BackendFactory(Protocol):
    """A class with `Options`, called with the model, them and the context. Must be light: see `ModelBackend.describe`.

    A field of `Options` whose `json_schema_extra` is `{"answer_neutral": True}` stays out of the run key.
    A class attribute `takes_any_name = True` says that what a name stands for is known to the backend alone: `--model`
    then takes names that are registered nowhere, and they are the specification's `location`.
    """

    @property
    def Options(self) -> type[BaseModel]:  # noqa: N802 - a class is what stands under this name
        """The model of its options."""
        ...

    def __call__(self, model: ModelSpec, options: Any, context: BackendContext, /) -> ModelBackend:  # noqa: ANN401
        """A backend that is not loaded yet."""
        ...


# ---------------------------------------------------------------- scoring


class Profile(Protocol):
    """A scoring convention: how texts are cleaned and, for question answering, when an answer is right.

    A profile may have two more attributes, for scoring without a task (`mhe score --references`, `mhe.score`):
    `usual_metrics`, names of the metrics that are computed where none are asked for, and `is_default`, True for the one
    profile of its kind that is used where none is asked for; it must work on every machine and have `usual_metrics`.
    """

    name: str
    version: str
    kind: str
    """`caption` or `vqa`."""
    source: str
    """Paper or program whose rules these are."""
    defects: Sequence[str]
    """Known faults of the convention, kept on purpose."""

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text normalised, its tokens separated by single blanks. Same length and order.

        Raises `MetricUnavailableError` where a needed program (Java) is absent.
        """
        ...


@runtime_checkable
class AnswerProfile(Profile, Protocol):
    """A profile for question answering."""

    def question_type(self, sample: Sample) -> str:
        """`closed` or `open`, by this convention's own rule."""
        ...

    def credit(self, answer: str, sample: Sample) -> float:
        """0 to 1: how right the answer is; most conventions give 0 or 1."""
        ...


class Metric(Protocol):
    """A number over a run that is a function of sums of per-sample statistics.

    That form is what makes intervals cheap: a resample is a weighted sum of rows, and neither the model nor the
    tokeniser is needed again. A plain mean is the special case of two columns, value and count.

    A metric that reads files of its own (an encoder) may have a property `resources`, a mapping from names to content
    digests: they become part of the score key and of the record. It may raise `MetricUnavailableError`. One that works
    in another process may have a method `begin(cases, profile)` that returns at once; `statistics` of the same follows.
    """

    name: str
    version: str

    @property
    def kinds(self) -> Collection[str]:
        """Task kinds it applies to: `caption`, `vqa`. A plain class attribute will do, here and below."""
        ...

    @property
    def requires(self) -> Collection[str]:
        """Of `references`, `question`, `image`, `entities`, `encoder`, `profile`."""
        ...

    @property
    def columns(self) -> Sequence[str]:
        """Names of the statistics."""
        ...

    @property
    def values(self) -> Sequence[MetricValue]:
        """What `aggregate` returns, in order."""
        ...

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), len(columns)), float64, finite. Raises `MetricUnavailableError` with the reason."""
        ...

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """From column sums of shape (..., len(columns)) to one array of shape (...) per value.

        NaN where a value is over nothing (an accuracy of closed questions where there are none).
        """
        ...

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """One array of shape (n,) per value that means something for one sample; often `aggregate(statistics)`."""
        ...


@dataclass(frozen=True, slots=True)
class MetricContext:
    """What a metric may use besides its options."""

    cache_dir: Path
    device: str | None = None
    open_tagger: Callable[[str, Mapping[str, object]], EntityTagger] = no_tagger
    """A registered tagger by name and options. Raises `UserError` for a name or an option that does not exist."""


class MetricFactory(Protocol):
    """A class with `Options`, called with them and the context. Metrics that need their options' values
    (an encoder's name) read them here; `Metric.values` may depend on them.
    """

    @property
    def Options(self) -> type[BaseModel]:  # noqa: N802 - a class is what stands under this name
        """The model of its options."""
        ...

    def __call__(self, options: Any, context: MetricContext, /) -> Metric:  # noqa: ANN401
        """A metric."""
        ...


# ---------------------------------------------------------------- recipes


@dataclass(frozen=True, slots=True)
class TrainingExample:
    """A request as evaluation would pose it, and the answer to learn."""

    request: Request
    answer: str
    sample: Sample


@dataclass(frozen=True, slots=True)
class InputModel:
    """A model that a recipe reads: base, teacher."""

    spec: ModelSpec
    """Resolved: for a local model `location` is an existing folder."""
    fingerprint: str
    location: str = ""
    """As it is recorded: `package:…` stays what it is on every machine. `mhe.resolve_location` finds the folder."""
    bytes_on_disk: int | None = None
    """Of all its parts, the base of an adapter too; None where it is not known."""


@dataclass(frozen=True, slots=True)
class RecipeJob:
    """One step, with everything it may use."""

    base: InputModel
    inputs: Mapping[str, InputModel]
    """Further models by role, such as `teacher`."""
    train: Sequence[TrainingExample]
    validation: Sequence[TrainingExample]
    folder: Path
    """Empty or half-filled by a killed attempt: continue from what lies there."""
    seed: int
    report: Callable[[str, Mapping[str, float]], None]
    """`report(phase, numbers)`: progress for the person who waits (`step`, `steps`, `loss`, …)."""
    tasks: Mapping[str, TaskSpec] = field(default_factory=dict)
    architectures: Mapping[str, Architecture] = field(default_factory=dict)
    """Where modules live, by `config.model_type`, from every plugin."""
    offline: bool = False
    dry_run: bool = False
    """Find out modules, parameters, steps and memory; train nothing. Into `folder / "model"` goes the shape of the
    result alone, a configuration without weights: what follows is planned on it, with the option `random_weights`."""
    expected_examples: int = 0
    """Of a dry run without the data: how many training pairs the tasks announce. 0 where `train` holds them."""
    process: int = 0
    """Which of several processes this is; 0 alone writes. The others raise `ShareDoneError` when training is done."""
    processes: int = 1
    """How many train together: more than one only for recipes whose `Options` have `may_share = True`."""
    scorer: ValidationScorer | None = None
    """Scores answers to the validation samples; None where a step has no data."""


@dataclass(frozen=True, slots=True)
class RecipeResult:
    """What a recipe made. The core hashes the files and writes the provenance."""

    model_folder: Path
    """Inside the job's folder; loads with `backend` and `options`."""
    parameters: int
    trainable_parameters: int
    modules: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Module to (all, trainable) parameters."""
    backend: str = "hf"
    """What loads the folder; see `mhe.model_names.DEFAULT_BACKEND`."""
    options: Mapping[str, object] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    seconds: float = 0.0
    samples_per_second: float | None = None
    peak_host_bytes: int | None = None
    peak_device_bytes: int | None = None
    device: str | None = None
    loads_in: Sequence[str] = ()
    needs_class: str | None = None
    notes: Sequence[str] = ()
    needed_bytes: float | None = None
    """Of a dry run: memory for what must lie there at once (weights, gradients, moments); activations come on top."""
    kept_files: Sequence[str] = ()
    """Names of text files in the job's folder to keep beside the weights' folder, as its `curve.*` are."""


class Recipe(Protocol):
    """Trains or transforms a model in the folder it is given."""

    name: str
    version: str

    def run(self, job: RecipeJob) -> RecipeResult:
        """Do the step. Killed and started again with an equal job, it ends in the same result."""
        ...


class RecipeFactory(Protocol):
    """A class with `Options`, called with them."""

    @property
    def Options(self) -> type[BaseModel]:  # noqa: N802 - a class is what stands under this name
        """The model of its options."""
        ...

    def __call__(self, options: Any, /) -> Recipe:  # noqa: ANN401
        """A recipe."""
        ...


# ---------------------------------------------------------------- engines and commands


class Engine(Protocol):
    """Where requests run: in this process, on Ray actors."""

    name: str

    def run(
        self, open_backend: Callable[[], ModelBackend], requests: Sequence[Request], pending: Collection[str]
    ) -> Iterator[Response]:
        """Load, generate, close. Yields each pending request's response once, in any order."""
        ...

    def describe(self) -> BackendDescription:
        """The backend's description after loading. Raises `RuntimeError` before `run` has loaded it."""
        ...

    def usage(self) -> Mapping[str, float]:
        """The backend's usage, with `load_seconds`."""
        ...


class Command(Protocol):
    """A further sub-command: a `click.Command`, or anything that is one."""

    name: str | None

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> object:  # noqa: ANN401 - as click has it
        """Parse and run."""
        ...
