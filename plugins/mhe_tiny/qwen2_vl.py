"""`tiny-qwen2-vl`: Qwen2-VL's own classes (vision transformer with merger, Qwen2 with sections of rotary positions).

A 64 x 64 image is 64 patches of 8 x 8, merged to 16 tokens. The text configuration has no head size of its own, so
that eight heads of 32 make it 256 wide.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mhe_tiny.chat import ChatLearner
from mhe_tiny.initial import set_patch_filters
from mhe_tiny.packing import Batch, weigh_answers
from mhe_tiny.tokens import CONTEXT, ControlTokens, train_bpe

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import (
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
        Qwen2VLForConditionalGeneration,
        Qwen2VLProcessor,
    )

    from mhe_tiny.architecture import Pictures
    from mhe_tiny.lessons import Lesson

CLASS = "Qwen2VLForConditionalGeneration"
ANSWERS_QUESTIONS = True
PATCH = 8
MERGE = 2
SIDE = 4
"""Merged tokens along each side of the image."""
WIDTH = 96
TEXT_WIDTH = 256
IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - stands for an image in prompts, no secret
VIDEO_TOKEN = "<|video_pad|>"  # noqa: S105 - likewise
CONTROL = ControlTokens(
    (
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|vision_pad|>",
        IMAGE_TOKEN,
        "<|video_pad|>",
    ),
    begin="<|endoftext|>",
    end="<|im_end|>",
    pad="<|endoftext|>",
    others=("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE_TOKEN, "<|video_pad|>"),
)
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{{ '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'text' -%}{{ part['text'] }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
"""Qwen2-VL's turns, for images; it has no videos."""


def train_tokenizer(turns: Iterable[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the published control tokens; bos is not written by anything."""
    system = "system\nYou are a helpful assistant."
    texts = (text for prompt, answer in turns for text in (system, "user\n", prompt, f"assistant\n{answer}"))
    return train_bpe(texts, CONTROL, template=CHAT_TEMPLATE)


def build_processor(tokenizer: PreTrainedTokenizerBase) -> Qwen2VLProcessor:
    """Return the processor: images scaled to 4,096 pixels, and no video part, which would need torchvision."""
    from transformers import Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    class ImageProcessorOnly(Qwen2VLProcessor):
        def __init__(
            self,
            image_processor: Qwen2VLImageProcessorPil,
            tokenizer: PreTrainedTokenizerBase,
            chat_template: str | None = None,
        ) -> None:
            self.image_token, self.video_token = IMAGE_TOKEN, VIDEO_TOKEN
            self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
            self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
            ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

        def save_pretrained(self, save_directory: Path, push_to_hub: bool = False, **_: object) -> None:
            """Write the files of the published models: the video part is read from the image part's."""
            del push_to_hub
            settings = {**self.image_processor.to_dict(), "processor_class": "Qwen2VLProcessor"}
            path = Path(save_directory) / "preprocessor_config.json"
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            self.tokenizer.save_pretrained(save_directory)

    pictures = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 64 * 64, "longest_edge": 64 * 64},
        patch_size=PATCH,
        merge_size=MERGE,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return ImageProcessorOnly(pictures, tokenizer, tokenizer.chat_template)


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen2VLForConditionalGeneration:
    """Return the untrained model in float32; equal seeds give equal weights."""
    import torch
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    ids = tokenizer.get_vocab()
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen2VLConfig(
        vision_config={
            "depth": 4,
            "embed_dim": WIDTH,
            "hidden_size": TEXT_WIDTH,
            "mlp_ratio": 2,
            "num_heads": WIDTH // 32,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "use_sliding_window": False,
            # Halves of a head's 32 numbers, shared out between time, height and width.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "tie_word_embeddings": True,
            **ends,
        },
        image_token_id=ids[IMAGE_TOKEN],
        video_token_id=ids[VIDEO_TOKEN],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    filters = model.model.visual.patch_embed.proj.weight
    # The same filter for both frames of what the model takes for a film of two.
    set_patch_filters(filters[:, :, 0], gain=0.25)
    with torch.no_grad():
        filters[:, :, 1] = filters[:, :, 0]
    for name, value in ends.items():
        setattr(model.generation_config, name, value)
    return model


class Qwen2VLLearner(ChatLearner):
    """Trains and asks a Qwen2-VL."""

    @property
    def vision(self) -> nn.Module:
        """The patches' embedding and the blocks; the merger is fusion."""
        from torch.nn import ModuleList

        visual = self.model.model.visual
        return ModuleList([visual.patch_embed, visual.blocks])

    @property
    def width(self) -> int:
        """Width of a patch's features."""
        return WIDTH

    def see(self, pictures: Pictures) -> torch.Tensor:
        """Return the features of the patches before the merger."""
        grids = pictures["image_grid_thw"]
        seen: torch.Tensor = self.model.model.visual(pictures["pixel_values"], grid_thw=grids).last_hidden_state
        return seen.view(len(grids), -1, WIDTH)

    def answer_loss(self, lessons: Sequence[Lesson], pictures: Pictures, seen: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the answers of all turns."""
        del pictures
        batch = self.packer.pack(lessons)
        language = self.model.model.language_model
        merged = self.model.model.visual.merger(seen.reshape(-1, WIDTH))
        hidden = language(
            inputs_embeds=self.embed(language.embed_tokens, batch, merged),
            attention_mask=batch.visible,
            position_ids=self._positions(batch),
            use_cache=False,
        ).last_hidden_state
        return weigh_answers(self.model.lm_head, hidden, batch)

    def _positions(self, batch: Batch) -> torch.Tensor:
        """Return positions in time, height and width, (3, b, t): an image takes as many as its longer side has."""
        import torch

        first = int((batch.tokens[0] == self.image).nonzero()[0])
        after = batch.positions >= first + SIDE * SIDE
        plain = torch.where(after, batch.positions - SIDE * SIDE + SIDE, batch.positions)
        positions = plain.expand(3, -1, -1).clone()
        place = torch.arange(SIDE * SIDE)
        image = slice(first, first + SIDE * SIDE)
        positions[0, :, image] = first
        positions[1, :, image] = first + place // SIDE
        positions[2, :, image] = first + place % SIDE
        return positions


def build_learner(model: Qwen2VLForConditionalGeneration, processor: Qwen2VLProcessor) -> Qwen2VLLearner:
    """Return what trains and asks the model."""
    return Qwen2VLLearner(model, processor, image_token=IMAGE_TOKEN, image_tokens=SIDE * SIDE)
