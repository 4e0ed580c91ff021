"""`tiny-blip-vqa`: BLIP for question answering, which is MISS's architecture.

An image encoder, a text encoder that reads the question and looks at the image (the joint text-multimodal encoder),
and a decoder that reads the encoder's states and writes the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mhe_tiny.blip import BlipEyes, build_config, build_processor, mask_scores, prepare_vision, train_tokenizer
from mhe_tiny.lessons import SOURCE
from mhe_tiny.packing import Batch, Packer, Turn, weigh_answers

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from transformers import BlipForQuestionAnswering, BlipProcessor, PreTrainedTokenizerBase

    from mhe_tiny.architecture import Pictures
    from mhe_tiny.lessons import Lesson

__all__ = ["ANSWERS_QUESTIONS", "CLASS", "build_learner", "build_model", "build_processor", "train_tokenizer"]

CLASS = "BlipForQuestionAnswering"
ANSWERS_QUESTIONS = True


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> BlipForQuestionAnswering:
    """Return the untrained model in float32; equal seeds give equal weights."""
    import torch
    from transformers import BlipForQuestionAnswering

    config = build_config(tokenizer, text_layers=2)
    torch.manual_seed(seed)
    model = BlipForQuestionAnswering(config)
    prepare_vision(model.vision_model)
    return model


class BlipVqaLearner(BlipEyes):
    """Trains and asks a BLIP for question answering; captions are answers to the prompt of the caption task."""

    def __init__(self, model: BlipForQuestionAnswering, processor: BlipProcessor) -> None:
        super().__init__(model.vision_model, processor)
        # The library's annotations take half of the sub-modules for tensors.
        self.model: Any = model
        pad = self.tokenizer.pad_token_id
        # The class is asked the bare question; what the task writes around it is taken off.
        self._before, _, self._after = SOURCE.read_prompts()[0].partition("{question}")
        self._asked = Packer(self._encode_question, pad)
        self._said = Packer(self._encode_answer, pad)

    def _encode_question(self, prompt: str, answer: str) -> Turn:
        del answer
        return Turn([], self._question_tokens(prompt), [])

    def _question_tokens(self, prompt: str) -> list[int]:
        is_question = prompt.startswith(self._before) and prompt.endswith(self._after)
        bare = prompt.removeprefix(self._before).removesuffix(self._after) if is_question else prompt
        return list(self.tokenizer(bare).input_ids)

    def _encode_answer(self, prompt: str, answer: str) -> Turn:
        del prompt
        words = list(self.tokenizer(answer, add_special_tokens=False).input_ids)
        return Turn([], [self.tokenizer.bos_token_id], [*words, self.tokenizer.sep_token_id])

    def answer_loss(self, lessons: Sequence[Lesson], pictures: Pictures, seen: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the answers of all turns: questions and answers are packed alike."""
        del pictures
        asked, said = self._asked.pack(lessons), self._said.pack(lessons)
        among = (asked.blocks[:, None, :] == asked.blocks[:, :, None])[:, None]
        read = self.model.text_encoder(
            input_ids=asked.tokens,
            attention_mask=mask_scores(among),
            position_ids=asked.positions,
            encoder_hidden_states=seen,
        ).last_hidden_state
        own = (said.blocks[:, :, None] == asked.blocks[:, None, :])[:, None]
        hidden = self._write(said, read, mask_scores(own))
        return weigh_answers(self.model.text_decoder.cls, hidden, said)

    def _write(self, said: Batch, read: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Return the decoder's last states, (b, t, width).

        Layer by layer, because the library's own layer drops the mask of what the decoder looks at.
        """
        decoder = self.model.text_decoder.bert
        visible = mask_scores(said.visible)
        hidden: torch.Tensor = decoder.embeddings(input_ids=said.tokens, position_ids=said.positions)
        for layer in decoder.encoder.layer:
            hidden = layer.attention(hidden, attention_mask=visible)[0]
            look = layer.crossattention
            looked = look.self(hidden, encoder_hidden_states=read, encoder_attention_mask=own)[0]
            hidden = layer.feed_forward_chunk(look.output(looked, hidden))
        return hidden

    def ask(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], new_tokens: int) -> list[str]:
        """Return the greedy answer to each prompt about its image.

        Prompts of one length go together: the class lets the decoder look at the question's padding.
        """
        import torch

        tokens = [self._question_tokens(prompt) for prompt in prompts]
        answers = [""] * len(prompts)
        pixels = self.look(images)["pixel_values"]
        for length in sorted({len(row) for row in tokens}):
            places = [place for place, row in enumerate(tokens) if len(row) == length]
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=torch.tensor([tokens[place] for place in places]),
                    pixel_values=pixels[places],
                    max_new_tokens=new_tokens,
                    do_sample=False,
                )
            for place, text in zip(places, self.tokenizer.batch_decode(output, skip_special_tokens=True), strict=True):
                answers[place] = text.strip()
        return answers


def build_learner(model: BlipForQuestionAnswering, processor: BlipProcessor) -> BlipVqaLearner:
    """Return what trains and asks the model."""
    return BlipVqaLearner(model, processor)
