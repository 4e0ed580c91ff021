"""What recipes that train have in common: the schedule, the base, transformers' `Trainer`, the best weights, the cost.

A recipe calls, in this order: `plan_schedule`, `load_base` (or `empty_model` for a preview), its own choice of what is
trained, `fit`, its own way of saving, `result_of`.
"""

from __future__ import annotations

import errno
import math
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mhe import RecipeResult, ShareDoneError, UserError
from mhe_hf import HfOptions, adapters_of, few_bits_of, load_configuration, load_model, needed_class, write_planned
from mhe_hf import empty_model as model_without_weights
from mhe_hf.batch_memory import is_out_of_memory
from mhe_hf.training.arguments import check_trackers, is_on_cpu, shared_arguments
from mhe_hf.training.devices import choose_attention, choose_precision, planned_precision, refused_precision
from mhe_hf.training.memory import peak_device_bytes, peak_host_bytes, readable_size, what_to_lower
from mhe_hf.training.yardsticks import Yardstick, choose_yardstick, is_out_of_patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback

    from mhe import RecipeJob
    from mhe_hf.training.answering import ValidationAnswers
    from mhe_hf.training.modules import Shares
    from mhe_hf.training.options import TrainingOptions
    from mhe_hf.training.watching import WatchedTrainer, WholeSaves

UNWRITTEN = "inline_container.cc"
"""In torch's error where the disk took only part of an optimizer's state; the system's own reason is lost there."""
HISTORY_KEYS = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many steps, and when something happens between them."""

    rows: int
    steps: int
    evaluate_every: int
    save_every: int
    precision: str
    """As asked for; of a dry run perhaps what only another machine can do."""
    refusal: str | None = None
    """Why this machine cannot train in that precision; only dry runs come so far."""
    yardstick: Yardstick = field(default_factory=Yardstick)
    """What the best validation is chosen by."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A finished training; the model holds the weights that are wanted."""

    trainer: WatchedTrainer
    saves: WholeSaves
    note: str
    """Which weights those are."""


def fit(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    options: TrainingOptions,
    job: RecipeJob,
    schedule: Schedule,
    callbacks: Sequence[TrainerCallback] = (),
    make_trainer: Callable[..., WatchedTrainer] | None = None,
) -> Fitted:
    """Train what `requires_grad`, from the last whole save where there is one, and keep the best or the last weights.

    `callbacks` are the recipe's own; `make_trainer` is called as `WatchedTrainer`, for a loss of its own. Raises
    `UserError` where memory runs out or the loss is no number any more, and `ShareDoneError` at the end in every
    process but the first: what comes after is for one.
    """
    trainer, saves = train(model, processor, options, job, schedule, callbacks, make_trainer)
    if job.process:
        raise ShareDoneError(f"process {job.process} of {job.processes} has done its share of the training")
    # What an attempt that was killed while it saved has left there.
    shutil.rmtree(job.folder / "model", ignore_errors=True)
    return Fitted(trainer, saves, choose_weights(trainer, options, job))


def result_of(
    fitted: Fitted,
    options: TrainingOptions,
    job: RecipeJob,
    shares: Shares,
    schedule: Schedule,
    *,
    loads_in: Sequence[str] = ("transformers",),
    needs_class: str | None = None,
    model_options: Mapping[str, object] | None = None,
    notes: Sequence[str] = (),
) -> RecipeResult:
    """The result of a training whose weights lie in `job.folder / "model"`; draws the learning curve beside it."""
    from mhe_hf.training.curves import draw_curve

    state = fitted.trainer.state
    keys = dict.fromkeys((*HISTORY_KEYS, schedule.yardstick.key))
    history = [{k: float(entry[k]) for k in keys if k in entry} for entry in state.log_history if "step" in entry]
    history = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
    (job.folder / "curve.svg").write_text(draw_curve(history, schedule.yardstick), encoding="utf-8")
    seen = state.global_step * examples_a_step(options, job)
    together = (f"trained by {job.processes} processes together",) if job.processes > 1 else ()
    own = needed_class(fitted.trainer.own_model)
    return RecipeResult(
        model_folder=job.folder / "model",
        parameters=shares.parameters,
        trainable_parameters=shares.trainable,
        modules=shares.modules,
        options=dict(model_options or {}),
        history=history,
        seconds=fitted.saves.seconds,
        samples_per_second=seen * len(job.train) / schedule.rows / fitted.saves.seconds,
        peak_host_bytes=peak_host_bytes(),
        peak_device_bytes=peak_device_bytes(),
        device=str(fitted.trainer.args.device),
        loads_in=() if own else tuple(loads_in),
        needs_class=needs_class or own,
        notes=(f"computed in {schedule.precision}", _attention_note(fitted), *together, fitted.note, *notes),
    )


