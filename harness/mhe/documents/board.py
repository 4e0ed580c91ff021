"""A leaderboard: what it pins, who stands on it, what was entered when, and what papers report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mhe.documents.base import Document, Part
from mhe.documents.task import Generation, Name

Day = Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
EntrantKind = Literal["model", "checkpoint", "pipeline", "baseline"]
WeightsCheck = Literal["hashed again", "not here", "hub commit", "unverified", "no weights"]
"""How sure the board is of an entry's weights: read again when it was added; recorded by the run, and not on the
machine that added it; a commit of the hub; told by a server; or nothing to hash (a baseline)."""


CostName = Literal[
    "parameters",
    "bytes",
    "bits per weight",
    "samples/s",
    "latency p50",
    "peak memory",
    "trained share",
    "training memory",
    "training time",
]
"""What may be shown beside quality; the last three are of a checkpoint's last training step."""
USUAL_COSTS: tuple[CostName, ...] = ("parameters", "bytes", "samples/s", "latency p50", "peak memory")


class MetricPin(Part):
    """A metric as the board pins it. The profile is the task's."""

    metric: str
    version: str
    options: dict[str, Any] = Field(default_factory=dict)
    resources: dict[str, str] = Field(default_factory=dict)
    """Digests of what it read beside the texts, such as an encoder's weights. Pinned by the first run where empty."""
    profile_version: str
    values: Annotated[tuple[str, ...], Field(min_length=1)]
    """The values of this metric that the board may show."""


class BoardTask(Part):
    """A task as the board pins it."""

    task: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*@[1-9][0-9]*$")]
    """`name@version`."""
    title: str = ""
    phantom: bool = False
    """Drawn images: said loudly at the top of the page."""
    split: str
    limit: int | None = None
    task_digest: str | None = None
    """Entries of another task document are refused. Pinned by the first run where empty."""
    data_digest: str | None = None
    """Entries over other samples are refused. Pinned by the first run where empty."""
    profile: str
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    """Metric values shown, in order."""
    primary: str
    """The value that ranks; one of `metrics`."""
    pins: tuple[MetricPin, ...]
    """Which metric, in which version, every shown value comes from."""
    generation: Generation
    settings: tuple[str, ...] = ()
    """Further options of `mhe eval` that turn the task's own settings into the pinned ones, for "How to enter"."""
    notes: tuple[str, ...] = ()
    """Shown under the table, such as images shared between splits."""

    @model_validator(mode="after")
    def _values_are_pinned(self) -> BoardTask:
        pinned = [value for pin in self.pins for value in pin.values]
        problems = [f"metric value {name!r} is in no pin" for name in self.metrics if name not in pinned]
        problems += [f"metric value {name!r} is pinned twice" for name in sorted(set(pinned)) if pinned.count(name) > 1]
        if self.primary not in self.metrics:
            problems.append(f"primary {self.primary!r} is not one of metrics: {', '.join(self.metrics)}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def name(self) -> str:
        """The task's name without its version."""
        return self.task.rpartition("@")[0]


class Entrant(Part):
    """One row."""

    name: Name
    kind: EntrantKind
    model: str
    """The model name of its runs, without a training seed."""
    summary: str = ""
    added: Day
    """Date of entry."""


class BoardChange(Part):
    """An entry that was added or replaced. What was published is never taken back in silence."""

    date: Day
    action: Literal["added", "replaced"]
    entrant: Name
    task: str
    """`name@version`."""
    seed: int
    run_key: str
    digest: str
    """Over `run.json` and the per-sample statistics of the entry."""
    weights: WeightsCheck


class ReportedRow(Part):
    """A row quoted from a paper. Never ranked with measured ones."""

    name: str
    task: str
    """Name of the task, with or without `@version`."""
    values: dict[str, float]
    source: Annotated[str, Field(min_length=1)]
    """Paper with table and page."""
    notes: str = ""


def _problems_of_relations(relative_to: Mapping[str, Sequence[str]]) -> list[str]:
    """An entrant beside itself, beside two others, or named twice."""
    problems = [f"relative_to: {name!r} is beside itself" for name, others in relative_to.items() if name in others]
    named = [other for others in relative_to.values() for other in others]
    problems += [f"relative_to: {name!r} is named twice" for name in sorted(set(named)) if named.count(name) > 1]
    if len(relative_to) > 1 and not all(relative_to.values()):
        empty = next(name for name, others in relative_to.items() if not others)
        problems.append(f"relative_to: name who is beside {empty!r}; a list is left empty only where there is no other")
    return problems


class BoardSpec(Document):
    """`board.yaml`."""

    name: Name
    version: Annotated[int, Field(ge=1)]
    title: str
    summary: str = ""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    tasks: Annotated[tuple[BoardTask, ...], Field(min_length=1)]
    entrants: tuple[Entrant, ...] = ()
    reported: tuple[ReportedRow, ...] = ()
    costs: Annotated[tuple[CostName, ...], Field(min_length=1)] = USUAL_COSTS
    """Columns of cost, in this order."""
    relative_to: dict[Name, tuple[Name, ...]] = {}
    """Entrants that others are shown beside, with those others; an empty list stands for all the rest, baselines
    apart."""
    enter: str = ""
    """What an entrant should know besides the commands; shown under "How to enter"."""
    changes: tuple[BoardChange, ...] = ()
    """Every entry ever made, oldest first; written by `mhe board add`."""

    @model_validator(mode="after")
    def _names_agree(self) -> BoardSpec:
        tasks, entrants = [t.task for t in self.tasks], [e.name for e in self.entrants]
        short = [t.name for t in self.tasks]
        problems = [f"task {name!r} is listed twice" for name in sorted(set(short)) if short.count(name) > 1]
        problems += [f"entrant {name!r} is listed twice" for name in sorted(set(entrants)) if entrants.count(name) > 1]
        if len(set(self.seeds)) != len(self.seeds):
            problems.append("seeds are listed twice")
        if len(set(self.costs)) != len(self.costs):
            problems.append("costs are listed twice")
        problems += _problems_of_relations(self.relative_to)
        problems += [
            f"reported row {row.name!r} names the task {row.task!r}, which is not on this board"
            for row in self.reported
            if row.task not in tasks and row.task not in short
        ]
        problems += [
            f"changes name {change.entrant!r} on {change.task!r}, which the board does not list"
            for change in self.changes
            if change.entrant not in entrants or change.task not in tasks
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def key(self) -> str:
        """`name@vN`, as users type it."""
        return f"{self.name}@v{self.version}"

    def standing(self) -> dict[tuple[str, str, int], BoardChange]:
        """The change that put each entry there, by (entrant, task with version, seed)."""
        return {(change.entrant, change.task, change.seed): change for change in self.changes}
