"""Models that carry a chat template: LLaVA, LLaVA-NeXT, Qwen2-VL, mllama, and any other image-text-to-text model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe_hf.chat_training import collate_conversations
from mhe_hf.conversations import adds_special_tokens, render
from mhe_hf.families.family import IGNORED, Decoding, Encoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import PIL.Image
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import Message, TrainingExample


@dataclass(frozen=True, slots=True)
class ChatFamily:
    """The processor renders, tokenises and lays out images; rows are padded left, before the prompt."""

    pad: int = 0

    model_class = "AutoModelForImageTextToText"
    reads_questions = True

    @property
    def token_ids(self) -> Mapping[str, int]:
        """The checkpoint's own."""
        return {}

    @property
    def fills(self) -> Mapping[str, int]:
        """Everything that runs along the tokens."""
        along = ("attention_mask", "token_type_ids", "mm_token_type_ids", "cross_attention_mask")
        return {"input_ids": self.pad, "labels": IGNORED, **dict.fromkeys(along, 0)}

    def mend(self, model: PreTrainedModel) -> None:
        """Nothing to mend."""

    def render(self, processor: ProcessorMixin, messages: Sequence[Message]) -> str:
        """Through the chat template, up to where the assistant's turn begins."""
        return render(processor, messages, is_open=True)

    def encode(
        self, processor: ProcessorMixin, texts: Sequence[str], pictures: Sequence[Sequence[PIL.Image.Image]]
    ) -> Encoded:
        """As the processor does, padded left."""
        features = processor(
            text=list(texts),
            images=[list(row) for row in pictures] if any(pictures) else None,
            padding=True,
            padding_side="left",
            return_tensors="pt",
            add_special_tokens=adds_special_tokens(processor, texts[0]),
        )
        inputs = {name: value for name, value in features.items() if hasattr(value, "to")}
        return Encoded(inputs, tuple(int(n) for n in inputs["attention_mask"].sum(dim=1).tolist()))

    def decoding(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> Decoding:
        """Continue the prompt; in an encoder-decoder, answer it."""
        if model.config.is_encoder_decoder:
            return Decoding(model, inputs, prompt_length=1, used=(None,) * len(lengths))
        return Decoding(model, inputs, prompt_length=int(inputs["input_ids"].shape[1]), used=tuple(lengths))

    def collate_training(
        self,
        examples: Sequence[TrainingExample | Sequence[TrainingExample]],
        processor: ProcessorMixin,
        context: int | None,
    ) -> dict[str, torch.Tensor]:
        """Conversations; several questions of one image may share a row."""
        return collate_conversations(examples, processor, context=context)
