"""Vision-encoder-decoder: an image encoder, and a language model that looks at it by cross-attention.

VisionGPT-2 is ViT and GPT-2. A captioner: the decoder starts from its first token, or from a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mhe_hf.families import single
from mhe_hf.families.family import IGNORED, Decoding, Encoded

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import PIL.Image
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import Message, TrainingExample


@dataclass(frozen=True, slots=True)
class VisionDecoder:
    """`VisionEncoderDecoderModel`."""

    start: int
    end: int
    pad: int
    prefix: str = ""

    model_class = "AutoModelForImageTextToText"
    reads_questions = False

    @property
    def token_ids(self) -> Mapping[str, int]:
        """GPT-2 has one token for start, end and padding."""
        return {
            "decoder_start_token_id": self.start,
            "bos_token_id": self.start,
            "eos_token_id": self.end,
            "pad_token_id": self.pad,
        }

    @property
    def fills(self) -> Mapping[str, int]:
        """All of them run along the caption."""
        return {"decoder_input_ids": self.pad, "decoder_attention_mask": 0, "labels": IGNORED}

    def mend(self, model: PreTrainedModel) -> None:
        """Nothing to mend."""

    def render(self, processor: ProcessorMixin, messages: Sequence[Message]) -> str:
        """The prefix: a captioner follows no instruction."""
        single.question_of(processor, messages)
        return self.prefix

    def encode(
        self, processor: ProcessorMixin, texts: Sequence[str], pictures: Sequence[Sequence[PIL.Image.Image]]
    ) -> Encoded:
        """One prefix for all rows: a captioner follows no instruction."""
        del texts
        return single.encode_captions(processor, self._beginning(processor), "decoder_input_ids", pictures)

    def decoding(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> Decoding:
        """The decoder continues its beginning, looking at the image."""
        beginning = inputs["decoder_input_ids"]
        encoder: Any = model.encoder
        seen = encoder(pixel_values=inputs["pixel_values"])
        given = {
            "encoder_outputs": seen,
            "attention_mask": beginning.new_ones(seen[0].shape[:-1]),
            "decoder_input_ids": beginning,
        }
        return Decoding(model, given, prompt_length=int(beginning.shape[1]), used=tuple(lengths))

    def collate_training(
        self,
        examples: Sequence[TrainingExample | Sequence[TrainingExample]],
        processor: ProcessorMixin,
        context: int | None,
    ) -> dict[str, torch.Tensor]:
        """Caption and end are learnt. The model compares label and logit of one place, so the input lags by one."""
        rows = single.flat_rows(examples)
        beginning = self._beginning(processor)
        ids, labels = [], []
        for row in rows:
            single.question_of(processor, row.request.messages)
            answer = single.answer_tokens(processor, row, follows_text=bool(self.prefix), end=self.end)
            single.check_length(row, len(beginning) + len(answer), context)
            ids.append([*beginning, *answer[:-1]])
            labels.append([*([IGNORED] * (len(beginning) - 1)), *answer])
        return {
            "pixel_values": single.training_pixels(processor, rows),
            "decoder_input_ids": single.padded(ids, self.pad),
            "decoder_attention_mask": single.padded([[1] * len(row) for row in ids], 0),
            "labels": single.padded(labels, IGNORED),
        }

    def _beginning(self, processor: ProcessorMixin) -> list[int]:
        return single.beginning(processor, self.start, self.prefix)
