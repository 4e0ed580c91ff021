"""`tiny-llava`: LLaVA's own classes (CLIP vision tower, two-layer projector, Llama) at 1.6 million parameters.

64 x 64 images in 8 x 8 patches; heads of 32, the smallest size that vLLM's CPU attention takes, and eight of them in
the language model, so that removing a third of the heads is possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mhe_tiny.chat import ChatLearner
from mhe_tiny.llava_parts import begin, vision_tower
from mhe_tiny.packing import Batch, weigh_answers
from mhe_tiny.tokens import CONTEXT, ControlTokens, train_bpe

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import (
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

    from mhe_tiny.architecture import Pictures
    from mhe_tiny.lessons import Lesson

CLASS = "LlavaForConditionalGeneration"
ANSWERS_QUESTIONS = True
IMAGE_SIZE = 64
PATCH = 8
WIDTH = 128
PATCHES = (IMAGE_SIZE // PATCH) ** 2
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
{%- if message['role'] == 'assistant' %} {% elif message['role'] == 'system' -%}{%- else -%}USER: {% endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ eos_token }}
{%- elif message['role'] == 'system' -%}{{ '\\n' }}
{%- else %} ASSISTANT:{% endif -%}
{%- endfor -%}
"""
"""LLaVA-1.5's, `USER: <image>\\n… ASSISTANT: …</s>`. A user's turn always opens the assistant's."""


def train_tokenizer(turns: Iterable[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Return the tokenizer, with bos, eos, pad, unk and image tokens."""
    return train_bpe(
        (f"USER: {prompt} ASSISTANT: {answer}" for prompt, answer in turns), CONTROL, template=CHAT_TEMPLATE
    )


def build_processor(tokenizer: PreTrainedTokenizerBase) -> LlavaProcessor:
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


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlavaForConditionalGeneration:
    """Return the untrained model in float32; equal seeds give equal weights."""
    import torch
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = vision_tower(width=WIDTH, inner=384, layers=4, image=IMAGE_SIZE, patch=PATCH)
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
    begin(model, tokenizer)
    return model


class LlavaLearner(ChatLearner):
    """Trains and asks a LLaVA."""

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
        """Return the features of the patches as the projector gets them."""
        layers = self.model.model.vision_tower(pictures["pixel_values"], output_hidden_states=True).hidden_states
        features: torch.Tensor = layers[self.model.config.vision_feature_layer][:, 1:]
        return features

    def answer_loss(self, lessons: Sequence[Lesson], pictures: Pictures, seen: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the answers of all turns."""
        del pictures
        batch = self.packer.pack(lessons)
        projected = self.model.model.multi_modal_projector(seen)
        return weigh_answers(self.model.lm_head, self._read(batch, projected), batch)

    def _read(self, batch: Batch, projected: torch.Tensor) -> torch.Tensor:
        language = self.model.model.language_model
        hidden: torch.Tensor = language(
            inputs_embeds=self.embed(language.embed_tokens, batch, projected),
            attention_mask=batch.visible,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        return hidden


def build_learner(model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> LlavaLearner:
    """Return what trains and asks the model."""
    return LlavaLearner(model, processor, image_token=IMAGE_TOKEN, image_tokens=PATCHES)
