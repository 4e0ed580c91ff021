"""What the families with a chat template share: turns rendered by it, packed, and answered by `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mhe_tiny.packing import Batch, Packer, Turn
from mhe_tiny.turns import render_turn

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from torch import nn
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe_tiny.architecture import Pictures


class ChatLearner:
    """Trains and asks a model whose processor has a chat template and one kind of image token."""

    def __init__(
        self, model: PreTrainedModel, processor: ProcessorMixin, *, image_token: str, image_tokens: int
    ) -> None:
        # The library's annotations take half of the sub-modules for tensors.
        self.model: Any = model
        self.processor = processor
        self._tokenizer = processor.tokenizer
        self.image = int(self._tokenizer.convert_tokens_to_ids(image_token))
        self._image_tokens = image_tokens
        self.packer = Packer(self.encode, self._tokenizer.pad_token_id)

    def encode(self, prompt: str, answer: str) -> Turn:
        """Prefix up to the last image token, rest of the prompt, and answer with its end, as token ids."""
        opened = self._tokens_of(render_turn(self.processor, prompt))
        whole = self._tokens_of(render_turn(self.processor, prompt, answer))
        if whole[: len(opened)] != opened:
            raise ValueError(f"the chat template does not continue the prompt {prompt!r}")
        at = opened.index(self.image)
        said = whole[len(opened) :]
        # Some templates write a line's end after the token that ends the answer.
        said = said[: said.index(self._tokenizer.eos_token_id) + 1]
        return Turn(opened[:at] + [self.image] * self._image_tokens, opened[at + 1 :], said)

    def _tokens_of(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def look(self, images: Sequence[PIL.Image.Image]) -> Pictures:
        """Return what the image processor makes of the images."""
        pictures: Pictures = self.processor.image_processor(list(images), return_tensors="pt")
        return pictures

    def embed(self, table: nn.Module, batch: Batch, projected: torch.Tensor) -> torch.Tensor:
        """Return the tokens' embeddings with the projected image features in the places of the image tokens."""
        at_image = (batch.tokens == self.image)[..., None]
        embedded: torch.Tensor = table(batch.tokens).masked_scatter(at_image, projected)
        return embedded

    def ask(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], new_tokens: int) -> list[str]:
        """Return the greedy answer to each prompt about its image."""
        import torch

        texts = [render_turn(self.processor, prompt) for prompt in prompts]
        inputs = self.processor(
            images=[[image] for image in images],
            text=texts,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        written = self._tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in written]
