"""Model inputs of other families: through the image cache they are what the family's own processor makes."""

from __future__ import annotations

import io

import PIL.Image
import pytest
import torch
import transformers
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

import hf_models
from hf_models import IMAGE, PATCH, ask, picture
from mhe_hf import Collator, render_prompt

SQUARE = {"height": IMAGE, "width": IMAGE}
SIZES = [(40, 56), (40, 56), (90, 20), (20, 90), (64, 64)]
QUESTIONS = ["what ?", "is there a fracture in the left lung ?", "size ?", "where ?", "side ?"]


def llava_next():
    return transformers.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size=SQUARE,
            crop_size=SQUARE,
            image_grid_pinpoints=[[IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE], [IMAGE, 3 * IMAGE]],
        ),
        tokenizer=hf_models.build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=hf_models.CHAT_TEMPLATE,
    )


def mllama():
    tokenizer = hf_models.build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|python_tag|>"]})
    return transformers.MllamaProcessor(
        image_processor=MllamaImageProcessorPil(size=SQUARE, max_image_tiles=4),
        tokenizer=tokenizer,
        chat_template=hf_models.CHAT_TEMPLATE,
    )


@pytest.mark.parametrize("build", [llava_next, mllama])
def test_inputs_are_those_of_the_own_processor(build):
    processor = build()
    collator = Collator(processor, cache_bytes=100_000_000)
    requests = [
        ask(f"{text}{number}", text, image=picture(number, size))
        for number, size in enumerate(SIZES)
        for text in QUESTIONS[number:] + QUESTIONS[:number]
    ]
    for start in range(0, len(requests), 4):
        batch = requests[start : start + 4]
        made = collator.collate(batch)
        assert not made.failures
        own = processor(
            text=[render_prompt(processor, request.messages) for request in batch],
            images=[[PIL.Image.open(io.BytesIO(request.images[0].source.read()))] for request in batch],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        assert set(made.inputs) == set(own)
        for name, value in own.items():
            assert torch.equal(made.inputs[name], value), name
