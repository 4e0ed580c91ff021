"""The student: a model that is given, one of fewer language layers, or one of a smaller configuration.

    the step's base as it is             neither keep_layers nor student is set
    the base with fewer layers           keep_layers=0.5, layer_choice=evenly or importance
    the base's class, made smaller       student={"text_config": {"num_hidden_layers": 2}}, every weight drawn

What the last two make stands in the job's folder as a few lines of JSON, so that a killed step goes on with it.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mhe import UserError
from mhe_compress.student_layers import (
    Kept,
    block_influence,
    choose_by_influence,
    choose_evenly,
    drop_layers,
    layer_lists,
    shortened_configuration,
    text_configuration,
)
from mhe_hf import HfOptions, empty_model, family_of, load_configuration, load_processor
from mhe_hf.training.fitting import load_base

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

    from mhe import RecipeJob
    from mhe_compress.distill_options import DistillOptions

CHOICE_FILE = "layers.json"


@dataclass(frozen=True, slots=True)
class Student:
    """A model to be trained."""

    model: PreTrainedModel
    processor: ProcessorMixin
    dtype: torch.dtype | None
    """In which it is saved."""
    notes: tuple[str, ...] = ()


def is_derived(options: DistillOptions) -> bool:
    """Whether the student is another model than the step's base."""
    return options.student is not None or options.keep_layers is not None


def empty_student(options: DistillOptions, job: RecipeJob) -> PreTrainedModel:
    """The student's shape without weights. Raises `UserError` for settings that make no model."""
    spec = job.base.spec
    configuration = load_configuration(spec, HfOptions.model_validate(spec.options), offline=job.offline)
    if options.student is not None:
        return _empty(smaller_configuration(configuration, options.student))
    model = empty_model(configuration)
    if options.keep_layers is None:
        return model
    # By measured importance as many stay, of each kind.
    kept = choose_evenly(model, options.keep_layers, job.architectures)
    return empty_model(shortened_configuration(model.config, next(iter(kept.values()))))


def make_student(options: DistillOptions, job: RecipeJob, changes: Mapping[str, object] | None) -> Student:
    """The student with its weights; `changes` are to the base's options, as `load_base` takes them.

    Raises `UserError`, `ModelUnusableError`.
    """
    if options.student is not None:
        return _drawn(options, job)
    model, processor, dtype = load_base(options, job, changes)
    if options.keep_layers is None:
        return Student(model, processor, dtype)
    kept = _chosen_layers(model, processor, options, job)
    total = text_configuration(model.config).num_hidden_layers
    short = drop_layers(model, kept)
    family_of(processor).mend(short)
    note = f"language layers kept: {describe_layers(kept)} of {total}, numbered from 0, chosen {_how(options)}"
    return Student(short, processor, dtype, (note,))


def describe_layers(kept: Kept) -> str:
    """The kept layers in words; of several lists each by its name, where they differ."""
    if len({tuple(numbers) for numbers in kept.values()}) == 1:
        return ", ".join(map(str, next(iter(kept.values()))))
    return "; ".join(f"{', '.join(map(str, numbers))} of {name}" for name, numbers in kept.items())


def _how(options: DistillOptions) -> str:
    if options.layer_choice == "evenly":
        return "evenly"
    return f"by block influence on {options.calibration_samples} training samples"


# ---------------------------------------------------------------- fewer layers


def _chosen_layers(model: PreTrainedModel, processor: ProcessorMixin, options: DistillOptions, job: RecipeJob) -> Kept:
    from mhe_hf.training.watching import write_whole

    assert options.keep_layers is not None
    if options.layer_choice == "evenly":
        return choose_evenly(model, options.keep_layers, job.architectures)
    note = job.folder / CHOICE_FILE
    if note.is_file():
        found: Kept = json.loads(note.read_text(encoding="utf-8"))["kept"]
        return found
    influence = block_influence(
        model, layer_lists(model, job.architectures), list(_calibration(model, processor, options, job))
    )
    kept = choose_by_influence(model, options.keep_layers, influence)
    write_whole(note, (json.dumps({"kept": kept, "influence": influence}, indent=2) + "\n").encode())
    return kept


def _calibration(
    model: PreTrainedModel, processor: ProcessorMixin, options: DistillOptions, job: RecipeJob
) -> Iterator[dict[str, torch.Tensor]]:
    """Training samples at equal distances, each alone, so that nothing is padded."""
    from mhe_compress.distill_states import own_inputs
    from mhe_hf import context_of
    from mhe_hf.training.batches import RowCollator
    from mhe_hf.training.watching import EXAMPLE_INDEX

    count = min(options.calibration_samples, len(job.train))
    for i in range(count):
        number = i * len(job.train) // count
        batch = RowCollator(processor, context_of(model.config))([(number, (job.train[number],))])
        batch.pop(EXAMPLE_INDEX)
        yield own_inputs(model, batch)


