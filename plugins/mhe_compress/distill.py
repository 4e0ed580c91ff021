"""Recipe `distill`: a student learns what a teacher expects of every token of the answers, or what it answers.

    loss = (1 - alpha) · cross-entropy with the true answer + alpha · T² · divergence from the teacher at temperature T

    mhe tune --model STUDENT --recipe distill --input teacher=TEACHER --task vqa-rad --name my-student
    mhe tune --model TEACHER --recipe distill --set keep_layers=0.5 --task vqa-rad --name my-half
    mhe tune … --set student='{"text_config": {"num_hidden_layers": 2}}'     a smaller model with no weights yet
    mhe tune … --set mode=sequence            the teacher's answers in the place of its logits, for any tokenizer
    mhe tune … --set language=adapter         LoRA on the student
    mhe tune … --set teacher_quantization=nf4 a teacher in 4 bits

Where the student is made from the base and no teacher is given, the base is the teacher. Student and teacher must have
one tokenizer, but for mode `sequence`; prompts, images and templates may differ.

With `teacher_logits=cached` the teacher reads every example once, before the student is loaded, and its `top_k`
likeliest logits of each token are kept on disk; the size is told and the disk is asked first. With `online` it reads
every batch, beside the student. Whatever does not depend on the student is kept for later trainings: temperature,
weights and divergence can be changed without asking the teacher again.

Costs what the recipe `full` (or `lora`) costs for the student, and the teacher's weights in 16 bits on a GPU, 32 on
a CPU, or fewer. Validation is the hard loss alone, so that it compares with other recipes'. Interrupted, it continues:
from the examples that the teacher has not read yet, or from the last save.

Source: Hinton, Vinyals, Dean, arXiv:1503.02531; sequences: Kim and Rush, EMNLP 2016.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from mhe_compress.distill_options import DistillOptions
from mhe_compress.distill_plan import choose_trained, make_plan, notes_of
from mhe_compress.student import is_derived, make_student
from mhe_compress.teacher import find_teacher, loading_options, open_teacher
from mhe_hf import save_published, write_planned
from mhe_hf.training.adapter_training import frozen_dtype
from mhe_hf.training.adapters import places_of, save_adapters
from mhe_hf.training.fitting import fit, plan_numbers, plan_schedule, preview_of, quiet_transformers, result_of
from mhe_hf.training.memory import readable_size

if TYPE_CHECKING:
    from pydantic import BaseModel
    from torch.nn import Module
    from transformers import PreTrainedModel

    from mhe import InputModel, RecipeJob, RecipeResult
    from mhe_compress.distill_plan import Plan
    from mhe_compress.distill_training import Distillation
    from mhe_compress.student import Student
    from mhe_hf.training.adapters import AdapterSet
    from mhe_hf.training.fitting import Schedule


class DistillRecipe:
    """Knowledge distillation."""

    Options: ClassVar[type[BaseModel]] = DistillOptions
    name = "distill"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, DistillOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Distil, or with `job.dry_run` tell what would be done."""
        options = self.options
        teacher = find_teacher(options, job)
        schedule = plan_schedule(options, job)
        plan = make_plan(options, job, teacher, schedule)
        if job.dry_run:
            places = places_of(plan.adapters) if plan.adapters else []
            return preview_of(
                job,
                plan.shares,
                schedule,
                plan.needed_bytes(options),
                notes_of(plan, options, job),
                model_folder=write_planned(job, plan.model.config if is_derived(options) else None, adapters=places),
            )
        job.report("plan", {**plan_numbers(plan.shares, schedule), **_teacher_numbers(plan)})
        with quiet_transformers():
            notes = [_what_is_learnt(options, teacher)]
            if options.mode == "sequence":
                job, note = _taught(options, job, teacher, schedule)
                schedule = plan_schedule(options, job)
                notes.append(note)
            elif plan.cache is not None:
                _fill_cache(plan, options, job, schedule)
            return _train(plan, options, job, schedule, notes)


def _teacher_numbers(plan: Plan) -> dict[str, float]:
    if not plan.teacher_bytes:
        return {}
    numbers = {"teacher parameters": float(plan.teacher_parameters)}
    return numbers | ({"cache bytes": float(plan.cache_bytes)} if plan.cache is not None else {})


def _what_is_learnt(options: DistillOptions, teacher: InputModel) -> str:
    if options.mode == "sequence":
        return f"learnt the answers of {teacher.spec.name}"
    if not options.asks_teacher:
        return "alpha is 0: learnt from the true answers alone"
    states = f", states ({options.hidden_layers}) weigh {options.hidden_weight:g}" if options.hidden_weight else ""
    known = f"{options.top_k} likeliest tokens and the rest" if options.teacher_logits == "cached" else "all tokens"
    return (
        f"learnt {options.divergence} from {teacher.spec.name} at T = {options.temperature:g}, alpha = "
        f"{options.alpha:g}, over {known}{states}"
    )


# ---------------------------------------------------------------- what the teacher does before


