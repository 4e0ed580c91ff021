"""What recipes that train have in common: the schedule, the base, transformers' `Trainer`, the best weights, the cost.

A recipe calls, in this order: `plan_schedule`, `load_base` (or `empty_model` for a preview), its own choice of what is
trained, `fit`, its own way of saving, `result_of`.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe import RecipeResult, ShareDoneError, UserError
from mhe_hf import HfOptions, base_of_adapters, load_configuration, load_model
from mhe_hf import empty_model as model_without_weights
from mhe_hf.training.memory import is_out_of_memory, peak_device_bytes, peak_host_bytes, readable_size, what_to_lower

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback, TrainingArguments

    from mhe import RecipeJob
    from mhe_hf.training.modules import Shares
    from mhe_hf.training.options import TrainingOptions
    from mhe_hf.training.watching import WatchedTrainer, WholeSaves

HISTORY_KEYS = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many steps, and when something happens between them."""

    rows: int
    steps: int
    evaluate_every: int
    save_every: int
    precision: str


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
) -> Fitted:
    """Train what `requires_grad`, from the last whole save where there is one, and keep the best or the last weights.

    `callbacks` are the recipe's own. Raises `UserError` where memory runs out or the loss is no number any more, and
    `ShareDoneError` at the end in every process but the first: what comes after is for one.
    """
    trainer, saves = train(model, processor, options, job, schedule, callbacks)
    if job.process:
        raise ShareDoneError(f"process {job.process} of {job.processes} has done its share of the training")
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
    history = [
        {k: float(entry[k]) for k in HISTORY_KEYS if k in entry} for entry in state.log_history if "step" in entry
    ]
    history = [entry for entry in history if "loss" in entry or "eval_loss" in entry]
    (job.folder / "curve.svg").write_text(draw_curve(history), encoding="utf-8")
    seen = state.global_step * examples_a_step(options, job)
    together = (f"trained by {job.processes} processes together",) if job.processes > 1 else ()
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
        loads_in=tuple(loads_in),
        needs_class=needs_class,
        notes=(f"computed in {schedule.precision}", *together, fitted.note, *notes),
    )


def preview_of(
    job: RecipeJob, shares: Shares, schedule: Schedule, needed_bytes: float, notes: Sequence[str] = ()
) -> RecipeResult:
    """What a dry run tells. `needed_bytes` are for weights, gradients and moments."""
    job.report("plan", plan_numbers(shares, schedule))
    return RecipeResult(
        model_folder=job.folder / "model",
        parameters=shares.parameters,
        trainable_parameters=shares.trainable,
        modules=shares.modules,
        notes=(
            f"{schedule.steps:,} steps over {schedule.rows:,} rows, {schedule.precision}",
            f"about {readable_size(needed_bytes)} for weights, gradients and moments, and the activations on top",
            *notes,
        ),
    )


# ---------------------------------------------------------------- before


def plan_schedule(options: TrainingOptions, job: RecipeJob) -> Schedule:
    """Steps and precision. Raises `UserError` where there is nothing to train on."""
    from mhe_hf.training.batches import Rows

    if not job.train:
        raise UserError("this recipe trains, and no training data was given: name a task with --task.")
    rows = len(Rows(job.train, getattr(options, "questions_per_row", 1), job.seed))
    a_epoch = math.ceil(math.ceil(rows / (options.batch_size * job.processes)) / options.gradient_accumulation)
    steps = options.max_steps or math.ceil(options.epochs * a_epoch)
    return Schedule(
        rows=rows,
        steps=steps,
        evaluate_every=min(options.evaluate_every or a_epoch, steps),
        save_every=min(options.save_every or a_epoch, steps),
        precision=choose_precision(options),
    )


def examples_a_step(options: TrainingOptions, job: RecipeJob) -> int:
    """How many rows one step of all processes together sees."""
    return options.batch_size * options.gradient_accumulation * job.processes


def choose_precision(options: TrainingOptions) -> str:
    """`fp32`, `bf16` or `fp16`: as asked, or what the device is good at. Raises `UserError` for what it cannot do."""
    import torch

    has_cuda = options.device == "auto" and torch.cuda.is_available()
    if options.dtype != "auto":
        if options.dtype == "fp16" and not has_cuda:
            raise UserError("dtype=fp16 needs a CUDA device: use dtype=auto, fp32 or bf16.")
        if options.dtype == "bf16" and has_cuda and not torch.cuda.is_bf16_supported():
            raise UserError("this GPU has no bf16: use dtype=auto, fp16 or fp32.")
        return options.dtype
    if not has_cuda:
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


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
        PartialState(cpu=_is_on_cpu(options, job))
    spec = job.base.spec
    chosen = HfOptions.model_validate(spec.options)
    wanted: dict[str, object] = {
        "dtype": "float32",
        "attn_implementation": options.attn_implementation or chosen.attn_implementation,
        **(changes or {}),
    }
    if chosen.quantization != "none" and "quantization" not in wanted:
        raise UserError(
            f"model {spec.name} is quantised ({chosen.quantization}), and weights of 4 or 8 bits cannot be trained "
            "whole. Start from the model it was quantised from, or use the recipe qlora."
        )
    if changes is None and base_of_adapters(spec, chosen, offline=job.offline):
        # What is trained and saved are weights under their published names.
        wanted["merge_adapter"] = True
    if options.device == "cpu":
        wanted["device"] = "cpu"
    model, processor = load_model(spec, chosen.model_copy(update=wanted), offline=job.offline)
    published = load_configuration(spec, chosen, offline=job.offline).dtype
    return model, processor, published if isinstance(published, torch.dtype) else None


