"""The teacher: which model it is, how it is loaded, and whether it speaks the student's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import ModelUnusableError, UserError
from mhe_compress.student import is_derived
from mhe_hf import HfOptions, empty_model, load_configuration, load_model, load_processor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import InputModel, RecipeJob, TrainingExample
    from mhe_compress.distill_options import DistillOptions

ROLE = "teacher"
SEQUENCE_MODE = (
    "Let the student learn the teacher's answers instead, which needs no common tokenizer: --set mode=sequence"
)


def find_teacher(options: DistillOptions, job: RecipeJob) -> InputModel:
    """The model in the role `teacher`; the base itself, where the student is made from it and none is given.

    Raises `UserError` where there is none, and for roles that this recipe does not have.
    """
    if others := sorted(set(job.inputs) - {ROLE}):
        raise UserError(f"the recipe distill reads one further model, in the role {ROLE}; given: {', '.join(others)}.")
    if ROLE in job.inputs:
        return job.inputs[ROLE]
    if is_derived(options):
        return job.base
    raise UserError(
        f"distill needs a teacher: --input {ROLE}=MODEL. Without one the base teaches a smaller student made from "
        'itself: --set keep_layers=0.5, or --set student=\'{"text_config": {"num_hidden_layers": 2}}\'.'
    )


def loading_options(teacher: InputModel, options: DistillOptions, dtype: str) -> HfOptions:
    """How the teacher is loaded: its own options, in the precision and the few bits that are asked for."""
    own = HfOptions.model_validate(teacher.spec.options)
    wanted: dict[str, object] = {"dtype": dtype}
    if options.teacher_quantization != "none":
        if own.quantization not in ("none", options.teacher_quantization):
            raise UserError(
                f"teacher {teacher.spec.name} is quantised by {own.quantization} already, and teacher_quantization is "
                f"{options.teacher_quantization}: leave that out."
            )
        wanted |= {"quantization": options.teacher_quantization, "merge_adapter": False}
    if options.device == "cpu":
        wanted["device"] = "cpu"
    return own.model_copy(update=wanted)


def open_teacher(
    teacher: InputModel, options: DistillOptions, job: RecipeJob, dtype: str
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The teacher in eval mode, nothing of it to be trained. Raises `ModelUnusableError`, `MissingExtraError`."""
    model, processor = load_model(teacher.spec, loading_options(teacher, options, dtype), offline=job.offline)
    model.requires_grad_(requires_grad=False)
    return model.eval(), processor


def empty_teacher(teacher: InputModel, job: RecipeJob) -> PreTrainedModel:
    """The teacher's shape without weights, nothing of it to be trained."""
    spec = teacher.spec
    configuration = load_configuration(spec, HfOptions.model_validate(spec.options), offline=job.offline)
    model = empty_model(configuration)
    model.requires_grad_(requires_grad=False)
    return model


def find_processor(model: InputModel, job: RecipeJob) -> ProcessorMixin | None:
    """The model's processor; None in a dry run for a model that is not on this machine."""
    spec = model.spec
    try:
        return load_processor(spec, HfOptions.model_validate(spec.options), offline=job.offline)
    except ModelUnusableError:
        if job.dry_run:
            return None
        raise


def check_tokenizers(student: tuple[InputModel, ProcessorMixin], teacher: tuple[InputModel, ProcessorMixin]) -> None:
    """Raises `UserError`, which offers the other mode, where one token number means two things."""
    ours, theirs = (processor.tokenizer.get_vocab() for _, processor in (student, teacher))
    if ours == theirs:
        return
    differing = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda pair: (pair[1], pair[0]))
    token, number = differing[0]
    raise UserError(
        f"teacher {teacher[0].spec.name} and student {student[0].spec.name} have different tokenizers "
        f"({len(theirs):,} and {len(ours):,} tokens; they part at number {number}, {token!r}), so what they expect of "
        f"the next token cannot be compared. {SEQUENCE_MODE}"
    )


def check_answer_tokens(example: TrainingExample, student: Sequence[int], teacher: Sequence[int], who: str) -> None:
    """Raises `UserError` where an answer is other tokens to the teacher than to the student."""
    if list(student) == list(teacher):
        return
    raise UserError(
        f"training sample {example.sample.id}: its answer is the tokens {list(student)[:12]} to the student and "
        f"{list(teacher)[:12]} to teacher {who}: their templates write answers differently. {SEQUENCE_MODE}"
    )


def shared_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel, processor: ProcessorMixin) -> int:
    """How many logits of both are about the same tokens; the wider of two may have more rows, for padding.

    Raises `UserError` where the narrower lacks tokens of their tokenizer.
    """
    from mhe_compress.distill_states import output_head

    sizes = [_rows(output_head(model)) for model in (student, teacher)]
    highest = max(processor.tokenizer.get_vocab().values())
    if sizes[0] != sizes[1] and highest >= min(sizes):
        raise UserError(
            f"the student scores {sizes[0]:,} tokens and the teacher {sizes[1]:,}, and their tokenizer goes up to "
            f"number {highest:,}. {SEQUENCE_MODE}"
        )
    return min(sizes)


def _rows(head: object) -> int:
    weight = getattr(head, "weight", None)
    size = getattr(head, "out_features", None) or (len(weight) if weight is not None else None)
    assert isinstance(size, int)
    return size
