"""`tiny-blip`: BLIP for captions, an image encoder and a text decoder that looks at the image by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mhe_tiny.blip import BlipEyes, build_config, build_processor, mask_scores, prepare_vision, train_tokenizer
from mhe_tiny.packing import Packer, Turn, weigh_answers

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from transformers import BlipForConditionalGeneration, BlipProcessor, PreTrainedTokenizerBase

    from mhe_tiny.architecture import Pictures
    from mhe_tiny.lessons import Lesson

__all__ = ["ANSWERS_QUESTIONS", "CLASS", "build_learner", "build_model", "build_processor", "train_tokenizer"]

CLASS = "BlipForConditionalGeneration"
ANSWERS_QUESTIONS = False


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> BlipForConditionalGeneration:
    """Return the untrained model in float32; equal seeds give equal weights."""
    import torch
    from transformers import BlipForConditionalGeneration

    config = build_config(tokenizer, text_layers=2)
    torch.manual_seed(seed)
    model = BlipForConditionalGeneration(config)
    prepare_vision(model.vision_model)
    return model


class BlipLearner(BlipEyes):
    """Trains and asks a captioning BLIP."""

    def __init__(self, model: BlipForConditionalGeneration, processor: BlipProcessor) -> None:
        super().__init__(model.vision_model, processor)
        # The library's annotations take half of the sub-modules for tensors.
        self.model: Any = model
        self._packer = Packer(self._encode, self.tokenizer.pad_token_id)

    def _encode(self, prompt: str, answer: str) -> Turn:
        del prompt
        words = list(self.tokenizer(answer, add_special_tokens=False).input_ids)
        return Turn([], [self.tokenizer.bos_token_id], [*words, self.tokenizer.sep_token_id])

    def answer_loss(self, lessons: Sequence[Lesson], pictures: Pictures, seen: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the captions."""
        del pictures
        from mhe_tiny.lessons import only_captions

        batch = self._packer.pack(only_captions(lessons))
        hidden = self.model.text_decoder.bert(
            input_ids=batch.tokens,
            attention_mask=mask_scores(batch.visible),
            position_ids=batch.positions,
            encoder_hidden_states=seen,
            is_decoder=True,
        ).last_hidden_state
        return weigh_answers(self.model.text_decoder.cls, hidden, batch)

    def ask(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], new_tokens: int) -> list[str]:
        """Return the greedy caption of each image, whatever the prompt."""
        del prompts
        import torch

        with torch.inference_mode():
            output = self.model.generate(**self.look(images), max_new_tokens=new_tokens, do_sample=False)
        return [text.strip() for text in self.tokenizer.batch_decode(output, skip_special_tokens=True)]


def build_learner(model: BlipForConditionalGeneration, processor: BlipProcessor) -> BlipLearner:
    """Return what trains and asks the model."""
    return BlipLearner(model, processor)
