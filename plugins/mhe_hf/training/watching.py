"""What is watched while transformers' `Trainer` works: progress, the best weights, saves that are whole, NaN.

Everything that must survive a kill is in files of the job's folder or in the trainer's own log, so that a training
that continues takes the same decisions as one that was never disturbed.
"""

# ruff: noqa: ARG002 - the signatures are those of transformers' trainer and its callbacks

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback

from mhe import UserError
from mhe_hf.training.memory import peak_device_bytes, peak_host_bytes
from mhe_hf.training.yardsticks import Yardstick, is_out_of_patience

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_utils import EvalLoopOutput

    from mhe import TrainingExample
    from mhe_hf.training.answering import ValidationAnswers

EXAMPLE_INDEX = "example_index"
TRAINED_WEIGHTS = "trained.safetensors"
BEST_WEIGHTS = "best.safetensors"
BEST_NOTE = "best.json"
WHOLE_MARK = "mhe_saved.json"
SECONDS_BETWEEN_REPORTS = 0.2


class LossNotFiniteError(UserError):
    """The loss or a gradient is no number any more."""


class WatchedTrainer(Trainer):
    """transformers' `Trainer`, which stops at the first loss that is not finite and says on which samples.

    With `one_cycle`, the share of steps in which it rises, the rate follows torch's OneCycleLR.
    """

    def __init__(
        self, examples: Sequence[TrainingExample], one_cycle: float | None = None, **arguments: object
    ) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self._examples = examples
        self._one_cycle = one_cycle
        # An answer never stands at a row's first place where the loss shifts: all labels count.
        self._loss_shifts_labels = False
        self._batch: list[int] = []
        self.yardstick = Yardstick()
        self.answers: ValidationAnswers | None = None
        """Asked at each validation, where the yardstick is a metric."""

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """As the parent does, or one cycle over all steps."""
        if self._one_cycle is None:
            return super().create_scheduler(num_training_steps, optimizer)
        rise = self._one_cycle
        if rise * num_training_steps == 1:
            # A rise of exactly one step is a division by zero in torch.
            rise += 1e-9
        chosen = optimizer or self.optimizer
        assert chosen is not None, "the optimizer is made first"
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            chosen, max_lr=self.args.learning_rate, total_steps=num_training_steps, pct_start=rise
        )
        self.lr_scheduler = cycle  # type: ignore[assignment]
        self._created_lr_scheduler = True
        return cycle

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """The mean over the answers' tokens: of this pass alone, or its part of the mean of a whole step.

        A step that accumulates passes is the same as one of a single pass with all its examples. The parent leaves
        that to the model; those with a loss of their own (BLIP, vision-encoder-decoder) pass over it, and the parent
        would add their means up.
        """
        inputs = dict(inputs)
        index = inputs.pop(EXAMPLE_INDEX, None)
        if index is not None and model.training:
            self._batch = [int(number) for number in index]
        found = self.mean_loss(model, inputs, return_outputs)
        if num_items_in_batch is None:
            return found
        part = inputs["labels"].ne(-100).sum() * self.accelerator.num_processes / num_items_in_batch
        return (found[0] * part, found[1]) if isinstance(found, tuple) else found * part

    def mean_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """The mean over the answers' tokens of this pass: the model's own loss. A recipe may have another."""
        return super().compute_loss(model, inputs, return_outputs)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One forward and backward pass. Raises `LossNotFiniteError`."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            self.stop_for("the loss", float(loss))
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> torch.Tensor | float | None:
        """As the parent does, before each step. Raises `LossNotFiniteError`, so that no save ever holds broken weights.

        fp16 is left alone: its scaler skips such steps by design.
        """
        norm: torch.Tensor | float | None = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if norm is not None and not self.args.fp16 and not math.isfinite(norm):
            self.stop_for("the norm of the gradients", float(norm))
        return norm

    def evaluation_loop(self, *arguments: Any, **more: Any) -> EvalLoopOutput:  # noqa: ANN401 - the parent's own
        """The validation loss, and the metric of answers where weights are chosen by one."""
        output = super().evaluation_loop(*arguments, **more)
        if self.answers is not None:
            assert output.metrics is not None
            output.metrics[self.yardstick.key] = self.answers.measure(self)
        return output

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:
        """Write the trained parameters under their names in the model.

        The parent writes the published names and reads them back without translating, which loads nothing and says
        nothing; and frozen weights need no saving.
        """
        if not self.is_world_process_zero():
            # The parent asks every process.
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        write_trained(self.own_model, folder / TRAINED_WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Read what `_save` wrote; every trained parameter must be there."""
        load_trained(model or self.own_model, Path(resume_from_checkpoint) / TRAINED_WEIGHTS)

    @property
    def own_model(self) -> torch.nn.Module:
        """The model without what accelerate wraps around it."""
        unwrapped: torch.nn.Module = self.accelerator.unwrap_model(self.model)
        return unwrapped

    def _whose(self) -> str:
        count = self.accelerator.num_processes
        return f"process {self.accelerator.process_index} of {count}: " if count > 1 else ""

    def stop_for(self, what: str, value: float) -> None:
        """Raise `LossNotFiniteError` with step, samples, and what is kept."""
        ids = [self._examples[number].sample.id for number in self._batch]
        kept = best_note(Path(str(self.args.output_dir)))
        last = (
            f"The best weights so far (step {kept['step']:.0f}, {self.yardstick.label} {kept['value']:.4f}) are kept "
            f"in {self.args.output_dir}/{BEST_WEIGHTS}."
            if kept
            else "No validation had been reached, so nothing is kept."
        )
        raise LossNotFiniteError(
            f"{self._whose()}{what} is {value} at step {self.state.global_step + 1}, "
            f"on the samples {', '.join(ids[:8])}{', …' if len(ids) > 8 else ''}. {last} "
            "Lower learning_rate or max_grad_norm, raise warmup, or use dtype=fp32."
        )


class BestKeeper(TrainerCallback):
    """Keeps the trained weights of the best validation, and ends a training that no longer improves."""

    def __init__(self, folder: Path, patience: int | None, last_step: int, yardstick: Yardstick) -> None:
        self._folder = folder
        self._patience = patience
        self._last_step = last_step
        self._yardstick = yardstick

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: object
    ) -> None:
        """The last step is validated and saved, wherever it falls."""
        if state.global_step >= self._last_step:
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = True

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: object
    ) -> None:
        """Keep what is no worse than anything before; count what is no better."""
        costs = self._yardstick.costs(state.log_history)
        if state.is_world_process_zero and costs and costs[-1][1] <= min(cost for _, cost in costs) < math.inf:
            step, cost = costs[-1]
            keep_best(extra["model"], self._folder, {"step": step, "value": self._yardstick.value_of(cost)})  # type: ignore[arg-type]
        if is_out_of_patience(costs, self._patience):
            control.should_training_stop = True
            control.should_save = True


class WholeSaves(TrainerCallback):
    """Marks each save when it is whole, with the seconds spent so far; a save without the mark is never used."""

    def __init__(self, seconds_before: float) -> None:
        self._start = time.monotonic() - seconds_before

    @property
    def seconds(self) -> float:
        """Since the very beginning, interruptions not counted."""
        return time.monotonic() - self._start

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: object) -> None:
        """Write the mark, when every process has written what is its own."""
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        if not state.is_world_process_zero:
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        write_whole(folder / WHOLE_MARK, json.dumps({"seconds": self.seconds}).encode())


class Reporter(TrainerCallback):
    """Tells the person who waits: step, losses, rates, memory."""

    def __init__(
        self,
        report: Callable[[str, Mapping[str, float]], None],
        examples_a_step: int,
        yardstick: Yardstick | None = None,
    ) -> None:
        self._report = report
        self._examples = examples_a_step
        self._yardstick = yardstick or Yardstick()
        self._numbers: dict[str, float] = {}
        self._last = 0.0
        self._start: tuple[float, int] | None = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: object
    ) -> None:
        """Now and then."""
        now = time.monotonic()
        if self._start is None:
            self._start = (now, state.global_step)
        if now - self._last > SECONDS_BETWEEN_REPORTS or state.global_step >= state.max_steps:
            self._last = now
            began, first = self._start
            done = state.global_step - first
            if done:
                self._numbers["samples_per_second"] = done * self._examples / max(1e-9, now - began)
                self._numbers["seconds_left"] = (state.max_steps - state.global_step) * (now - began) / done
            device = peak_device_bytes()
            self._numbers["peak_bytes"] = float(peak_host_bytes() if device is None else device)
            self._numbers |= {"step": float(state.global_step), "steps": float(state.max_steps)}
            self._report("train", dict(self._numbers))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: object) -> None:
        """Remember losses and rate."""
        logs = extra.get("logs")
        if isinstance(logs, dict):
            for ours, theirs in (
                ("loss", "loss"),
                ("validation_loss", "eval_loss"),
                ("learning_rate", "learning_rate"),
            ):
                if theirs in logs:
                    self._numbers[ours] = float(logs[theirs])
            if self._yardstick.key in logs:
                self._numbers[f"validation_{self._yardstick.name}"] = float(logs[self._yardstick.key])


# ---------------------------------------------------------------- what lies in the job's folder


def validation_losses(history: Sequence[Mapping[str, float]]) -> list[tuple[int, float]]:
    """(step, loss) of each validation in a trainer's log, in order."""
    return [(int(entry["step"]), float(entry["eval_loss"])) for entry in history if "eval_loss" in entry]


def write_trained(model: torch.nn.Module, path: Path) -> None:
    """Write the trained parameters by their names in the model."""
    from safetensors.torch import save

    tensors = {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    write_whole(path, save(tensors))


def load_trained(model: torch.nn.Module, path: Path) -> None:
    """Put written parameters back. Raises `RuntimeError` where they are not exactly the trained ones."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if tensors.keys() != parameters.keys():
        raise RuntimeError(
            f"{path} does not hold the trained parameters: {sorted(tensors.keys() ^ parameters.keys())[:5]}"
        )
    for name, tensor in tensors.items():
        parameters[name].data.copy_(tensor)


def keep_best(model: torch.nn.Module, folder: Path, note: Mapping[str, float]) -> None:
    """Write the trained parameters, and then the note that says of which step they are."""
    write_trained(model, folder / BEST_WEIGHTS)
    write_whole(folder / BEST_NOTE, json.dumps(note).encode())


def best_note(folder: Path) -> dict[str, float] | None:
    """Step of the kept weights, and the value they were kept for; None where none are kept."""
    path = folder / BEST_NOTE
    if not path.is_file():
        return None
    note: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return note


def last_save(folder: Path, *, remove_halves: bool = True) -> tuple[Path, float] | None:
    """The latest whole save and the seconds spent up to it; halves that a kill left are removed, if asked."""
    import shutil

    whole: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if (path / WHOLE_MARK).is_file():
            whole.append((int(path.name.rpartition("-")[2]), path))
        elif remove_halves:
            shutil.rmtree(path)
    if not whole:
        return None
    latest = max(whole)[1]
    return latest, float(json.loads((latest / WHOLE_MARK).read_text(encoding="utf-8"))["seconds"])


def write_whole(path: Path, data: bytes) -> None:
    """Write by rename, so that a kill leaves the old file or the new one."""
    draft = path.with_name(f".{path.name}.tmp")
    with draft.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(path)
