"""What a distillation will do, found out from configurations alone: parameters, memory, and the cache's size."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe_compress.student import empty_student, is_derived
from mhe_compress.student_layers import text_configuration
from mhe_compress.teacher import (
    check_tokenizers,
    empty_teacher,
    find_processor,
    loading_options,
    shared_vocabulary,
)
from mhe_compress.teacher_cache import TeacherCache, bytes_a_token, missing_examples
from mhe_hf import MODULES, adapters_of, architecture_of, module_parameters
from mhe_hf.training.adapter_training import frozen_bytes, frozen_dtype, refuse_adapted_base
from mhe_hf.training.adapters import put_adapters
from mhe_hf.training.fitting import check_whole
from mhe_hf.training.memory import readable_size
from mhe_hf.training.modules import set_trainable
from mhe_hf.training.targets import choose_targets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from peft import LoraConfig
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import InputModel, RecipeJob
    from mhe_compress.distill_options import DistillOptions
    from mhe_hf.training.adapters import AdapterSet
    from mhe_hf.training.fitting import Schedule
    from mhe_hf.training.modules import Shares

GUESSED_TOKENS = 48
"""Of an answer whose data or tokenizer is not on this machine; roughly a caption of ROCOv2."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A distillation before anything is computed."""

    teacher: InputModel
    shares: Shares
    adapters: AdapterSet | None
    model: PreTrainedModel
    """The student's shape."""
    vocabulary: int
    student_bytes: float
    teacher_bytes: float
    teacher_parameters: int
    cache: TeacherCache | None
    """Where soft targets are kept, if they are."""
    cache_bytes: int
    """What is yet to be written there."""
    cache_note: str

    def needed_bytes(self, options: DistillOptions) -> float:
        """At once: a teacher that is asked beforehand is gone before the student comes."""
        if options.mode == "logits" and options.teacher_logits == "online":
            return self.student_bytes + self.teacher_bytes
        return max(self.student_bytes, self.teacher_bytes)


def make_plan(options: DistillOptions, job: RecipeJob, teacher: InputModel, schedule: Schedule) -> Plan:
    """Everything that can be known and refused beforehand. Raises `UserError`, `ModelUnusableError`."""
    if options.student is None:
        check_whole(job)
    if options.has_adapters and not is_derived(options):
        refuse_adapted_base(job)
    model = empty_student(options, job)
    shares, adapters = choose_trained(model, options, job)
    processors = (find_processor(job.base, job), find_processor(teacher, job))
    shape = empty_teacher(teacher, job)
    vocabulary = 0
    if options.mode == "logits" and options.asks_teacher:
        vocabulary = _common_tokens(job, teacher, processors, model, shape)
    is_kept = vocabulary > 0 and options.teacher_logits == "cached"
    cache, size, note = _cache(options, job, teacher, vocabulary, processors, schedule) if is_kept else (None, 0, "")
    return Plan(
        teacher=teacher,
        shares=shares,
        adapters=adapters,
        model=model,
        vocabulary=vocabulary,
        student_bytes=_student_bytes(model, options, job, schedule, shares),
        teacher_bytes=frozen_bytes(
            shape,
            architecture_of(str(shape.config.model_type), job.architectures or None),
            _bits(options, teacher),
            schedule,
        )
        if options.mode == "sequence" or options.asks_teacher
        else 0.0,
        teacher_parameters=sum(module_parameters(shape).values()) or sum(p.numel() for p in shape.parameters()),
        cache=cache,
        cache_bytes=size,
        cache_note=note,
    )


def notes_of(plan: Plan, options: DistillOptions, job: RecipeJob) -> tuple[str, ...]:
    """What a dry run tells besides the student's training."""
    name = plan.teacher.spec.name
    notes = []
    total = text_configuration(plan.model.config).num_hidden_layers
    if is_derived(options):
        made = "drawn anew" if options.student is not None else f"kept {options.layer_choice}"
        notes.append(f"student: made from {job.base.spec.name}, {total} language layers, {made}")
    if options.mode == "logits" and not options.asks_teacher:
        return (*notes, "alpha is 0: no teacher is asked")
    bits = "" if options.teacher_quantization == "none" else f" in {options.teacher_quantization}"
    is_beside = options.mode == "logits" and options.teacher_logits == "online"
    notes.append(
        f"teacher: {name}, {plan.teacher_parameters:,} parameters{bits}, about {readable_size(plan.teacher_bytes)}, "
        + ("in memory beside the student" if is_beside else "gone from memory before the student comes")
    )
    if options.mode == "sequence":
        count = len(job.train) or job.expected_examples
        notes.append(f"the teacher answers {count:,} training prompts first; its answers are kept")
    if plan.cache is not None:
        notes.append(plan.cache_note)
        free = shutil.disk_usage(_existing(plan.cache)).free
        if plan.cache_bytes > free:
            notes.append(f"the disk has only {readable_size(free)} free: it will be refused")
    return tuple(notes)


