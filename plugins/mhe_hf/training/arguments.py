"""The settings of a training in the words of transformers' `Trainer`."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING

from mhe import UserError
from mhe_hf.training.devices import uses_cuda

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from mhe import RecipeJob
    from mhe_hf.training.fitting import Schedule
    from mhe_hf.training.options import TrainingOptions


def training_arguments(options: TrainingOptions, job: RecipeJob, schedule: Schedule) -> TrainingArguments:
    """Ours in transformers' words. Nothing is printed by the trainer: `job.report` tells."""
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
        use_cpu=is_on_cpu(options, job),
        dataloader_pin_memory=uses_cuda(options),
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


def shared_arguments(options: TrainingOptions, job: RecipeJob, schedule: Schedule) -> TrainingArguments:
    """`training_arguments`, which bring the processes together. Raises `UserError` where not all of them came."""
    arguments = training_arguments(options, job, schedule)
    if arguments.world_size != job.processes:
        raise UserError(
            f"{job.processes} process(es) were announced by WORLD_SIZE, and the trainer found {arguments.world_size}. "
            "Start them with torchrun --nproc_per_node N -m mhe.cli.main tune …"
        )
    return arguments


def is_on_cpu(options: TrainingOptions, job: RecipeJob) -> bool:
    """Whether the trainer is to be told to use no device; of several processes it must be, where there is none."""
    import torch

    return options.device == "cpu" or (job.processes > 1 and not torch.cuda.is_available())


def check_trackers(options: TrainingOptions) -> None:
    """Raises `UserError` for a tracker that transformers does not know, or that is not installed."""
    if not options.trackers:
        return
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )

    for name in options.trackers:
        if name not in INTEGRATION_TO_CALLBACK:
            close = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"there is no tracker {name!r}.{hint} Known: {', '.join(sorted(INTEGRATION_TO_CALLBACK))}.")
        if name not in get_available_reporting_integrations():
            raise UserError(f"tracker {name} is not installed: pip install {name}, or leave it out of trackers.")
