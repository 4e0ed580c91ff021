"""What `tiny-blip` and `tiny-blip-vqa` share: BLIP's image encoder, WordPiece tokenizer and processor.

vLLM does not have them, so that the eight heads of the text model may be 16 wide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mhe_tiny.initial import set_patch_filters, set_positions
from mhe_tiny.tokens import build_wordpiece

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from transformers import BertTokenizer, BlipConfig, BlipProcessor, PreTrainedTokenizerBase
    from transformers.models.blip.modeling_blip import BlipVisionModel

    from mhe_tiny.architecture import Pictures

IMAGE_SIZE = 64
PATCH = 8
WIDTH = 128
CONTEXT = 256


def train_tokenizer(turns: Iterable[tuple[str, str]]) -> BertTokenizer:
    """Return BERT's kind of tokenizer."""
    return build_wordpiece((text for turn in turns for text in turn), context=CONTEXT)


def build_processor(tokenizer: PreTrainedTokenizerBase) -> BlipProcessor:
    """Return the processor: the whole image squeezed to 64 x 64, values in [-1, 1]."""
    from transformers import BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    pictures = BlipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return BlipProcessor(pictures, tokenizer)


def build_config(tokenizer: PreTrainedTokenizerBase, text_layers: int) -> BlipConfig:
    """Return the configuration of either class."""
    from transformers import BlipConfig

    ids = tokenizer.get_vocab()
    return BlipConfig(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "hidden_act": "gelu",
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": WIDTH,
            "encoder_hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 8,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": ids["[DEC]"],
            # The published models name [SEP] twice: generation stops at sep_token_id.
            "eos_token_id": ids["[SEP]"],
            "sep_token_id": ids["[SEP]"],
            "pad_token_id": ids["[PAD]"],
        },
        projection_dim=WIDTH,
        image_text_hidden_size=WIDTH,
    )


def prepare_vision(vision: BlipVisionModel) -> None:
    """Set the image encoder's patch filters and positions."""
    set_patch_filters(vision.embeddings.patch_embedding.weight)
    set_positions(vision.embeddings.position_embedding[0])


def mask_scores(visible: torch.Tensor) -> torch.Tensor:
    """Return what BLIP's text model adds to its attention scores; it adds booleans too, as 0 and 1."""
    import torch

    return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)


class BlipEyes:
    """The image side of both learners."""

    width = WIDTH

    def __init__(self, vision: BlipVisionModel, processor: BlipProcessor) -> None:
        self.vision = vision
        self.processor = processor
        self.tokenizer = processor.tokenizer

    def look(self, images: Sequence[PIL.Image.Image]) -> Pictures:
        """Return what the image processor makes of the images."""
        pictures: Pictures = self.processor.image_processor(list(images), return_tensors="pt")
        return pictures

    def see(self, pictures: Pictures) -> torch.Tensor:
        """Return the features of the class token and the patches, as cross-attention gets them."""
        seen: torch.Tensor = self.vision(pictures["pixel_values"]).last_hidden_state
        return seen