def _attention_note(fitted: Fitted) -> str:
    model: PreTrainedModel = fitted.trainer.own_model  # type: ignore[assignment]
    return f"attention by {model.config._attn_implementation}"


def preview_of(
    job: RecipeJob,
    shares: Shares,
    schedule: Schedule,
    needed_bytes: float,
    notes: Sequence[str] = (),
    *,
    model_folder: Path | None = None,
    model_options: Mapping[str, object] | None = None,
) -> RecipeResult:
    """What a dry run tells. `needed_bytes` are for weights, gradients and moments.

    `model_folder` is what `write_planned` wrote; where left out, the result has the shape of the base.
    """
    job.report("plan", plan_numbers(shares, schedule))
    refused = (f"this machine cannot train it in {schedule.precision}: {schedule.refusal}",) if schedule.refusal else ()
    return RecipeResult(
        model_folder=model_folder or write_planned(job),
        options=dict(model_options or {}),
        needed_bytes=needed_bytes,
        parameters=shares.parameters,
        trainable_parameters=shares.trainable,
        modules=shares.modules,
        notes=(
            f"{schedule.steps:,} steps over {schedule.rows:,} rows, {schedule.precision}",
            *refused,
            f"about {readable_size(needed_bytes)} for weights, gradients and moments, and the activations on top",
            *notes,
        ),
    )


# ---------------------------------------------------------------- before


def plan_schedule(options: TrainingOptions, job: RecipeJob) -> Schedule:
    """Steps, precision and what weights are chosen by.

    Raises `UserError` where there is nothing to train on, for a `best_by` that cannot be had, and, where it is no dry
    run, for a precision that this machine cannot do.
    """
    from mhe_hf.training.batches import Rows

    if not job.train and not job.expected_examples:
        raise UserError("this recipe trains, and no training data was given: name a task with --task.")
    check_trackers(options)
    rows = len(Rows(job.train, getattr(options, "questions_per_row", 1), job.seed)) or job.expected_examples
    a_epoch = math.ceil(math.ceil(rows / (options.batch_size * job.processes)) / options.gradient_accumulation)
    steps = options.max_steps or math.ceil(options.epochs * a_epoch)
    return Schedule(
        rows=rows,
        steps=steps,
        evaluate_every=min(options.evaluate_every or a_epoch, steps),
        save_every=min(options.save_every or a_epoch, steps),
        # What is planned here may be for another machine.
        precision=planned_precision(options) if job.dry_run else choose_precision(options),
        refusal=refused_precision(options),
        yardstick=choose_yardstick(options, job),
    )


def examples_a_step(options: TrainingOptions, job: RecipeJob) -> int:
    """How many rows one step of all processes together sees."""
    return options.batch_size * options.gradient_accumulation * job.processes


def load_base(
    options: TrainingOptions, job: RecipeJob, changes: Mapping[str, object] | None = None
) -> tuple[PreTrainedModel, ProcessorMixin, torch.dtype | None]:
    """The base in float32, or as `changes` to its options say, with its processor, and the dtype it is published in.

    Adapters that the base consists of are merged into its weights, where there are no `changes`.

    Raises `UserError` for a quantised base that `changes` do not quantise again, `ModelUnusableError`.
    """
    import torch

    if job.processes > 1:
        from accelerate import PartialState

        # Brings the processes together, and gives each its own GPU before anything is loaded there.
        PartialState(cpu=is_on_cpu(options, job))
    spec = job.base.spec
    chosen = HfOptions.model_validate(spec.options)
    wanted: dict[str, object] = {"dtype": "float32", **(changes or {})}
    if "attn_implementation" not in wanted:
        wanted["attn_implementation"] = choose_attention(options, job)
    check_whole(job, is_quantised_anew="quantization" in wanted)
    if changes is None and adapters_of(job.base, offline=job.offline):
        # What is trained and saved are weights under their published names.
        wanted["merge_adapter"] = True
    if options.device == "cpu":
        wanted["device"] = "cpu"
    model, processor = load_model(spec, chosen.model_copy(update=wanted), offline=job.offline)
    published = load_configuration(spec, chosen, offline=job.offline).dtype
    return model, processor, published if isinstance(published, torch.dtype) else None


def check_whole(job: RecipeJob, *, is_quantised_anew: bool = False) -> None:
    """Raises `UserError` for a base in few bits, but for one that is so while loading and `is_quantised_anew`."""
    spec = job.base.spec
    found = few_bits_of(job.base, offline=job.offline)
    if found is None or (is_quantised_anew and HfOptions.model_validate(spec.options).quantization != "none"):
        return
    raise UserError(
        f"model {spec.name} is quantised ({found}), and weights of 4 or 8 bits cannot be trained whole. "
        "Start from the model it was quantised from, which the recipe qlora quantises while it loads; "
        "or make its weights whole with the recipe merge."
    )


