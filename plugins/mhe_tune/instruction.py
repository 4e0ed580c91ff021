"""Recipe `instruction`: full fine-tuning on instructions drawn from the training pairs (MILE, section 3.2 and Table 5).

Each pair is asked through a template drawn for it, closed ones for closed-ended questions and open ones for open-ended,
most with candidate answers: wrong ones from the pool of the same question attribute, and the right one at a random
place. Validation pairs are asked in the same way. Evaluation is not touched: it asks the task's own prompt, which
has no candidates. MILE found this worse than the original pairs when used alone, and better after convergence on them:

    mhe tune mile-two-stage --data-dir DIR              the pipeline of both steps
    mhe tune --model converged --recipe instruction --task slake --name mine
    mhe tune … --set instructions=FILE.jsonl            instructions that were written out, or written by hand

What was drawn is kept as `instructions.jsonl` in the checkpoint's folder: one line a pair, with question, prompt,
candidates and answer. The templates (`templates.yaml`) are our own, in English and Chinese; the paper's text has none.

Costs what `full` does: 16 bytes of memory for each trained weight, 4 for each frozen one, and the activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, FilePath, PlainSerializer

from mhe import Preset, UserError, file_digest
from mhe_hf import save_published
from mhe_hf.training.fitting import (
    empty_model,
    fit,
    load_base,
    plan_numbers,
    plan_schedule,
    preview_of,
    quiet_transformers,
    result_of,
)
from mhe_hf.training.modules import Treatment, set_trainable
from mhe_hf.training.options import TrainingOptions
from mhe_tune.instructions import draw_instructions, instructed, instruction_lines, read_instructions
from mhe_tune.presets import INSTRUCTION_PRESETS

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mhe import RecipeJob, RecipeResult
    from mhe_tune.instructions import Instruction

INSTRUCTIONS_FILE = "instructions.jsonl"


def _named_by_content(path: Path | None) -> str | None:
    return None if path is None else f"{path.name}, sha256 {file_digest(path)}"


class InstructionOptions(TrainingOptions):
    """Options of the recipe `instruction`."""

    presets: ClassVar[Mapping[str, Preset]] = INSTRUCTION_PRESETS

    vision: Treatment = "full"
    fusion: Treatment = "full"
    language: Treatment = "full"
    attribute: str = "question_type"
    """The group of samples whose answers make up a pool of candidates; `mhe data info TASK` counts them."""
    candidates: Annotated[int, Field(ge=2)] = 4
    """Candidate answers in a prompt, the right one with them; fewer where the pool has fewer, two for yes or no."""
    # Recorded and digested by content, so that a changed file is another training.
    instructions: Annotated[FilePath | None, PlainSerializer(_named_by_content, when_used="json")] = None
    """Reads the instructions from this file in place of drawing them."""


class InstructionRecipe:
    """Full fine-tuning by module on instruction-format data."""

    Options: ClassVar[type[BaseModel]] = InstructionOptions
    name = "instruction"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, InstructionOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Make the instructions and train on them, or with `job.dry_run` tell what would be trained."""
        is_counted_only = job.dry_run and not job.train and job.expected_examples > 0
        instructions = [] if is_counted_only else self._instructions(job)
        notes = [] if is_counted_only else describe_instructions(instructions)
        job = replace(
            job, train=instructed(job.train, instructions), validation=instructed(job.validation, instructions)
        )
        schedule = plan_schedule(self.options, job)
        if job.dry_run:
            shares = set_trainable(empty_model(job), self._treatments(), job.architectures)
            return preview_of(job, shares, schedule, 4 * shares.parameters + 12 * shares.trainable, notes=notes)
        if not job.process:
            (job.folder / INSTRUCTIONS_FILE).write_text(instruction_lines(instructions), encoding="utf-8", newline="\n")
        with quiet_transformers():
            model, processor, own_dtype = load_base(self.options, job)
            shares = set_trainable(model, self._treatments(), job.architectures)
            job.report("plan", plan_numbers(shares, schedule))
            fitted = fit(model, processor, self.options, job, schedule)
            save_published(model, processor, job.folder / "model", own_dtype)
        result = result_of(fitted, self.options, job, shares, schedule, notes=notes)
        return replace(result, kept_files=(INSTRUCTIONS_FILE,))

    def _instructions(self, job: RecipeJob) -> list[Instruction]:
        if not job.train:
            raise UserError("this recipe trains, and no training data was given: name a task with --task.")
        if self.options.instructions is not None:
            return read_instructions(self.options.instructions, [*job.train, *job.validation])
        return draw_instructions(
            job.train,
            job.validation,
            attribute=self.options.attribute,
            candidates=self.options.candidates,
            seed=job.seed,
        )

    def _treatments(self) -> dict[str, Treatment]:
        return {"vision": self.options.vision, "fusion": self.options.fusion, "language": self.options.language}


def describe_instructions(instructions: list[Instruction]) -> list[str]:
    """What the data is, for dry run and checkpoint."""
    shown = sum(1 for line in instructions if line.candidates)
    return [f"{len(instructions):,} pairs as instructions, {shown:,} of them with candidate answers"]
