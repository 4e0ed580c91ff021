"""A random LLaVA of a few thousand weights, written as transformers publishes them: built in well under a second."""

from __future__ import annotations

from pathlib import Path

import torch

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %} <image>{% else %} {{ part['text'] }}"
    "{% endif %}{% endfor %}{% if message['role'] == 'assistant' %}</s>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CONTEXT = 192
IMAGE = 32
PATCH = 8
IMAGE_TOKENS = (IMAGE // PATCH) ** 2
WORDS = (
    "is there a fracture in the left right lung liver heart yes no what where show this image normal abnormal "
    "chest ray mri ct scan describe pleural effusion side size large small ASSISTANT USER SYSTEM : ? . ,"
)


def build_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 10, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )


def build_llava(
    folder: Path,
    *,
    seed: int = 0,
    chat_template: str | None = CHAT_TEMPLATE,
    hidden: int = 64,
    layers: int = 2,
) -> Path:
    """Write a random tiny LLaVA into `folder`."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = build_tokenizer()
    size = {"height": IMAGE, "width": IMAGE}
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
    configuration = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=IMAGE,
            patch_size=PATCH,
        ),
        text_config=LlamaConfig(
            hidden_size=hidden, intermediate_size=3 * hidden // 2, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=2,
            vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(configuration)
    with torch.no_grad():
        for parameter in model.parameters():
            # Random as initialised, a model of this size repeats one token whatever it is shown.
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
