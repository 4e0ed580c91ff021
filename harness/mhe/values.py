"""The things that move through a run, in memory: frozen, slotted, and free of heavy imports.

Data flows one way: sample → request → response → answer → score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from mhe.documents.task import Generation
    from mhe.errors import ErrorKind

T_co = TypeVar("T_co", covariant=True)

NO_GROUPS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Provider(Generic[T_co]):
    """A named thing of a plugin, cheap to list: the heavy import sits inside `load`."""

    name: str
    """What a user types. One that ends with a colon, `family:`, answers to each `family:NAME`."""
    summary: str
    """One line, shown by `mhe show`."""
    load: Callable[..., T_co]
    """Imports and returns the thing itself. Takes nothing; of a family, what stands after the colon."""
    extra: str | None = None
    """The pip extra that `load` needs, named in the error when an import fails."""


class ImageSource(Protocol):
    """Where the bytes of an image come from. Must be picklable, and cheap until asked."""

    def read(self) -> bytes:
        """The encoded image (PNG, JPEG, …). Raises `SampleDataError` where it cannot be had."""
        ...

    def digest(self) -> str:
        """A content digest (hex SHA-256) that is the same on every machine."""
        ...


@dataclass(frozen=True, slots=True)
class Image:
    """A reference to an image: nothing is decoded until `mhe.images.open_image` is called."""

    id: str
    """Its name in the data set; intervals resample by it."""
    source: ImageSource
    resize: tuple[int, int] | None = None
    """Width and height in pixels that the task asks for (None: as published)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question or one image to caption, with what is known to be right."""

    id: str
    images: tuple[Image, ...]
    references: tuple[str, ...]
    """Right answers or reference captions; never empty."""
    question: str | None = None
    """None for captioning."""
    answer_type: Literal["closed", "open"] | None = None
    """As the data set says it; None for captioning."""
    groups: Mapping[str, str] = field(default_factory=lambda: NO_GROUPS)
    """Names to report by, such as modality, organ, question_type."""
    cluster: str = ""
    """The unit to resample by (patient where known); the first image's id where empty."""

    @property
    def resampling_unit(self) -> str:
        """What the bootstrap draws: `cluster`, else the first image's id, else the sample's id."""
        return self.cluster or (self.images[0].id if self.images else self.id)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Images come before the text, in the order of the sample."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: int = 0
    """How many of the request's images this turn shows."""
    question: str | None = None
    """Of a user's turn, the sample's question without the task's words around it, where the turn asks it: for models
    that were trained on bare questions, which read it in the place of `text`."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a backend is asked: messages, images and how to generate."""

    sample_id: str
    messages: tuple[Message, ...]
    images: tuple[Image, ...]
    generation: Generation
    seed: int
    """This sample's own seed, from the run's seed and the sample's id: an answer does not depend on its neighbours."""
    digest: str
    """Digest of messages and images, written beside the response."""
    answer_type: str | None = None
    """For baselines and reports. Never shown to a model."""
    groups: Mapping[str, str] = field(default_factory=lambda: NO_GROUPS)
    """For baselines and reports. Never shown to a model."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sample has no answer."""

    kind: ErrorKind
    message: str


@dataclass(frozen=True, slots=True)
class Response:
    """What a backend answered to one request, or why it could not."""

    sample_id: str
    text: str | None = None
    error: Failure | None = None
    prompt_tokens: int | None = None
    """Tokens of the prompt, image tokens included, padding not."""
    generated_tokens: int | None = None
    finish_reason: Literal["stop", "length"] | None = None
    """`length`: cut at the token limit."""
    seconds: float | None = None
    """Latency: from submitting the batch to its end, preprocessing included."""
    first_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class TokenChance:
    """A token that could stand at one place of an answer."""

    id: int
    token: str
    """As a person reads it: ` left`, `</s>`."""
    log_probability: float
    """Natural logarithm, in float32, over the whole vocabulary."""
    text: str
    """The answer up to this token and with it, as the backend decodes answers, not stripped."""
    is_end: bool = False
    """Ends the answer, and is no part of its text."""


