"""Training samples that a model is looked at on, one at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import SampleError, UserError, digest_of
from mhe_hf import collate_training, context_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import TrainingExample


def draw_samples(examples: Sequence[TrainingExample], number: int, seed: int, why: str) -> list[TrainingExample]:
    """So many of the examples, drawn by the seed, in an order that no other example can change.

    Raises `UserError` where there are none; `why` says what they are wanted for and what would do without.
    """
    if not examples:
        raise UserError(f"the calibration split is empty: {why}")
    drawn = sorted(
        range(len(examples)), key=lambda i: (digest_of([seed, examples[i].sample.id, examples[i].answer]), i)
    )
    return [examples[index] for index in drawn[:number]]


def batches_of(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    examples: Sequence[TrainingExample],
    report: Callable[[str, Mapping[str, float]], None],
) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs of the model's `forward` with labels, on its device, a sample each.

    Raises `UserError` for a sample that cannot be read.
    """
    for number, example in enumerate(examples, 1):
        try:
            features = collate_training([example], processor, context=context_of(model.config))
        except SampleError as error:
            raise UserError(
                f"calibration sample {example.sample.id}: {error}\n"
                "Mend it, or list it under `broken` in the task's task.yaml to leave it out."
            ) from None
        yield {
            name: (tensor.to(model.device, model.dtype) if tensor.is_floating_point() else tensor.to(model.device))
            for name, tensor in features.items()
        }
        report("calibration", {"step": float(number), "steps": float(len(examples))})