def choose_trained(model: PreTrainedModel, options: DistillOptions, job: RecipeJob) -> tuple[Shares, AdapterSet | None]:
    """Set what is trained of the student, in place."""
    treatments = {module: getattr(options, module) for module in MODULES}
    if not options.has_adapters:
        return set_trainable(model, treatments, job.architectures), None
    wanted = {m: getattr(options, f"{m}_targets") for m, treatment in treatments.items() if treatment == "adapter"}
    layers = choose_targets(model, wanted, job.architectures)
    adapters = put_adapters(model, _lora(options), layers, treatments, job.architectures)
    return adapters.shares, adapters


def _lora(options: DistillOptions) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=options.rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.dropout,
        use_rslora=options.rslora,
        bias="none",
    )


def _common_tokens(
    job: RecipeJob,
    teacher: InputModel,
    processors: tuple[ProcessorMixin | None, ProcessorMixin | None],
    student: PreTrainedModel,
    shape: PreTrainedModel,
) -> int:
    from mhe_compress.distill_states import output_head

    ours, theirs = processors
    if ours is None or theirs is None:
        return min(len(output_head(model).weight) for model in (student, shape))  # type: ignore[arg-type]
    check_tokenizers((job.base, ours), (teacher, theirs))
    return shared_vocabulary(student, shape, ours)


def cache_identity(
    options: DistillOptions, teacher: InputModel, vocabulary: int, schedule: Schedule
) -> Mapping[str, object]:
    """What kept logits depend on, besides the examples."""
    return {
        "teacher": teacher.fingerprint,
        "options": loading_options(teacher, options, frozen_dtype(schedule)).in_key(),
        "top_k": min(options.top_k, vocabulary),
        "vocabulary": vocabulary,
    }


def _cache(
    options: DistillOptions,
    job: RecipeJob,
    teacher: InputModel,
    vocabulary: int,
    processors: tuple[ProcessorMixin | None, ProcessorMixin | None],
    schedule: Schedule,
) -> tuple[TeacherCache, int, str]:
    cache = TeacherCache(cache_identity(options, teacher, vocabulary, schedule))
    wanted = list(missing_examples(cache, job.train))
    a_token = bytes_a_token(min(options.top_k, vocabulary))
    if not job.train:
        size = job.expected_examples * GUESSED_TOKENS * a_token
        what = f"{job.expected_examples:,} answers of {GUESSED_TOKENS} tokens, which is a guess"
    else:
        tokens = _answer_tokens([job.train[number].answer for _, number in wanted], processors[1])
        size = tokens * a_token
        what = f"{tokens:,} tokens of {len(wanted):,} answers; {len(cache):,} are kept already"
    note = (
        f"the teacher's logits take about {readable_size(size)} in {cache.folder} ({what}; {a_token:,} bytes a token)"
    )
    return cache, size, note


def _answer_tokens(answers: list[str], processor: ProcessorMixin | None) -> int:
    """Tokens of answers and their ends; rather too many, as what stands before an answer may merge with it."""
    if not answers:
        return 0
    if processor is None:
        return len(answers) * GUESSED_TOKENS
    alone, after = (
        processor.tokenizer([before + answer for answer in answers], add_special_tokens=False)["input_ids"]
        for before in ("", " ")
    )
    return sum(max(len(one), len(other)) + 1 for one, other in zip(alone, after, strict=True))


def _student_bytes(
    model: PreTrainedModel, options: DistillOptions, job: RecipeJob, schedule: Schedule, shares: Shares
) -> float:
    if not options.has_adapters or is_derived(options) or adapters_of(job.base, offline=job.offline):
        return 4 * shares.parameters + 12 * shares.trainable
    architecture = architecture_of(str(model.config.model_type), job.architectures or None)
    return frozen_bytes(model, architecture, {}, schedule) + 16 * shares.trainable


def _bits(options: DistillOptions, teacher: InputModel) -> dict[str, object]:
    chosen = loading_options(teacher, options, "auto")
    if chosen.quantization == "none":
        return {}
    return {
        "quantization": chosen.quantization,
        "double_quant": chosen.double_quant,
        "quantized_modules": chosen.quantized_modules,
    }


def _existing(cache: TeacherCache) -> str:
    return str(next(path for path in [cache.folder, *cache.folder.parents] if path.is_dir()))
