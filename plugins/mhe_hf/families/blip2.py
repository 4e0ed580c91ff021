"""BLIP-2: a frozen image encoder, a Q-Former, and a language model that continues `Question: … Answer:`.

Li et al., BLIP-2, ICML 2023; the prompt is the paper's for question answering. Decoder-only language models (OPT).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe_hf.families import single
from mhe_hf.families.family import IGNORED, Decoding, Encoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import PIL.Image
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import Message, TrainingExample


@dataclass(frozen=True, slots=True)
class Blip2:
    """`Blip2ForConditionalGeneration` over a decoder-only language model."""

    end: int
    pad: int
    image_token: int
    queries: int
    """Places in the prompt that stand for the image."""

    model_class = "AutoModelForImageTextToText"
    reads_questions = True

    @property
    def token_ids(self) -> Mapping[str, int]:
        """Published configurations end an answer at a line's end."""
        return {"eos_token_id": self.end, "pad_token_id": self.pad}

    @property
    def fills(self) -> Mapping[str, int]:
        """All of them run along the prompt and answer."""
        return {"input_ids": self.pad, "attention_mask": 0, "labels": IGNORED}

    def mend(self, model: PreTrainedModel) -> None:
        """Nothing to mend."""

    def render(self, processor: ProcessorMixin, messages: Sequence[Message]) -> str:
        """The paper's prompt around the user's text."""
        return f"Question: {single.question_of(processor, messages)} Answer:"

    def encode(
        self, processor: ProcessorMixin, texts: Sequence[str], pictures: Sequence[Sequence[PIL.Image.Image]]
    ) -> Encoded:
        """Padding stands left of the text and right of the image's places, where the processor puts it."""
        features = processor(
            text=list(texts),
            images=[row[0] for row in pictures],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        inputs = {name: features[name] for name in ("pixel_values", "input_ids", "attention_mask")}
        return Encoded(inputs, tuple(int(n) for n in inputs["attention_mask"].sum(dim=1).tolist()))

    def decoding(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> Decoding:
        """The model's own `generate`, which hands the prompt to its language model and gives it back."""
        return Decoding(model, inputs, prompt_length=int(inputs["input_ids"].shape[1]), used=tuple(lengths))

    def collate_training(
        self,
        examples: Sequence[TrainingExample | Sequence[TrainingExample]],
        processor: ProcessorMixin,
        context: int | None,
    ) -> dict[str, torch.Tensor]:
        """Answer and end are learnt. The model shifts the labels itself."""
        rows = single.flat_rows(examples)
        ids, labels = [], []
        for row in rows:
            prompt = processor.tokenizer(self.render(processor, row.request.messages))["input_ids"]
            read = [*([self.image_token] * self.queries), *prompt]
            answer = single.answer_tokens(processor, row, follows_text=True, end=self.end)
            single.check_length(row, len(read) + len(answer), context)
            ids.append([*read, *answer])
            labels.append([*([IGNORED] * len(read)), *answer])
        return {
            "pixel_values": single.training_pixels(processor, rows),
            "input_ids": single.padded(ids, self.pad),
            "attention_mask": single.padded([[1] * len(row) for row in ids], 0),
            "labels": single.padded(labels, IGNORED),
        }
