"""Small models: built from a seed, published in the usual format, and better than any constant answer."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest

from mhe import UserError, file_digest, open_image, read_samples
from mhe_tiny import MODELS, register_models

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from mhe_tiny.build import SPREAD, build, build_folder  # noqa: E402
from mhe_tiny.lessons import CAPTIONS, QUESTIONS, read_lessons, read_prompts, stream_lessons  # noqa: E402
from mhe_tiny.packing import IGNORED, Packer  # noqa: E402
from mhe_tiny.report import answer_samples, load_model, score_answers  # noqa: E402
from mhe_tiny.tokens import train_tokenizer  # noqa: E402
from mhe_tiny.training import Course, Plan, answer_loss, train  # noqa: E402
from mhe_tiny.turns import render_turn  # noqa: E402

PACKAGED = MODELS / "tiny-llava"
WEIGHTS = "model.safetensors"

TEXTS = [
    "Is there a lesion?",
    "Größe der Läsion: 3 µm ≥ 2, 病灶在哪里?",
    "אין ממצא \u202bfree\u202c",
    "line\nline\r\n\ttab  two blanks . , don't",
    "\x00\x07\x7f",
    "🩻👩🏽\u200d⚕️",
    "a" * 5000,
]


@pytest.fixture(scope="module")
def lessons():
    return read_lessons(0, 64)


@pytest.fixture(scope="module")
def pair(lessons):
    return build("tiny-llava", 0, lessons)


@pytest.fixture(scope="module")
def packaged():
    return load_model(PACKAGED)


def test_the_registered_models_lie_in_the_package():
    specs = register_models()
    assert [spec.name for spec in specs] == ["tiny-llava"]
    assert [spec.location for spec in specs] == ["package:mhe_tiny/models/tiny-llava"]
    assert (PACKAGED / WEIGHTS).is_file()


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_the_tokenizer(packaged, text):
    tokenizer = packaged[1].tokenizer
    tokens = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens) == text


def test_the_tokenizer_knows_every_byte_of_unseen_text():
    tokenizer = train_tokenizer(["yes no"])
    assert tokenizer.decode(tokenizer("Ωμέγα 𝛀").input_ids) == "Ωμέγα 𝛀"


def test_a_long_text_is_encoded_whole(packaged):
    tokenizer = packaged[1].tokenizer
    assert len(tokenizer("lesion " * 15_000).input_ids) > tokenizer.model_max_length


def test_equal_seeds_build_equal_models(lessons, pair):
    again, _ = build("tiny-llava", 0, lessons)
    other, _ = build("tiny-llava", 1, lessons)
    first, second, third = (model.state_dict() for model in (pair[0], again, other))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)


def test_an_unknown_name_is_refused(lessons):
    with pytest.raises(UserError, match="there are: tiny-llava"):
        build("tiny-lava", 0, lessons)


def encode(processor, lesson, text):
    return processor(images=open_image(lesson.image), text=text, return_tensors="pt")


def test_packed_turns_cost_what_single_ones_do(lessons, pair):
    """The loss of a packed image is that of its conversations, each run alone through the whole model."""
    model, processor = pair
    packer = Packer(processor, model.config.image_seq_length)
    lesson = lessons[0]
    with torch.no_grad():
        batch = packer.pack([lesson])
        seen = model.model.vision_tower(batch.pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        packed = answer_loss(model, batch, seen)
        single = []
        for prompt, answer in lesson.turns:
            whole = processor(
                images=open_image(lesson.image), text=render_turn(processor, prompt, answer), return_tensors="pt"
            )
            opened = processor(
                images=open_image(lesson.image), text=render_turn(processor, prompt), return_tensors="pt"
            )
            labels = whole["input_ids"].clone()
            labels[:, : opened["input_ids"].shape[1]] = IGNORED
            single.append(model(**whole, labels=labels).loss)
    assert packed.item() == pytest.approx(torch.stack(single).mean().item(), abs=1e-5)


def test_lessons_are_never_repeated_nor_those_of_the_test(lessons):
    stream = stream_lessons(1)
    fresh = [next(stream) for _ in range(100)]
    used = {lesson.image.source.digest() for lesson in fresh}
    tested = {sample.images[0].source.digest() for sample in read_samples(CAPTIONS, "test")}
    assert len(used) == len(fresh)
    assert len(tested) == 300
    assert not used & (tested | {lesson.image.source.digest() for lesson in lessons})


def test_training_is_seeded_and_learns(lessons):
    losses = []
    plan = Plan(vision_steps=2, vision_batch=4, steps=6, batch=4, warm_up=2)
    for _ in range(2):
        model, processor = build("tiny-llava", 0, lessons)
        heard = []
        fresh = iter(read_lessons(1, 600))
        report = partial(lambda to, stage, _step, _steps, loss: to.append((stage, loss)), heard)
        train(Course(model, processor, fresh, plan, report))
        losses.append(heard)
    assert losses[0] == losses[1]
    whole = [loss for stage, loss in losses[0] if stage == "whole"]
    assert whole[-1] < whole[0]


def test_a_built_folder_is_spelt_as_published_and_loads_in_transformers(tmp_path, monkeypatch, lessons):
    from safetensors import safe_open
    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr("mhe_tiny.build.read_lessons", lambda _stream, _count: lessons)
    folder = build_folder("tiny-llava", tmp_path / "random", seed=5)
    with safe_open(folder / WEIGHTS, "pt") as file:
        names = list(file.keys())
    assert "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert not any(name.startswith("vision_tower.encoder") for name in names)
    model, report = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    built, _ = build("tiny-llava", 5, lessons)
    expected = built.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key] * SPREAD if value.ndim == 2 else expected[key]), key


def test_a_random_twin_answers_by_what_it_is_shown(tmp_path, monkeypatch, lessons):
    """Otherwise it could not show whether two backends agree."""
    monkeypatch.setattr("mhe_tiny.build.read_lessons", lambda _stream, _count: lessons)
    model, processor = load_model(build_folder("tiny-llava", tmp_path / "random", seed=1))
    samples = read_samples(CAPTIONS, "test", limit=16)
    assert len(set(answer_samples(model, processor, samples, read_prompts()[CAPTIONS]))) >= 8


def test_the_packaged_weights_are_small_and_those_of_their_readme():
    weights = PACKAGED / WEIGHTS
    assert weights.stat().st_size < 8_000_000
    page = (PACKAGED / "README.md").read_text(encoding="utf-8")
    assert re.search(r"SHA-256 of `model.safetensors`: `([0-9a-f]{64})`", page).group(1) == file_digest(weights)
    assert "says nothing of medicine" in page


def test_the_packaged_model_fits_vllm_and_pruning():
    config = json.loads((PACKAGED / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["text_config"]["head_dim"] == 32
    assert config["text_config"]["num_attention_heads"] == 8
    assert config["vision_config"]["hidden_size"] // config["vision_config"]["num_attention_heads"] == 32


def test_the_packaged_model_beats_every_constant_answer(packaged):
    """On every type of question, open and closed, over the first images of the test split."""
    model, processor = packaged
    samples = read_samples(QUESTIONS, "test", options={"count": 60, "per_type": 2})
    rows = score_answers(samples, answer_samples(model, processor, samples, read_prompts()[QUESTIONS]))
    assert len(rows) == 13
    for row in rows:
        assert row.right > row.majority + 0.1, row


def test_the_packaged_model_writes_captions(packaged):
    model, processor = packaged
    samples = read_samples(CAPTIONS, "test", limit=20)
    captions = answer_samples(model, processor, samples, read_prompts()[CAPTIONS], new_tokens=48)
    named = sum(
        s.groups["region"] in text and s.groups["modality"].lower() in text.lower()
        for s, text in zip(samples, captions, strict=True)
    )
    assert named >= 18
