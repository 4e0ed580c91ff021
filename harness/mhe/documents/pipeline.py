"""A pipeline: a base model and a list of steps, each of which is a recipe and leaves a checkpoint."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from mhe.documents.base import Document, Part
from mhe.documents.task import Name


class TrainingChoice(Part):
    """What a step trains and validates on."""

    task: str
    split: str | None = None
    validation_split: str | None = None
    limit: int | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share in a mixture of tasks."""


class PipelineStep(Part):
    """One step. `inputs` name earlier steps or models (`teacher: base`)."""

    name: Name
    recipe: Name
    options: dict[str, Any] = {}
    from_step: str | None = None
    """The step (or `base`) whose result it starts from; the one before where empty."""
    inputs: dict[str, str] = {}
    data: tuple[TrainingChoice, ...] | None = None
    """The pipeline's data where empty."""


class PipelineSpec(Document):
    """`NAME.yaml`."""

    name: Name
    summary: str = ""
    base: str
    """A model's name, folder or hub id."""
    data: tuple[TrainingChoice, ...] = ()
    steps: Annotated[tuple[PipelineStep, ...], Field(min_length=1)]
    paper: str | None = None

    @model_validator(mode="after")
    def _steps_are_ordered(self) -> PipelineSpec:
        seen = {"base"}
        for step in self.steps:
            if step.name in seen:
                raise ValueError(f"step {step.name!r} is named twice (`base` is the base model)")
            for needed in [step.from_step, *step.inputs.values()]:
                if needed is not None and any(needed == later.name for later in self.steps) and needed not in seen:
                    raise ValueError(f"step {step.name!r} needs {needed!r}, which comes later: steps run in order")
            seen.add(step.name)
        return self


class PipelineVariant(Document):
    """`NAME.yaml` of a pipeline that is another one on another base: a small one of a true-size one, above all."""

    name: Name
    extends: Name
    """The pipeline whose steps these are, by its registered name; in a file that is not registered, one beside it."""
    summary: str = ""
    base: str | None = None
    """In the place of the other's."""
    data: tuple[TrainingChoice, ...] | None = None
    """In the place of the other's, for every step that reads any."""
    settings: dict[str, Any] = {}
    """As `--set` has them: `STEP.OPTION`, `STEP.inputs.ROLE`, `STEP.recipe`."""
    paper: str | None = None
