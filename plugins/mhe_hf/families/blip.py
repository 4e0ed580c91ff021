"""BLIP: a captioner, and the model for question answering (Li et al., BLIP, ICML 2022).

`generate` of the library is gone round in both. For question answering it lets the decoder look at padded places of
the question, so that an answer depends on how long its neighbours' questions are; for captions it cuts the last
token of the prompt. The library's cross-attention passes over its mask besides (transformers 5.23: the mask arrives
under a name that is not read), in training too; `mend` hands it on.
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


def mend_cross_attention(model: torch.nn.Module) -> None:
    """Have every cross-attention of a BLIP text model see its mask. Changes nothing where no place is masked."""
    for name, module in model.named_modules():
        if name.endswith("crossattention.self"):
            module.register_forward_pre_hook(_hand_mask_on, with_kwargs=True)


def _hand_mask_on(
    _module: torch.nn.Module, given: tuple[object, ...], named: dict[str, object]
) -> tuple[tuple[object, ...], dict[str, object]]:
    if named.get("encoder_attention_mask") is None:
        named = {**named, "encoder_attention_mask": named.get("attention_mask")}
    return given, named


@dataclass(frozen=True, slots=True)
class BlipTokens:
    """Tokens of a BLIP text decoder: what it starts from, what ends an answer, what fills."""

    start: int
    end: int
    pad: int

    def for_generation(self) -> Mapping[str, int]:
        """In the words of `GenerationConfig`. The text configuration's `eos_token_id` is not what ends an answer."""
        return {"bos_token_id": self.start, "eos_token_id": self.end, "pad_token_id": self.pad}


