"""`tiny-llava-next`: LLaVA-NeXT's own classes with Mistral's text model.

A 64 x 64 image is seen twice, as in the published models: whole, at 32 x 32, and in four tiles of that size. That
makes 16 + 64 patches of 8 x 8, and 8 ends of line.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mhe_tiny.chat import ChatLearner
from mhe_tiny.llava_parts import begin, vision_tower
from mhe_tiny.packing import weigh_answers
from mhe_tiny.tokens import CONTEXT, ControlTokens, train_bpe

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import (
        LlavaNextForConditionalGeneration,
        LlavaNextProcessor,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

    from mhe_tiny.architecture import Pictures
    from mhe_tiny.lessons import Lesson

CLASS = "LlavaNextForConditionalGeneration"
ANSWERS_QUESTIONS = True
TILE = 32
PATCH = 8
WIDTH = 128
TILES = 5
PATCHES = TILES * (TILE // PATCH) ** 2
IMAGE_TOKENS = PATCHES + 2 * TILE // PATCH
# Those of the published models, in tiles: 1 x 2, 2 x 1, 2 x 2, 3 x 1, 1 x 3.
SHAPES = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE], [TILE, 3 * TILE]]
IMAGE_TOKEN = "<image>"  # noqa: S105 - stands for an image in prompts, no secret
CONTROL = ControlTokens(
    ("<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN),
    begin="<s>",
    end="</s>",
    pad="<pad>",
    unknown="<unk>",
    others=(IMAGE_TOKEN,),
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{ '<<SYS>>\\n' }}{%- elif message['role'] == 'user' -%}{{ '[INST] ' }}
{%- else -%}{{ ' ' }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'system' -%}{{ '\\n<</SYS>>\\n\\n' }}{%- elif message['role'] == 'user' -%}{{ ' [/INST]' }}
{%- else -%}{{ eos_token }}{%- endif -%}
{%- endfor -%}
"""
"""That of LLaVA-1.6 with Mistral, `[INST] <image>\\n… [/INST] …</s>`."""


def train_tokenizer(turns: Iterable[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with bos, eos, pad, unk and image tokens."""
    return train_bpe((f"[INST] {prompt} [/INST] {answer}" for prompt, answer in turns), CONTROL, template=CHAT_TEMPLATE)


def build_processor(tokenizer: PreTrainedTokenizerBase) -> LlavaNextProcessor:
    """Return the processor, values in [-1, 1]."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    pictures = LlavaNextImageProcessorPil(
        size={"height": TILE, "width": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=SHAPES,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaNextProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=tokenizer.chat_template,
        image_token=IMAGE_TOKEN,
        # The class embedding, which the processor counts and the model drops again.
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlavaNextForConditionalGeneration:
    """Return the untrained model in float32; equal seeds give equal weights."""
    import torch
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, MistralConfig

    vision = vision_tower(width=WIDTH, inner=256, layers=3, image=TILE, patch=PATCH)
    language = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
        image_grid_pinpoints=SHAPES,
        image_seq_length=PATCHES,
        # With three layers there is none to spare; the published models leave out the last of 24.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(config)
    begin(model, tokenizer)
    return model


class LlavaNextLearner(ChatLearner):
    """Trains and asks a LLaVA-NeXT."""

    @property
    def vision(self) -> nn.Module:
        """CLIP's encoder."""
        tower: nn.Module = self.model.model.vision_tower
        return tower

    @property
    def width(self) -> int:
        """Width of a patch's features."""
        return WIDTH

    def see(self, pictures: Pictures) -> torch.Tensor:
        """Return the features of all tiles' patches as the projector gets them."""
        tiles = pictures["pixel_values"]
        seen = self.model.model.vision_tower(tiles.flatten(0, 1), output_hidden_states=True).hidden_states
        features: torch.Tensor = seen[self.model.config.vision_feature_layer][:, 1:]
        return features.reshape(len(tiles), PATCHES, WIDTH)

    def answer_loss(self, lessons: Sequence[Lesson], pictures: Pictures, seen: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the answers of all turns."""
        import torch

        batch = self.packer.pack(lessons)
        inner = self.model.model
        tiles = list(inner.multi_modal_projector(seen).unflatten(1, (TILES, -1)))
        arranged, _ = inner.pack_image_features(
            tiles, pictures["image_sizes"], vision_feature_select_strategy="default", image_newline=inner.image_newline
        )
        hidden = inner.language_model(
            inputs_embeds=self.embed(inner.language_model.embed_tokens, batch, torch.cat(list(arranged))),
            attention_mask=batch.visible,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        return weigh_answers(self.model.lm_head, hidden, batch)


def build_learner(model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor) -> LlavaNextLearner:
    """Return what trains and asks the model."""
    return LlavaNextLearner(model, processor, image_token=IMAGE_TOKEN, image_tokens=IMAGE_TOKENS)
