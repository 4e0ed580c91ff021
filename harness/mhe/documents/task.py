"""A task: data, prompt, answer extraction, metrics — as data, one file a task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mhe.documents.base import Document, Part

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
"""Names that users type: lower case, digits, dots, dashes."""


class Generation(Part):
    """How answers are generated. Everything here is part of the run key."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 is greedy decoding."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""


class Source(Part):
    """Where the data comes from and what may be done with it."""

    homepage: str
    licence: str
    citation: str
    hub: str | None = None
    """`owner/name` of the usual copy on the hub."""
    revision: str | None = None
    """Commit of the hub copy. Required with `hub`."""
    folder: str | None = None
    """Name of the folder looked for under `$MHE_DATA_DIR` and `./data`."""
    instructions: str = ""
    """What to download and how it must lie, shown where the data is absent."""

    @model_validator(mode="after")
    def _hub_is_pinned(self) -> Source:
        if self.hub and not self.revision:
            raise ValueError("a hub copy needs its revision, so that everyone reads the same data")
        return self


class ReaderChoice(Part):
    """Which registered reader reads the data, with its options."""

    name: Name
    options: dict[str, Any] = {}


class Split(Part):
    """One split: what the task calls it, and what the reader is asked for."""

    reader_split: str | None = None
    """The reader's own name for it; the task's name where empty."""
    samples: int | None = None
    """How many the publisher counts, checked by `mhe data info`."""


class Prompt(Part):
    """What the model is asked. `{question}` stands for the sample's question."""

    user: str
    system: str | None = None


class AnswerRule(Part):
    """How an answer is taken from a response, in this order."""

    drop_prefixes: tuple[str, ...] = ()
    """Removed from the beginning, without regard to case (`Answer:`)."""
    first_line: bool = False
    """Keep only the first line that is not blank."""
    lowercase: bool = False


class ImageRule(Part):
    """What is done to each image before the model's own processor."""

    resize: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    """Width, height in pixels; bicubic, aspect not kept."""


class ReferenceRule(Part):
    """What is done to the references before scoring."""

    lowercase: bool = False


class Subset(Part):
    """A fixed part of a split, drawn by a rule over the ids alone, so that everyone gets the same one.

    Within each stratum, samples are ordered by SHA-256 of `salt` and id; strata get places in proportion
    to their size (largest remainder).
    """

    size: Annotated[int, Field(ge=1)]
    stratify_by: str | None = None
    """A group such as `modality`."""
    salt: str = ""
    split: str = "test"


class SharedImages(Part):
    """Images that the official splits share, declared so that training on them is not refused."""

    splits: tuple[str, str]
    reason: str


class Broken(Part):
    """A sample known to be broken in the published data."""

    id: str
    reason: str


class TaskSpec(Document):
    """`task.yaml`."""

    name: Name
    version: Annotated[int, Field(ge=1)]
    """Raised with every change that can change a score; the old one stays readable by its runs."""
    title: str
    kind: Literal["caption", "vqa"]
    summary: str
    phantom: bool = False
    """Drawn images: labelled everywhere, says nothing of medicine."""
    source: Source
    reader: ReaderChoice
    splits: dict[str, Split]
    default_split: str = "test"
    train_split: str | None = "train"
    prompt: Prompt
    answer: AnswerRule = AnswerRule()
    images: ImageRule = ImageRule()
    references: ReferenceRule = ReferenceRule()
    generation: Generation = Generation()
    metrics: Annotated[tuple[Name, ...], Field(min_length=1)]
    primary: str
    """Name of the metric value that ranks."""
    profile: Name
    """The scoring profile used unless another is asked for."""
    groups: tuple[str, ...] = ()
    """Groups that scores are reported by."""
    subset: Subset | None = None
    shared_images: tuple[SharedImages, ...] = ()
    broken: tuple[Broken, ...] = ()
    superseded_by: str | None = None

    @model_validator(mode="after")
    def _names_agree(self) -> TaskSpec:
        problems = []
        if self.default_split not in self.splits:
            problems.append(f"default_split {self.default_split!r} is not one of splits: {', '.join(self.splits)}")
        if self.train_split is not None and self.train_split not in self.splits:
            problems.append(f"train_split {self.train_split!r} is not one of splits: {', '.join(self.splits)}")
        if self.kind == "vqa" and "{question}" not in self.prompt.user:
            problems.append("prompt.user of a vqa task must contain {question}")
        for shared in self.shared_images:
            problems += [f"shared_images names the unknown split {s!r}" for s in shared.splits if s not in self.splits]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def key(self) -> str:
        """`name@version`, as boards pin it."""
        return f"{self.name}@{self.version}"
