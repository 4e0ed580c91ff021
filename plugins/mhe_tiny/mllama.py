"""`tiny-mllama`: Llama-3.2-Vision's own classes; the language model looks at the image in one of its layers.

One tile of 64 x 64 in 8 x 8 patches. vLLM does not have it, so that the eight heads of the text model may be 16 wide.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from mhe_tiny.chat import ChatLearner
from mhe_tiny.initial import set_patch_filters, set_positions
from mhe_tiny.packing import weigh_answers
from mhe_tiny.tokens import CONTEXT, ControlTokens, train_bpe

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from torch import nn
    from transformers import (
        MllamaForConditionalGeneration,
        MllamaProcessor,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

    from mhe_tiny.architecture import Pictures
    from mhe_tiny.lessons import Lesson

CLASS = "MllamaForConditionalGeneration"
ANSWERS_QUESTIONS = True
IMAGE_SIZE = 64
PATCH = 8
WIDTH = 128
# The last layer's states, and beside them those before the second layer.
SEEN_WIDTH = 2 * WIDTH
OPENED = 1.0
"""What gates start at: at 0, as the library starts them, vision would get no gradient."""
IMAGE_TOKEN = "<|image|>"  # noqa: S105 - stands for an image in prompts, no secret
END = "<|eot_id|>"
CONTROL = ControlTokens(
    (
        "<|begin_of_text|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        END,
        "<|python_tag|>",
        IMAGE_TOKEN,
    ),
    begin="<|begin_of_text|>",
    end=END,
    pad="<|finetune_right_pad_id|>",
    others=("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>", IMAGE_TOKEN),
)
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{ '<|image|>' }}{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""
"""Llama-3.2-Vision's turns, without tools and without the date."""


def train_tokenizer(turns: Iterable[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Return the tokenizer with the control tokens that the template and the processor need."""
    # No text ends in the template's two line ends: as one token they would not be what stands before an answer.
    texts = (text for prompt, answer in turns for text in ("user", prompt, f"assistant\n\n{answer}"))
    return train_bpe(texts, CONTROL, template=CHAT_TEMPLATE)


def build_processor(tokenizer: PreTrainedTokenizerBase) -> MllamaProcessor:
    """Return the processor: one tile of 64 x 64, padded where an image is not square; values in [-1, 1]."""
    from transformers import MllamaProcessor
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    pictures = MllamaImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        max_image_tiles=1,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return MllamaProcessor(image_processor=pictures, tokenizer=tokenizer, chat_template=tokenizer.chat_template)


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> MllamaForConditionalGeneration:
    """Return the untrained model in float32; equal seeds give equal weights."""
    import torch
    from transformers import MllamaConfig, MllamaForConditionalGeneration
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    vision = MllamaVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=3,
        num_global_layers=1,
        attention_heads=4,
        vision_output_dim=SEEN_WIDTH,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        max_num_tiles=1,
        supported_aspect_ratios=[[1, 1]],
        intermediate_layers_indices=[1],
    )
    language = MllamaTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=4,
        cross_attention_layers=[1, 3],
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = MllamaConfig(
        vision_config=vision,
        text_config=language,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
    )
    torch.manual_seed(seed)
    model = MllamaForConditionalGeneration(config)
    seeing = model.model.vision_model
    set_patch_filters(seeing.patch_embedding.weight)
    set_positions(seeing.gated_positional_embedding.embedding)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cross_attn_attn_gate", "cross_attn_mlp_gate", "gate_attn", "gate_ffn")):
                parameter.fill_(OPENED)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model


class MllamaLearner(ChatLearner):
    """Trains and asks an mllama."""

    @property
    def vision(self) -> nn.Module:
        """The local and the global encoder."""
        encoder: nn.Module = self.model.model.vision_model
        return encoder

    @property
    def width(self) -> int:
        """Width of a patch's features: of several layers side by side."""
        return SEEN_WIDTH

    def look(self, images: Sequence[PIL.Image.Image]) -> Pictures:
        """Return what the image processor makes of the images, each of a conversation of its own."""
        pictures: Pictures = self.processor.image_processor([[image] for image in images], return_tensors="pt")
        return pictures

    def see(self, pictures: Pictures) -> torch.Tensor:
        """Return the features of the class token and the patches as the projector gets them."""
        seen: torch.Tensor = self.model.model.vision_model(
            pictures["pixel_values"], pictures["aspect_ratio_ids"], pictures["aspect_ratio_mask"]
        ).last_hidden_state
        return seen.flatten(1, 3)

    def answer_loss(self, lessons: Sequence[Lesson], pictures: Pictures, seen: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the answers of all turns."""
        del pictures
        batch = self.packer.pack(lessons)
        first = int((batch.tokens[0] == self.image).nonzero()[0])
        # What stands before the image does not see it.
        sees = batch.positions >= first
        hidden = self.model.model(
            input_ids=batch.tokens,
            attention_mask=batch.visible,
            position_ids=batch.positions,
            cross_attention_states=self.model.model.multi_modal_projector(seen),
            cross_attention_mask=sees[:, :, None, None].long(),
            use_cache=False,
        ).last_hidden_state
        return weigh_answers(self.model.lm_head, hidden, batch)


def build_learner(model: MllamaForConditionalGeneration, processor: MllamaProcessor) -> MllamaLearner:
    """Return what trains and asks the model."""
    return MllamaLearner(model, processor, image_token=IMAGE_TOKEN, image_tokens=1)