def _fill_cache(plan: Plan, options: DistillOptions, job: RecipeJob, schedule: Schedule) -> None:
    """Let the teacher read what it has not read yet. Raises `UserError` where the disk is too small, at once."""
    from mhe_compress.teacher_cache import check_room, missing_examples
    from mhe_compress.teacher_targets import teacher_rows

    assert plan.cache is not None
    wanted = list(missing_examples(plan.cache, job.train))
    if not wanted:
        return
    what = f"what teacher {plan.teacher.spec.name} says of {len(wanted):,} answers, {options.top_k} logits a token,"
    check_room(plan.cache.folder, plan.cache_bytes, what)
    model, processor = open_teacher(plan.teacher, options, job, frozen_dtype(schedule))
    plan.cache.add(
        teacher_rows(
            model,
            processor,
            job.train,
            wanted,
            top_k=options.top_k,
            vocabulary=plan.vocabulary,
            report=lambda done, total: job.report("teacher", {"step": done, "steps": total}),
        )
    )
    del model
    _free()


def _taught(options: DistillOptions, job: RecipeJob, teacher: InputModel, schedule: Schedule) -> tuple[RecipeJob, str]:
    """The job with the teacher's answers in the place of the true ones."""
    from mhe_compress.teacher_answers import AnswerFile, question_of, taught_examples, write_answers

    chosen = loading_options(teacher, options, frozen_dtype(schedule))
    requests = [question_of(example, options.teacher_max_new_tokens) for example in job.train]
    file = AnswerFile({"teacher": teacher.fingerprint, "options": chosen.in_key()})
    write_answers(
        teacher,
        # A fixed number, so that a resumed teacher forms the batches of an undisturbed one.
        chosen.model_copy(update={"batch_size": options.batch_size}),
        list({request.sample_id: request for request in requests}.values()),
        file,
        lambda done, total: job.report("teacher", {"step": done, "steps": total}),
        offline=job.offline,
    )
    taught, empty = taught_examples(job.train, requests, file.answers)
    _free()
    left_out = f"; {empty:,} that it left empty are dropped" if empty else ""
    return replace(job, train=tuple(taught)), f"{len(taught):,} answers of the teacher{left_out}, in {file.path}"


def _free() -> None:
    """Give the teacher's memory back before the student needs it."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---------------------------------------------------------------- the student


def _train(plan: Plan, options: DistillOptions, job: RecipeJob, schedule: Schedule, notes: list[str]) -> RecipeResult:
    from transformers import set_seed

    # Adapters and projections are drawn at random.
    set_seed(job.seed)
    keeps_dtype = options.has_adapters and not is_derived(options)
    student = make_student(options, job, {"dtype": frozen_dtype(schedule)} if keeps_dtype else None)
    shares, adapters = choose_trained(student.model, options, job)
    make_trainer = None
    if options.mode == "logits" and options.asks_teacher:
        from mhe_compress.distill_training import DistillTrainer

        make_trainer = partial(DistillTrainer, distillation=_distillation(plan, options, job, schedule, student))
    fitted = fit(student.model, student.processor, options, job, schedule, make_trainer=make_trainer)
    _save(student, adapters, options, job)
    if plan.cache is not None:
        size = sum(path.stat().st_size for path in plan.cache.folder.glob("*.safetensors"))
        notes.append(f"the teacher's logits take {readable_size(size)} on disk")
    has_own_weights = adapters is None or adapters.has_full_modules or is_derived(options)
    return result_of(
        fitted,
        options,
        job,
        shares,
        schedule,
        loads_in=(
            *(("transformers",) if has_own_weights else ()),
            *(("peft",) if adapters is not None else ()),
        ),
        notes=(*student.notes, *notes),
    )


def _distillation(
    plan: Plan, options: DistillOptions, job: RecipeJob, schedule: Schedule, student: Student
) -> Distillation:
    from mhe_compress.distill_training import Distillation
    from mhe_compress.teacher_targets import CachedTargets, OnlineTargets

    name = plan.teacher.spec.name
    common = {
        "temperature": options.temperature,
        "alpha": options.alpha,
        "divergence": options.divergence,
        "vocabulary": plan.vocabulary,
    }
    if plan.cache is not None:
        kept = CachedTargets(plan.cache, job.train, name, temperature=options.temperature, vocabulary=plan.vocabulary)
        return Distillation(targets=kept, **common)  # type: ignore[arg-type]
    model, processor = open_teacher(plan.teacher, options, job, frozen_dtype(schedule))
    layers = None
    own_layers: list[Module] = []
    if options.hidden_weight:
        from mhe_compress.distill_matching import match_states

        own_layers, layers = match_states(student.model, model, options.hidden_layers, job.architectures)
    targets = OnlineTargets(
        model,
        processor,
        job.train,
        name,
        shares_inputs=(plan.teacher.fingerprint, plan.teacher.spec.options)
        == (job.base.fingerprint, job.base.spec.options),
        vocabulary=plan.vocabulary,
        layers=layers,
    )
    return Distillation(targets=targets, hidden_weight=options.hidden_weight, layers=own_layers, **common)  # type: ignore[arg-type]


def _save(student: Student, adapters: AdapterSet | None, options: DistillOptions, job: RecipeJob) -> None:
    from mhe_compress.distill_training import PROJECTION

    model: PreTrainedModel = student.model
    if hasattr(model, PROJECTION):
        delattr(model, PROJECTION)
    folder = job.folder / "model"
    if adapters is None:
        save_published(model, student.processor, folder, student.dtype)
    else:
        save_adapters(
            model, student.processor, adapters, job.base, folder, student.dtype, with_base=is_derived(options)
        )
