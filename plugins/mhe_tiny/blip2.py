"""`tiny-blip2`: BLIP-2's own classes, an image encoder, a Q-Former and OPT.

Sixteen learnt queries look at the image and stand before the text `Question: … Answer:`. Published checkpoints end
an answer at a line's end, this one at OPT's `</s>`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mhe_tiny.initial import set_patch_filters, set_positions
from mhe_tiny.packing import Packer, Turn, weigh_answers
from mhe_tiny.tokens import ControlTokens, train_bpe

if TYPE_CHECKING:
    import PIL.Image
    import torch
    from torch import nn
    from transformers import (
        Blip2ForConditionalGeneration,
        Blip2Processor,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )

    from mhe_tiny.architecture import Pictures
    from mhe_tiny.lessons import Lesson

CLASS = "Blip2ForConditionalGeneration"
ANSWERS_QUESTIONS = True
IMAGE_SIZE = 64
PATCH = 8
WIDTH = 96
TEXT_WIDTH = 256
QUERIES = 16
CONTEXT = 256
PROMPT = "Question: {} Answer:"
"""The paper's, for question answering."""
IMAGE_TOKEN = "<image>"  # noqa: S105 - stands for an image in prompts, no secret
CONTROL = ControlTokens(
    ("<s>", "<pad>", "</s>", "<unk>", IMAGE_TOKEN),
    begin="</s>",
    end="</s>",
    pad="<pad>",
    unknown="<unk>",
    others=(IMAGE_TOKEN,),
)


def train_tokenizer(turns: Iterable[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Return OPT's kind of tokenizer, which begins every text with `</s>`."""
    from tokenizers import processors

    texts = (f"{PROMPT.format(prompt)} {answer}" for prompt, answer in turns)
    tokenizer = train_bpe(texts, CONTROL, context=CONTEXT)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", tokenizer.bos_token_id)]
    )
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerBase) -> Blip2Processor:
    """Return the processor: the whole image squeezed to 64 x 64, values in [-1, 1]."""
    from transformers import Blip2Processor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    pictures = BlipImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    return Blip2Processor(pictures, tokenizer, num_query_tokens=QUERIES)


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> Blip2ForConditionalGeneration:
    """Return the untrained model in float32; equal seeds give equal weights."""
    import torch
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

    config = Blip2Config(
        vision_config={
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            # The library's 1e-10 is meant for weights that are read from a file.
            "initializer_range": 0.02,
        },
        qformer_config={
            "hidden_size": WIDTH,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "encoder_hidden_size": WIDTH,
            "cross_attention_frequency": 1,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            # The text embeddings of the Q-Former are not used in generation.
            "vocab_size": 2,
            "max_position_embeddings": 2,
        },
        text_config=OPTConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            word_embed_proj_dim=TEXT_WIDTH,
            ffn_dim=256,
            num_hidden_layers=2,
            num_attention_heads=8,
            max_position_embeddings=CONTEXT,
            dropout=0.0,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ).to_dict(),
        num_query_tokens=QUERIES,
        image_text_hidden_size=WIDTH,
        image_token_index=tokenizer.get_vocab()[IMAGE_TOKEN],
    )
    torch.manual_seed(seed)
    model = Blip2ForConditionalGeneration(config)
    embeddings = model.vision_model.embeddings
    set_patch_filters(embeddings.patch_embedding.weight)
    set_positions(embeddings.position_embedding[0])
    with torch.no_grad():
        # The library starts them at 0, which makes all queries one.
        model.query_tokens.normal_(std=0.5)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.generation_config, name, getattr(tokenizer, name))
    return model


class Blip2Learner:
    """Trains and asks a BLIP-2."""

    width = WIDTH

    def __init__(self, model: Blip2ForConditionalGeneration, processor: Blip2Processor) -> None:
        # The library's annotations take half of the sub-modules for tensors.
        self.model: Any = model
        self.processor = processor
        self._image = int(processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        self._packer = Packer(self._encode, processor.tokenizer.pad_token_id)

    @property
    def vision(self) -> nn.Module:
        """The image encoder."""
        encoder: nn.Module = self.model.vision_model
        return encoder

    def _encode(self, prompt: str, answer: str) -> Turn:
        tokenizer = self.processor.tokenizer
        said = tokenizer(f" {answer}", add_special_tokens=False).input_ids
        asked = tokenizer(PROMPT.format(prompt)).input_ids
        return Turn([self._image] * QUERIES, list(asked), [*said, tokenizer.eos_token_id])

    def look(self, images: Sequence[PIL.Image.Image]) -> Pictures:
        """Return what the image processor makes of the images."""
        pictures: Pictures = self.processor.image_processor(list(images), return_tensors="pt")
        return pictures

    def see(self, pictures: Pictures) -> torch.Tensor:
        """Return the features of the class token and the patches, as the Q-Former gets them."""
        seen: torch.Tensor = self.model.vision_model(pictures["pixel_values"]).last_hidden_state
        return seen

    def answer_loss(self, lessons: Sequence[Lesson], pictures: Pictures, seen: torch.Tensor) -> torch.Tensor:
        """Return the mean loss over the answers of all turns."""
        del pictures
        batch = self._packer.pack(lessons)
        model = self.model
        queries = model.query_tokens.expand(len(seen), -1, -1)
        told = model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        words = model.language_model.get_input_embeddings()(batch.tokens)
        at_image = (batch.tokens == self._image)[..., None]
        hidden = model.language_model.model(
            inputs_embeds=words.masked_scatter(at_image, model.language_projection(told)),
            attention_mask=batch.visible,
            position_ids=batch.positions,
            use_cache=False,
        ).last_hidden_state
        return weigh_answers(model.language_model.lm_head, hidden, batch)

    def ask(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], new_tokens: int) -> list[str]:
        """Return the greedy answer to each prompt about its image."""
        import torch

        inputs = self.processor(
            images=list(images),
            text=[PROMPT.format(prompt) for prompt in prompts],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        written = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)]


def build_learner(model: Blip2ForConditionalGeneration, processor: Blip2Processor) -> Blip2Learner:
    """Return what trains and asks the model."""
    return Blip2Learner(model, processor)
