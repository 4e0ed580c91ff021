"""`tiny-llava`: LLaVA's own classes (CLIP vision tower, two-layer projector, Llama) at 1.6 million parameters.

64 x 64 images in 8 x 8 patches; heads of 32, the smallest size that vLLM's CPU attention takes, and eight of them in
the language model, so that removing a third of the heads is possible.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_tiny.initial import set_patch_filters, set_positions
from mhe_tiny.tokens import CONTEXT, IMAGE_TOKEN

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

IMAGE_SIZE = 64
PATCH = 8
WIDTH = 128
PATCHES = (IMAGE_SIZE // PATCH) ** 2


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Return the processor: the whole image squeezed to 64 x 64 (a crop would lose a side), values in [-1, 1]."""
    from transformers import LlavaProcessor
    from transformers.models.clip import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        image_token=IMAGE_TOKEN,
        # The class embedding, which the processor counts and the model drops again.
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """Return the untrained model in float32; equal seeds give equal weights."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
    )
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        image_seq_length=PATCHES,
        # With four layers there is none to spare; the published models leave out the last of 24.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    embeddings = model.model.vision_tower.embeddings
    set_patch_filters(embeddings.patch_embedding.weight)
    set_positions(embeddings.position_embedding.weight)
    # Generation stops and pads by the text model's ids; the outer configuration has none of its own.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
