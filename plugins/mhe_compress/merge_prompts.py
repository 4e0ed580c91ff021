"""Prompts on which two models of the same weights are compared, and the logits that they give."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from mhe import BytesSource, Generation, Image, Message, Request, Sample, TrainingExample, digest_of
from mhe_compress.distill_states import Reading, own_inputs
from mhe_hf import collate_training, context_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import RecipeJob

SIDE = 96
QUESTIONS = ("What does this image show?", "Is there a fracture?", "Where is the lesion?", "Describe this image.")
ANSWERS = ("the left lung", "no", "in the upper lobe on the right side", "a chest radiograph without findings")


def prompts_for(job: RecipeJob, count: int) -> list[TrainingExample]:
    """The first examples of the step's data, or where it has none that many drawn from fixed seeds."""
    return list(job.train[:count]) if job.train else [drawn_example(number) for number in range(count)]


def drawn_example(number: int) -> TrainingExample:
    """A question about an image of blurred noise, and an answer: the same for a number everywhere."""
    image = Image(id=f"drawn-{number}", source=BytesSource(_noise(number)))
    question = QUESTIONS[number % len(QUESTIONS)]
    message = Message("user", question, images=1, question=question)
    request = Request(
        sample_id=f"drawn-{number}",
        messages=(message,),
        images=(image,),
        generation=Generation(),
        seed=number,
        digest=digest_of([number, question]),
    )
    answer = ANSWERS[number % len(ANSWERS)]
    sample = Sample(id=f"drawn-{number}", images=(image,), references=(answer,), question=question)
    return TrainingExample(request, answer, sample)


def _noise(number: int) -> bytes:
    import numpy as np
    import PIL.Image

    coarse = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    buffer = BytesIO()
    PIL.Image.fromarray(coarse).resize((SIDE, SIDE), PIL.Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def logits_of(
    model: PreTrainedModel, processor: ProcessorMixin, examples: Sequence[TrainingExample]
) -> list[torch.Tensor]:
    """The logits at every place of prompt and answer, float32 on the CPU, one tensor an example."""
    import torch

    found = []
    with torch.no_grad():
        for example in examples:
            batch = collate_training([example], processor, context=context_of(model.config))
            inputs = own_inputs(model, batch)
            labels = batch["labels"].to(model.device)
            with Reading(model) as reading:
                model(**inputs, labels=labels)
            found.append(reading.logits.float().cpu())
    return found
