"""A small CLIP with weights drawn from a seed, images and captions for it, and the formula by hand."""

from __future__ import annotations

import io
import json

import numpy as np
import PIL.Image
import pytest

from mhe import (
    BytesSource,
    Case,
    Image,
    MetricContext,
    Sample,
)
from mhe_metrics.clipscore import ClipScore

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


SIDE = 32
LONG = "a nodule of the left lung " * 60
ANSWERS = [
    "an axial CT of the chest",
    "",
    "左肺有结节 🫁 ±5 µm",
    LONG,
    "chest, lateral view",
    "an axial CT of the chest",
]
REFERENCES = [
    ("A CT of the chest.", "axial slice with a nodule"),
    ("no finding",),
    ("a nodule of 3.5 cm", "左肺有结节"),
    (LONG + "with an ending that is cut off",),
    ("chest, lateral view",),
    ("mri of the head",),
]


def picture(seed):
    """A PNG of twenty coloured fields."""
    values = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    PIL.Image.fromarray(values).resize((56, 40), PIL.Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def build_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    plain = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=200, end_of_word_suffix="</w>", show_progress=False)
    plain.train_from_iterator([f"a photo depicts {text}".lower() for text in (*ANSWERS[:1], *ANSWERS[4:])] * 9, trainer)
    merges = [tuple(merge) for merge in json.loads(plain.to_str())["model"]["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {
        word: number for number, word in enumerate([*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"])
    }
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build_clip(folder, *, seed=7):
    """A CLIP of a few thousand random weights, as transformers publishes them."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = build_tokenizer(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    end = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = CLIPConfig(
        text_config={**sizes, **end, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "projection_dim": 24},
        vision_config={**sizes, "image_size": SIDE, "patch_size": 8, "projection_dim": 24},
        projection_dim=24,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder
    )
    return folder


def make(clip, cache, **options):
    return ClipScore(ClipScore.Options(encoder=str(clip), device="cpu", **options), MetricContext(cache_dir=cache))


def make_cases(answers=ANSWERS, references=REFERENCES, images=None):
    images = images or [picture(seed % 4) for seed in range(len(answers))]
    return [
        Case(Sample(f"s{n}", (Image(f"i{n}", BytesSource(image)),), tuple(refs)), answer)
        for n, (answer, refs, image) in enumerate(zip(answers, references, images, strict=True))
    ]


def by_hand(folder, cases):
    """The formula, straight from `CLIPModel` on one sample at a time, without a batch and without our code."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessorPil.from_pretrained(folder)

    def text_vector(text):
        ids = tokenizer("A photo depicts " + text, truncation=True, max_length=77, return_tensors="pt")
        assert ids["input_ids"].shape[1] <= 77
        return model.get_text_features(**ids).pooler_output[0]

    rows = []
    with torch.no_grad():
        for case in cases:
            pixels = PIL.Image.open(io.BytesIO(case.sample.images[0].source.read())).convert("RGB")
            seen = model.get_image_features(**processor(pixels, return_tensors="pt")).pooler_output[0]
            answer = text_vector(case.answer)
            score = 2.5 * max(torch.cosine_similarity(seen, answer, dim=0).item(), 0)
            texts = [
                torch.cosine_similarity(answer, text_vector(text), dim=0).item() for text in case.sample.references
            ]
            best = max(*texts, 0) if texts else None
            both = None if best is None else (2 * score * best / (score + best) if score + best else 0.0)
            rows.append((score, both))
    return rows