@dataclass(frozen=True, slots=True)
class BlipCaptions:
    """`BlipForConditionalGeneration`: the image, and the beginning of a caption that the decoder continues."""

    tokens: BlipTokens
    prefix: str = ""

    model_class = "AutoModelForImageTextToText"
    reads_questions = False

    @property
    def token_ids(self) -> Mapping[str, int]:
        """Start, end and filling of the text decoder."""
        return self.tokens.for_generation()

    @property
    def fills(self) -> Mapping[str, int]:
        """All of them run along the caption."""
        return {"input_ids": self.tokens.pad, "attention_mask": 0, "labels": IGNORED}

    def mend(self, model: PreTrainedModel) -> None:
        """Hand cross-attention its mask."""
        mend_cross_attention(model)

    def render(self, processor: ProcessorMixin, messages: Sequence[Message]) -> str:
        """The prefix: a captioner follows no instruction."""
        single.question_of(processor, messages)
        return self.prefix

    def encode(
        self, processor: ProcessorMixin, texts: Sequence[str], pictures: Sequence[Sequence[PIL.Image.Image]]
    ) -> Encoded:
        """One prefix for all rows: a captioner follows no instruction."""
        del texts
        return single.encode_captions(processor, self._beginning(processor), "input_ids", pictures)

    def decoding(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> Decoding:
        """The text decoder alone, looking at the image."""
        parts: Any = model
        seen = parts.vision_model(pixel_values=inputs["pixel_values"])[0]
        ids = inputs["input_ids"]
        given = {
            "input_ids": ids,
            "attention_mask": ids.new_ones(ids.shape),
            "encoder_hidden_states": seen,
            "encoder_attention_mask": ids.new_ones(seen.shape[:-1]),
        }
        return Decoding(parts.text_decoder, given, prompt_length=int(ids.shape[1]), used=tuple(lengths))

    def collate_training(
        self,
        examples: Sequence[TrainingExample | Sequence[TrainingExample]],
        processor: ProcessorMixin,
        context: int | None,
    ) -> dict[str, torch.Tensor]:
        """Caption and end are learnt, the prefix is read. The model shifts the labels itself."""
        rows = single.flat_rows(examples)
        beginning = self._beginning(processor)
        ids, labels = [], []
        for row in rows:
            single.question_of(processor, row.request.messages)
            answer = single.answer_tokens(processor, row, follows_text=bool(self.prefix), end=self.tokens.end)
            single.check_length(row, len(beginning) + len(answer), context)
            ids.append([*beginning, *answer])
            labels.append([*([IGNORED] * len(beginning)), *answer])
        return {
            "pixel_values": single.training_pixels(processor, rows),
            "input_ids": single.padded(ids, self.tokens.pad),
            "attention_mask": single.padded([[1] * len(row) for row in ids], 0),
            "labels": single.padded(labels, IGNORED),
        }

    def _beginning(self, processor: ProcessorMixin) -> list[int]:
        return single.beginning(processor, self.tokens.start, self.prefix)


@dataclass(frozen=True, slots=True)
class BlipAnswers:
    """`BlipForQuestionAnswering`: the question meets the image in a joint encoder, a decoder writes the answer.

    The architecture of MISS and MILE.
    """

    tokens: BlipTokens

    model_class = "BlipForQuestionAnswering"
    reads_questions = True

    @property
    def token_ids(self) -> Mapping[str, int]:
        """Start, end and filling of the text decoder."""
        return self.tokens.for_generation()

    @property
    def fills(self) -> Mapping[str, int]:
        """The first two run along the question, the others along the answer."""
        return {
            "input_ids": self.tokens.pad,
            "attention_mask": 0,
            "decoder_input_ids": self.tokens.pad,
            "decoder_attention_mask": 0,
            "labels": IGNORED,
        }

    def mend(self, model: PreTrainedModel) -> None:
        """Hand cross-attention its mask."""
        mend_cross_attention(model)

    def render(self, processor: ProcessorMixin, messages: Sequence[Message]) -> str:
        """The bare question: the model was trained on nothing else, and knows no instructions."""
        return single.bare_question_of(processor, messages)

    def encode(
        self, processor: ProcessorMixin, texts: Sequence[str], pictures: Sequence[Sequence[PIL.Image.Image]]
    ) -> Encoded:
        """Questions padded right, as the joint encoder was trained."""
        inputs = {"pixel_values": single.image_features(processor, pictures), **self._questions(processor, texts)}
        return Encoded(inputs, tuple(int(n) for n in inputs["attention_mask"].sum(dim=1).tolist()))

    def decoding(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> Decoding:
        """The text decoder alone, looking at the encoded question's own tokens."""
        parts: Any = model
        seen = parts.vision_model(pixel_values=inputs["pixel_values"])[0]
        mask = inputs["attention_mask"]
        joint = parts.text_encoder(
            input_ids=inputs["input_ids"],
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=mask.new_ones(seen.shape[:-1]),
        )[0]
        given = {
            "input_ids": mask.new_full((len(lengths), 1), self.tokens.start),
            "attention_mask": mask.new_ones((len(lengths), 1)),
            "encoder_hidden_states": joint,
            "encoder_attention_mask": mask,
        }
        return Decoding(parts.text_decoder, given, prompt_length=1, used=(1,) * len(lengths))

    def collate_training(
        self,
        examples: Sequence[TrainingExample | Sequence[TrainingExample]],
        processor: ProcessorMixin,
        context: int | None,
    ) -> dict[str, torch.Tensor]:
        """Question to the encoder; start, answer and end to the decoder. The model shifts the labels itself."""
        rows = single.flat_rows(examples)
        asked = [single.bare_question_of(processor, row.request.messages) for row in rows]
        questions = self._questions(processor, asked)
        ids = []
        for row, length in zip(rows, questions["attention_mask"].sum(dim=1).tolist(), strict=True):
            answer = single.answer_tokens(processor, row, follows_text=False, end=self.tokens.end)
            single.check_length(row, max(length, 1 + len(answer)), context)
            ids.append([self.tokens.start, *answer])
        return {
            "pixel_values": single.training_pixels(processor, rows),
            **questions,
            # Given apart: the model would embed the labels, and -100 is no token.
            "decoder_input_ids": single.padded(ids, self.tokens.pad),
            "decoder_attention_mask": single.padded([[1] * len(row) for row in ids], 0),
            "labels": single.padded([[IGNORED, *row[1:]] for row in ids], IGNORED),
        }

    def _questions(self, processor: ProcessorMixin, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        encoded = processor.tokenizer(list(texts), padding=True, padding_side="right", return_tensors="pt")
        return {name: encoded[name] for name in ("input_ids", "attention_mask")}