@dataclass(frozen=True, slots=True)
class Case:
    """What a metric sees: a sample and the answer taken from its response."""

    sample: Sample
    answer: str
    response: Response | None = None


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number that a metric reports, and how to read it."""

    name: str
    """As shown in tables: `bleu-4`, `accuracy.closed`. Unique over the metrics of a run."""
    summary: str
    floor: float | None = 0.0
    """The worst possible value, the larger number where lower is better; None where there is none. Without a direction,
    the lower end of the range."""
    ceiling: float | None = 1.0
    """The best possible value; None where there is none. Without a direction, the upper end of the range."""
    higher_is_better: bool | None = True
    """None where neither more nor less is better (a length): never ranked, won or lost."""

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The smallest and the largest possible value, whichever is the better; None where there is none."""
        return (self.ceiling, self.floor) if self.higher_is_better is False else (self.floor, self.ceiling)


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value over a run, with its interval."""

    name: str
    value: float | None
    """None where it could not be computed; `reason` then says why."""
    low: float | None = None
    """Lower end of the 95 % bootstrap interval."""
    high: float | None = None
    samples: int = 0
    """How many samples the value is over."""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class HeadsPlace:
    """Attention of a model class whose heads can be taken out."""

    module: str
    """`vision` or `language`: what a ratio is set for."""
    path: str
    """Dotted path of the attention modules; `*` stands for a layer's number."""
    projections: tuple[str, str, str]
    """Query, key and value below the path; a layer that holds several of them is named once for each, in its order."""
    output: str
    """The layer below the path that mixes the heads again."""
    configuration: str
    """Dotted path of the sub-configuration that says how many heads there are."""
    heads: str = "num_attention_heads"
    """Its field."""


@dataclass(frozen=True, slots=True)
class NeuronsPlace:
    """Feed-forward networks of a model class whose neurons can be taken out."""

    module: str
    """`vision` or `language`."""
    path: str
    """Dotted path of what holds the layers; `*` stands for a layer's number."""
    inputs: tuple[str, ...]
    """Layers below the path with one row a neuron: gate and up, or one."""
    output: str
    """The layer with one column a neuron."""
    configuration: str
    """Dotted path of the sub-configuration that says how many neurons there are."""
    width: str = "intermediate_size"
    """Its field; one that ends in `_ratio` is a whole multiple of `embed_dim`."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Where the modules of a transformers model class live (DESIGN §6).

    Module names are dotted paths inside the model, as `named_modules()` gives them.
    """

    model_type: str
    """`config.model_type`, such as `llava`."""
    vision: tuple[str, ...]
    fusion: tuple[str, ...]
    language: tuple[str, ...]
    notes: str = ""
    heads: tuple[HeadsPlace, ...] = ()
    """Where attention heads live; empty where nobody has looked, and then they cannot be pruned."""
    neurons: tuple[NeuronsPlace, ...] = ()
    """Where feed-forward neurons live."""


@dataclass(frozen=True, slots=True)
class Preset:
    """Values of a recipe's options as a paper has them.

    A recipe's `Options` may list some in a class attribute `presets`, by name, for `mhe show recipes RECIPE`.
    """

    source: str
    """Paper, with table or section."""
    values: Mapping[str, object]
    notes: str = ""
    """What the paper does not say, and where that is taken from."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Which weights exactly: part of the run key, so that one model never gets another's answers."""

    digest: str
    """Hex SHA-256 over weights, adapters, tokenizer, processor and chat template; or over what a server reports."""
    verified: bool
    """False where the content cannot be seen (servers)."""
    files: Mapping[str, str] = field(default_factory=lambda: NO_GROUPS)
    """File name to digest, where there are files."""
    bytes_on_disk: int | None = None


@dataclass(frozen=True, slots=True)
class BackendDescription:
    """What a backend says of itself. Cheap before `load`; complete after it."""

    name: str
    version: str
    """Of the backend and of the library below it, such as `transformers 5.23.0`."""
    fingerprint: Fingerprint
    key_options: Mapping[str, object] = field(default_factory=lambda: NO_GROUPS)
    """JSON-able options that may change an answer: part of the run key. The same before and after `load`."""
    neutral_options: Mapping[str, object] = field(default_factory=lambda: NO_GROUPS)
    """Options declared answer-neutral (batch size, threads): recorded, not in the key."""
    device: str | None = None
    precision: str | None = None
    parameters: int | None = None
    module_parameters: Mapping[str, int] = field(default_factory=dict)
    bits_per_weight: float | None = None