def empty_model(job: RecipeJob, *, is_quantised_anew: bool = False) -> PreTrainedModel:
    """The model's shape without its weights. Raises `ModelUnusableError` where its configuration cannot be read, and
    what `check_whole` raises.
    """
    check_whole(job, is_quantised_anew=is_quantised_anew)
    spec = job.base.spec
    return model_without_weights(load_configuration(spec, HfOptions.model_validate(spec.options), offline=job.offline))


def plan_numbers(shares: Shares, schedule: Schedule) -> Mapping[str, float]:
    """Counts of a plan, as `job.report("plan", …)` takes them."""
    numbers = {"parameters": shares.parameters, "trainable": shares.trainable, "steps": schedule.steps}
    for module, (total, trained) in shares.modules.items():
        numbers |= {f"{module} parameters": total, f"{module} trainable": trained}
    return {name: float(value) for name, value in numbers.items()}


# ---------------------------------------------------------------- training


def train(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    options: TrainingOptions,
    job: RecipeJob,
    schedule: Schedule,
    callbacks: Sequence[TrainerCallback] = (),
    make_trainer: Callable[..., WatchedTrainer] | None = None,
) -> tuple[WatchedTrainer, WholeSaves]:
    """Train to the end, from the last whole save where there is one; the model holds the last weights then.

    Raises `UserError` where memory runs out or the loss is no number any more.
    """
    from transformers import PrinterCallback, TrainerState, set_seed

    from mhe_hf.collation import context_of
    from mhe_hf.training import watching
    from mhe_hf.training.batches import RowCollator, Rows

    set_seed(job.seed)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found = watching.last_save(job.folder, remove_halves=not job.process)
    saves = watching.WholeSaves(found[1] if found else 0.0)
    questions = getattr(options, "questions_per_row", 1)
    trainer = (make_trainer or watching.WatchedTrainer)(
        job.train,
        options.warmup if options.scheduler == "one_cycle" else None,
        model=model,
        args=shared_arguments(options, job, schedule),
        data_collator=RowCollator(processor, context_of(model.config)),
        train_dataset=Rows(job.train, questions, job.seed),
        eval_dataset=Rows(job.validation, questions, job.seed) if job.validation else None,
        callbacks=[
            watching.BestKeeper(job.folder, options.patience, schedule.steps, schedule.yardstick),
            saves,
            watching.Reporter(job.report, examples_a_step(options, job), schedule.yardstick),
            *callbacks,
        ],
    )
    trainer.yardstick = schedule.yardstick
    trainer.answers = _validation_answers(model, processor, options, job, schedule)
    # It prints to stdout, which is for results.
    trainer.remove_callback(PrinterCallback)
    if found is not None:
        state = TrainerState.load_from_json(str(found[0] / "trainer_state.json"))
        costs = schedule.yardstick.costs(state.log_history)
        if state.global_step >= schedule.steps or is_out_of_patience(costs, options.patience):
            # `Trainer.train` would take one step too many.
            trainer._load_from_checkpoint(str(found[0]))
            trainer.state = state
            return trainer, saves
    _train_or_tell(trainer, found[0] if found else None, options, job)
    return trainer, saves


def _train_or_tell(trainer: WatchedTrainer, save: Path | None, options: TrainingOptions, job: RecipeJob) -> None:
    """Train on from the save. Raises what `train` says, in place of the libraries' own errors."""
    try:
        trainer.train(resume_from_checkpoint=str(save) if save else None)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(what_to_lower(options, error)) from None
        if UNWRITTEN in str(error):
            raise OSError(errno.ENOSPC, "a save could not be written whole", str(job.folder)) from None
        raise


def _validation_answers(
    model: PreTrainedModel, processor: ProcessorMixin, options: TrainingOptions, job: RecipeJob, schedule: Schedule
) -> ValidationAnswers | None:
    """What measures a metric of answers; None where the validation loss will do. Raises `UserError`."""
    if job.scorer is None or not schedule.yardstick.samples:
        return None
    from mhe_hf.training.answering import ValidationAnswers

    answers = ValidationAnswers(job.scorer, schedule.yardstick, model, processor, options)
    answers.rehearse(job)
    return answers


def choose_weights(trainer: WatchedTrainer, options: TrainingOptions, job: RecipeJob) -> str:
    """Put the weights of the best validation into the model, where those are wanted; says which they are."""
    from mhe_hf.training.watching import BEST_WEIGHTS, best_note, load_trained

    best = best_note(job.folder)
    steps = trainer.state.global_step
    if options.keep == "last" or best is None:
        return f"weights of the last step, {steps}"
    load_trained(trainer.own_model, job.folder / BEST_WEIGHTS)
    chosen = trainer.yardstick
    return f"weights of step {best['step']:.0f} of {steps}, with the {chosen.best} {chosen.label}, {best['value']:.4f}"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of transformers while ours is shown."""
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            logging.enable_progress_bar()
