"""`tiny-visiongpt2`: VisionGPT-2's classes, a ViT and a GPT-2 that looks at the image by cross-attention.

It writes captions and reads no prompt. vLLM does not have it, so that the eight heads of GPT-2 may be 16 wide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhe_tiny.initial import set_patch_filters, set_positions
from mhe_tiny.packing import Packer, Turn, weigh_answers
from mhe_tiny.tokens import ControlTokens, train_bpe

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, VisionEncoderDecoderModel
    from transformers.image_processing_utils import BaseImageProcessor

    from mhe_tiny.architecture import Pictures
    from mhe_tiny.lessons import Lesson

CLASS = "VisionEncoderDecoderModel"
ANSWERS_QUESTIONS = False
IMAGE_SIZE = 64
PATCH = 8
WIDTH = 128
CONTEXT = 256
END = "<|endoftext|>"
# GPT-2 has one control token, which begins, ends and pads.
CONTROL = ControlTokens((END,), begin=END, end=END, pad=END, unknown=END)


@dataclass(slots=True)
class ImageProcessorAndTokenizer:
    """The two halves that are published side by side; there is no processor class."""

    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase

    def save_pretrained(self, save_directory: Path) -> None:
        """Write the files of both."""
        self.image_processor.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)


def train_tokenizer(turns: Iterable[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Return GPT-2's kind of tokenizer."""
    return train_bpe((answer for _, answer in turns), CONTROL, context=CONTEXT)


def build_processor(tokenizer: PreTrainedTokenizerBase) -> ImageProcessorAndTokenizer:
    """Return both halves: the whole image squeezed to 64 x 64, values in [-1, 1]."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    pictures = ViTImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        # The published one takes grey images for what they are not.
        do_convert_rgb=True,
    )
    return ImageProcessorAndTokenizer(pictures, tokenizer)


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> VisionEncoderDecoderModel:
    """Return the untrained model in float32; equal seeds give equal weights."""
    import torch
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    encoder = ViTConfig(
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    end = tokenizer.eos_token_id
    decoder = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=CONTEXT,
        n_embd=WIDTH,
        n_inner=256,
        n_layer=2,
        n_head=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        add_cross_attention=True,
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id = config.bos_token_id = config.eos_token_id = config.pad_token_id = end
    config.tie_word_embeddings = True
    torch.manual_seed(seed)
    model = VisionEncoderDecoderModel(config=config)
    embeddings: Any = model.encoder.embeddings
    set_patch_filters(embeddings.patch_embeddings.projection.weight)
    set_positions(embeddings.position_embeddings[0])
    for name in ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, end)
    return model


class VisionGpt2Learner:
    """Trains and asks a vision-encoder-decoder."""

    width = WIDTH

    def __init__(self, model: VisionEncoderDecoderModel, processor: ImageProcessorAndTokenizer) -> None:
        # The library's annotations take half of the sub-modules for tensors.
        self.model: Any = model
        self.processor = processor
        self._packer = Packer(self._encode, processor.tokenizer.pad_token_id)

    @property
    def vision(self) -> nn.Module:
        """The ViT."""
        encoder: nn.Module = self.model.encoder
        return encoder

    def _encode(self, prompt: str, answer: str) -> Turn:
        del prompt
        tokenizer = self.processor.tokenizer
        return Turn([], [tokenizer.bos_token_id], [*tokenizer(answer).input_ids, tokenizer.eos_token_id])

    def look(self, images: Sequence[PIL.Image.Image]) -> Pictures:
        """Return what the image processor makes of the images."""
        pictures: Pictures = self.processor.image_processor(list(images), return_tensors="pt")
        return pictures

    def see(self, pictures: Pictures) -> torch.Tensor:
        """Return the features of the class token and the patches, as cross-attention gets them."""
        seen: torch.Tensor = self.model.encoder(pictures["pixel_values"]).last_hidden_state
        return seen

    def answer_loss(self, lessons: Sequence[Lesson], pictures: Pictures, seen: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the captions."""
        del pictures
        from mhe_tiny.lessons import only_captions

        batch = self._packer.pack(only_captions(lessons))
        hidden = self.model.decoder.transformer(
            input_ids=batch.tokens,
            attention_mask=batch.visible,
            position_ids=batch.positions,
            encoder_hidden_states=seen,
            use_cache=False,
        ).last_hidden_state
        return weigh_answers(self.model.decoder.lm_head, hidden, batch)

    def ask(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], new_tokens: int) -> list[str]:
        """Return the greedy caption of each image, whatever the prompt."""
        del prompts
        import torch

        with torch.inference_mode():
            output = self.model.generate(**self.look(images), max_new_tokens=new_tokens, do_sample=False)
        return [text.strip() for text in self.processor.tokenizer.batch_decode(output, skip_special_tokens=True)]


def build_learner(model: VisionEncoderDecoderModel, processor: ImageProcessorAndTokenizer) -> VisionGpt2Learner:
    """Return what trains and asks the model."""
    return VisionGpt2Learner(model, processor)