def _is_on_cpu(options: TrainingOptions, job: RecipeJob) -> bool:
    """Whether the trainer is to be told to use no device; of several processes it must be, where there is none."""
    import torch

    return options.device == "cpu" or (job.processes > 1 and not torch.cuda.is_available())


def empty_model(job: RecipeJob) -> PreTrainedModel:
    """The model's shape without its weights. Raises `ModelUnusableError` where its configuration cannot be read."""
    spec = job.base.spec
    return model_without_weights(load_configuration(spec, HfOptions.model_validate(spec.options), offline=job.offline))


def plan_numbers(shares: Shares, schedule: Schedule) -> Mapping[str, float]:
    """Counts of a plan, as `job.report("plan", …)` takes them."""
    numbers = {"parameters": shares.parameters, "trainable": shares.trainable, "steps": schedule.steps}
    for module, (total, trained) in shares.modules.items():
        numbers |= {f"{module} parameters": total, f"{module} trainable": trained}
    return {name: float(value) for name, value in numbers.items()}


# ---------------------------------------------------------------- training


def training_arguments(options: TrainingOptions, job: RecipeJob, schedule: Schedule) -> TrainingArguments:
    """Ours in transformers' words. Nothing is printed by the trainer: `job.report` tells."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(job.folder),
        max_steps=schedule.steps,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        # The library knows no one-cycle schedule: the trainer makes it, and this stands for none.
        lr_scheduler_type="constant" if options.scheduler == "one_cycle" else options.scheduler,
        warmup_steps=0 if options.scheduler == "constant" else math.ceil(options.warmup * schedule.steps),
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        bf16=schedule.precision == "bf16",
        fp16=schedule.precision == "fp16",
        use_cpu=_is_on_cpu(options, job),
        dataloader_pin_memory=options.device == "auto" and torch.cuda.is_available(),
        eval_strategy="steps" if job.validation else "no",
        eval_steps=schedule.evaluate_every,
        prediction_loss_only=True,
        save_strategy="steps",
        save_steps=schedule.save_every,
        # Two, so that there is a whole one while another is written.
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=max(1, schedule.steps // 100),
        logging_nan_inf_filter=False,
        seed=job.seed,
        data_seed=job.seed,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=list(options.trackers) or "none",
        disable_tqdm=True,
        log_level="error",
    )


def _shared_arguments(options: TrainingOptions, job: RecipeJob, schedule: Schedule) -> TrainingArguments:
    """`training_arguments`, which bring the processes together. Raises `UserError` where not all of them came."""
    arguments = training_arguments(options, job, schedule)
    if arguments.world_size != job.processes:
        raise UserError(
            f"{job.processes} process(es) were announced by WORLD_SIZE, and the trainer found {arguments.world_size}. "
            "Start them with torchrun --nproc_per_node N -m mhe.cli.main tune …"
        )
    return arguments


def train(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    options: TrainingOptions,
    job: RecipeJob,
    schedule: Schedule,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[WatchedTrainer, WholeSaves]:
    """Train to the end, from the last whole save where there is one; the model holds the last weights then.

    Raises `UserError` where memory runs out or the loss is no number any more.
    """
    from transformers import PrinterCallback, TrainerState, set_seed

    from mhe_hf.training import watching
    from mhe_hf.training.batches import RowCollator, Rows, context_of

    set_seed(job.seed)
    if options.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found = watching.last_save(job.folder, remove_halves=not job.process)
    saves = watching.WholeSaves(found[1] if found else 0.0)
    questions = getattr(options, "questions_per_row", 1)
    gradients = watching.GradientWatch()
    trainer = watching.WatchedTrainer(
        job.train,
        options.warmup if options.scheduler == "one_cycle" else None,
        model=model,
        args=_shared_arguments(options, job, schedule),
        data_collator=RowCollator(processor, context_of(model.config)),
        train_dataset=Rows(job.train, questions, job.seed),
        eval_dataset=Rows(job.validation, questions, job.seed) if job.validation else None,
        callbacks=[
            watching.BestKeeper(job.folder, options.patience, schedule.steps),
            saves,
            gradients,
            watching.Reporter(job.report, examples_a_step(options, job)),
            *callbacks,
        ],
    )
    gradients.trainer = trainer
    # It prints to stdout, which is for results.
    trainer.remove_callback(PrinterCallback)
    if found is not None:
        state = TrainerState.load_from_json(str(found[0] / "trainer_state.json"))
        losses = watching.validation_losses(state.log_history)
        if state.global_step >= schedule.steps or watching.is_out_of_patience(losses, options.patience):
            # `Trainer.train` would take one step too many.
            trainer._load_from_checkpoint(str(found[0]))
            trainer.state = state
            return trainer, saves
    try:
        trainer.train(resume_from_checkpoint=str(found[0]) if found else None)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(what_to_lower(options, error)) from None
        raise
    return trainer, saves


def choose_weights(trainer: WatchedTrainer, options: TrainingOptions, job: RecipeJob) -> str:
    """Put the weights of the lowest validation loss into the model, where those are wanted; says which they are."""
    from mhe_hf.training.watching import BEST_WEIGHTS, best_note, load_trained

    best = best_note(job.folder)
    steps = trainer.state.global_step
    if options.keep == "last" or best is None:
        return f"weights of the last step, {steps}"
    load_trained(trainer.own_model, job.folder / BEST_WEIGHTS)
    return f"weights of step {best['step']:.0f} of {steps}, with the lowest validation loss, {best['loss']:.4f}"


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