# ---------------------------------------------------------------- a smaller configuration


def smaller_configuration(configuration: PreTrainedConfig, changes: Mapping[str, object]) -> PreTrainedConfig:
    """The configuration with other values; what is said layer by layer follows the new number of layers.

    Raises `UserError` for a field that is not there, and for values that make no configuration.
    """
    from huggingface_hub.errors import StrictDataclassError

    merged = _merged(configuration.to_dict(), changes, "student")
    try:
        made: PreTrainedConfig = type(configuration).from_dict(merged)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as error:
        raise _no_model(changes, error) from None
    made.architectures = configuration.architectures
    made.dtype = configuration.dtype
    text, total = text_configuration(made), text_configuration(made).num_hidden_layers
    looking = getattr(text, "cross_attention_layers", None)
    if looking is not None and not [number for number in looking if number < total]:
        raise UserError(
            f"none of the cross_attention_layers {list(looking)} is among the student's {total} layers, so it would "
            "never see an image: give cross_attention_layers in student as well."
        )
    if looking is not None:
        text.cross_attention_layers = [number for number in looking if number < total]
    return made


def _merged(known: Mapping[str, object], changes: Mapping[str, object], path: str) -> dict[str, object]:
    merged = dict(known)
    flat = {key: dict(value) if isinstance(value, dict) else value for key, value in changes.items() if "." not in key}
    for key, value in changes.items():
        first, dot, rest = key.partition(".")
        if dot:
            inner = flat.setdefault(first, {})
            if not isinstance(inner, dict):
                raise UserError(f"{path}: {first} is given a value of its own; leave out {key}, or that value.")
            inner[rest] = value
    for key, value in flat.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UserError(f"{path}: the base's configuration has no field {key!r}.{hint}")
        old = known[key]
        if isinstance(value, dict) and isinstance(old, dict):
            merged[key] = _merged(old, value, f"{path}.{key}")
        else:
            merged[key] = value
    if any(key in flat for key in ("num_hidden_layers", "n_layer")) and "layer_types" not in flat:
        # Made anew by the configuration's class, for the new number of layers.
        merged.pop("layer_types", None)
    return merged


def _empty(configuration: PreTrainedConfig) -> PreTrainedModel:
    try:
        return empty_model(configuration)
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise _no_model({}, error) from None


def _no_model(changes: Mapping[str, object], error: Exception) -> UserError:
    given = f" {json.dumps(changes)}" if changes else ""
    return UserError(f"student{given} makes no model: {type(error).__name__}: {str(error).strip()}")


def _drawn(options: DistillOptions, job: RecipeJob) -> Student:
    from transformers import set_seed

    spec = job.base.spec
    chosen = HfOptions.model_validate(spec.options)
    assert options.student is not None
    processor = load_processor(spec, chosen, offline=job.offline)
    configuration = smaller_configuration(load_configuration(spec, chosen, offline=job.offline), options.student)
    published = configuration.dtype
    kind: Any = type(_empty(configuration))
    set_seed(job.seed)
    model: PreTrainedModel = kind._from_config(configuration, dtype="float32")
    family_of(processor).mend(model)
    _keep_generation(model, job)
    _move(model, options)
    _try_once(model, processor, job, options.student)
    note = f"every weight of the student was drawn from the seed: {json.dumps(options.student)}"
    return Student(model, processor, published if str(published).startswith("torch.") else None, (note,))  # type: ignore[arg-type]


def _move(model: PreTrainedModel, options: DistillOptions) -> None:
    import torch

    if options.device == "auto" and torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]


def _keep_generation(model: PreTrainedModel, job: RecipeJob) -> None:
    """The base's own settings of generation, where it has any: they name the tokens that start and end."""
    from transformers import GenerationConfig

    spec = job.base.spec
    try:
        own = GenerationConfig.from_pretrained(
            spec.location, local_files_only=job.offline, revision=spec.revision or "main"
        )
    except OSError:
        return
    model.generation_config = own


def _try_once(model: PreTrainedModel, processor: ProcessorMixin, job: RecipeJob, changes: Mapping[str, object]) -> None:
    """One sample through the new model: parts of sizes that do not fit together are told before anything is trained."""
    import torch

    from mhe_compress.distill_states import own_inputs
    from mhe_hf import context_of
    from mhe_hf.training.batches import RowCollator
    from mhe_hf.training.watching import EXAMPLE_INDEX

    batch = RowCollator(processor, context_of(model.config))([(0, (job.train[0],))])
    batch.pop(EXAMPLE_INDEX)
    try:
        with torch.no_grad():
            model(**own_inputs(model, batch))
    except (RuntimeError, IndexError, ValueError) as error:
        raise _no_model(changes, error) from None
