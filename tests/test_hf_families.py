"""Every family of models: asked, decoded, saved, taught and quantised as the library and the published models do."""

from __future__ import annotations

import io
import json

import PIL.Image
import pytest
import torch
import transformers
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

import hf_family_models
import hf_models
from hf_family_models import CAPTIONERS, SQUARE
from hf_models import IMAGE, PATCH, answers, ask, open_backend, picture, spec_of
from mhe import Generation, Message, ModelUnusableError, SampleModelError
from mhe_hf import (
    Collator,
    bind_family,
    family_of,
    load_model,
    load_processor,
    render_prompt,
    save_published,
)

SIZES = [(40, 56), (40, 56), (90, 20), (20, 90), (64, 64)]
QUESTIONS = ["what ?", "is there a fracture in the left lung ?", "size ?", "where ?", "side ?"]
FAMILIES = list(hf_family_models.FAMILIES)
ASKED = [name for name in FAMILIES if name not in CAPTIONERS]


pytestmark = pytest.mark.usefixtures("one_thread")


def requests_for(name: str, number: int = 16, generation: Generation | None = None):
    """Questions of unequal length on images of unequal shape; a captioner is asked one thing."""
    return [
        ask(
            f"q{n}",
            "what ?" if name in CAPTIONERS else QUESTIONS[n % 5],
            image=picture(n // 2, SIZES[n % 5]),
            generation=generation or Generation(max_new_tokens=4),
            seed=100 + n,
        )
        for n in range(number)
    ]


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize("name", FAMILIES)
def test_any_batch_gives_the_same_texts(family_folder, name):
    found = []
    for size, prefetch in ((1, 0), (4, 2), (16, 1)):
        backend = open_backend(family_folder(name), batch_size=size, prefetch=prefetch, dtype="float32")
        responses = answers(backend, requests_for(name))
        assert not [r.error for r in responses.values() if r.error]
        found.append({n: (r.text, r.generated_tokens, r.prompt_tokens) for n, r in responses.items()})
        backend.close()
    assert found[0] == found[1] == found[2]
    # Sixteen questions on eight images, or eight images alone.
    assert len({text for text, _, _ in found[0].values()}) >= (6 if name in CAPTIONERS else 10)


@pytest.mark.parametrize("name", ["visiongpt2", "blip", "blip-vqa", "blip-2"])
def test_sampled_answers_follow_their_seed_in_any_batch(family_folder, name):
    asked = Generation(max_new_tokens=4, temperature=0.8, top_p=0.95)
    requests = requests_for(name, 6, asked)
    found = []
    for size, step in ((1, 1), (6, 1), (4, -1)):
        backend = open_backend(family_folder(name), batch_size=size, dtype="float32")
        found.append({n: r.text for n, r in answers(backend, requests[::step]).items()})
        backend.close()
    assert found[0] == found[1] == found[2]


def answer_of_the_library(name: str, model, processor, request) -> str:
    """As the model's own documentation asks it, one sample at a time."""
    image = PIL.Image.open(io.BytesIO(request.images[0].source.read())).convert("RGB")
    question = request.messages[0].text
    chosen = {"max_new_tokens": 4, "do_sample": False}
    if name == "visiongpt2":
        pixels = processor.image_processor([image], return_tensors="pt").pixel_values
        tokens = transformers.VisionEncoderDecoderModel.generate(model, pixels, **chosen)[0, 1:]
    elif name == "blip":
        tokens = model.generate(**processor(images=image, return_tensors="pt"), **chosen)[0, 1:]
    elif name == "blip-vqa":
        tokens = model.generate(**processor(images=image, text=question, return_tensors="pt"), **chosen)[0, 1:]
    elif name == "blip-2":
        inputs = processor(images=image, text=f"Question: {question} Answer:", return_tensors="pt")
        tokens = model.generate(**inputs, **chosen)[0, inputs["input_ids"].shape[1] :]
    else:
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        inputs = processor(images=[[image]], text=[text], return_tensors="pt")
        tokens = model.generate(**inputs, **chosen)[0, inputs["input_ids"].shape[1] :]
    text = processor.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    # Half a character at the end is left out.
    return text.rstrip("\ufffd").strip()


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_the_library(family_folder, loaded_family, name):
    backend = open_backend(family_folder(name), batch_size=5, dtype="float32")
    requests = requests_for(name, 5)
    texts = [answers(backend, requests)[r.sample_id].text for r in requests]
    backend.close()
    model, processor = loaded_family(name)
    assert texts == [answer_of_the_library(name, model, processor, request) for request in requests]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_model_is_the_same_model(family_folder, loaded_family, name, tmp_path):
    model, processor = loaded_family(name)
    save_published(model, processor, tmp_path / "again")
    again, _ = load_model(spec_of(tmp_path / "again"))
    own = model.state_dict()
    assert own.keys() == again.state_dict().keys()
    assert all(torch.equal(own[key], value) for key, value in again.state_dict().items())
    texts = []
    for place in (family_folder(name), tmp_path / "again"):
        backend = open_backend(place)
        texts.append({n: r.text for n, r in answers(backend, requests_for(name, 4)).items()})
        backend.close()
    assert texts[0] == texts[1]
    # Plain transformers, with the class that config.json names, finds every weight.
    named = json.loads((tmp_path / "again" / "config.json").read_text())["architectures"][0]
    _, report = getattr(transformers, named).from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llava", "USER: <image> what side ?\nASSISTANT:"),
        ("qwen2_vl", "USER: <|vision_start|><|image_pad|><|vision_end|> what side ?\nASSISTANT:"),
        ("mllama", "USER: <|image|> what side ?\nASSISTANT:"),
        ("visiongpt2", ""),
        ("blip", ""),
        ("blip-vqa", "what side ?"),
        ("blip-2", "Question: what side ? Answer:"),
    ],
)
def test_prompts(loaded_family, name, expected):
    assert render_prompt(loaded_family(name)[1], [Message("user", "what side ?", images=1)]) == expected


@pytest.mark.parametrize("name", CAPTIONERS)
def test_a_captioner_continues_its_prefix(family_folder, name):
    plain, begun = (open_backend(family_folder(name), prefix=prefix) for prefix in ("", "chest x ray"))
    one, other = (answers(backend, requests_for(name, 3)) for backend in (plain, begun))
    length = len(begun._processor.tokenizer("chest x ray", add_special_tokens=False)["input_ids"])
    assert {r.prompt_tokens for r in one.values()} == {1}
    assert {r.prompt_tokens for r in other.values()} == {1 + length}
    assert [r.text for r in one.values()] != [r.text for r in other.values()]
    assert not any(r.text.startswith("chest x ray") for r in other.values())
    assert plain.describe().key_options != begun.describe().key_options


@pytest.mark.parametrize("name", CAPTIONERS)
def test_a_captioner_answers_no_task_of_questions(family_folder, name):
    backend = open_backend(family_folder(name))
    responses = answers(backend, [ask("a", "what ?"), ask("b", "where ?"), ask("c", "what ?")], pending=["a", "b"])
    assert set(responses) == {"a", "b"}
    for response in responses.values():
        assert response.error.kind == "model"
        assert "captioner: it is shown the image alone, and this task asks 2 different" in response.error.message


@pytest.mark.parametrize("name", ["visiongpt2", "blip", "blip-vqa", "blip-2"])
def test_what_a_family_without_conversations_cannot_take_costs_that_sample_only(family_folder, name):
    import dataclasses

    backend = open_backend(family_folder(name))
    good = ask("good", "what ?")
    pair = dataclasses.replace(
        good, sample_id="pair", images=(*good.images, *good.images), messages=(Message("user", "what ?", images=2),)
    )
    alone = dataclasses.replace(good, sample_id="alone", images=(), messages=(Message("user", "what ?"),))
    responses = answers(backend, [pair, good, alone])
    assert {responses[n].error.kind for n in ("pair", "alone")} == {"model"}
    assert "one image at a time, and the sample has 2" in responses["pair"].error.message
    assert responses["good"].error is None
    turns = [Message("user", "what ?", images=1), Message("assistant", "ct"), Message("user", "where ?")]
    with pytest.raises(SampleModelError, match="takes no conversation; the prompt has the turns user, assistant, user"):
        render_prompt(backend._processor, turns)


@pytest.mark.parametrize(("name", "token"), [("blip-vqa", "[SEP]"), ("blip-2", "<image>")])
def test_a_control_token_in_a_question_is_a_model_error(family_folder, name, token):
    responses = answers(open_backend(family_folder(name)), [ask("sly", f"is {token} here ?"), ask("good")])
    assert responses["sly"].error.kind == "model"
    assert token in responses["sly"].error.message
    assert responses["good"].error is None


@pytest.mark.parametrize("name", ["blip-vqa", "blip-2", "qwen2_vl", "mllama", "llava_next"])
def test_a_prompt_beyond_the_context_is_recorded_and_never_cut(family_folder, name):
    backend = open_backend(family_folder(name))
    responses = answers(backend, [ask("good"), ask("long", "where is it ? " * 60)])
    assert responses["long"].error.kind == "model"
    assert "context" in responses["long"].error.message
    assert responses["good"].error is None


def test_an_image_with_more_tokens_than_the_context_is_recorded(family_folder, tmp_path):
    """Qwen2-VL sees images at their own resolution, up to the processor's limit."""
    import shutil

    folder = shutil.copytree(family_folder("qwen2_vl"), tmp_path / "model")
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["size"]["longest_edge"] = 10**6
    path.write_text(json.dumps(settings))
    responses = answers(open_backend(folder), [ask("small"), ask("large", image=picture(1, (400, 400)))])
    assert responses["large"].error.kind == "model"
    assert f"context of {hf_models.CONTEXT}" in responses["large"].error.message
    thin = answers(open_backend(folder), [ask("small"), ask("thin", image=picture(1, (1, 400)))])
    assert "aspect ratio" in thin["thin"].error.message
    assert thin["small"].text == responses["small"].text


def test_an_answer_never_leaves_the_decoders_context(family_folder):
    """64 places in this GPT-2 and in this BLIP: one is the decoder's start."""
    for name in ("visiongpt2", "blip", "blip-vqa"):
        backend = open_backend(family_folder(name))
        requests = requests_for(name, 2, Generation(max_new_tokens=100))
        for response in answers(backend, requests).values():
            assert response.error is None
            assert response.generated_tokens <= 63
        backend.close()


# ---------------------------------------------------------------- processors


def test_qwen2_vl_needs_no_torchvision_and_keeps_the_settings_of_the_video_part(family_folder, tmp_path):
    """Published family_folder have one file for images and video, or one for each, or both in one."""
    import shutil

    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is here, and the whole processor with it")
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "patch_size": 4, "merge_size": 2, "fps": 2}
    first = shutil.copytree(family_folder("qwen2_vl"), tmp_path / "first")
    (first / "video_preprocessor_config.json").write_text(json.dumps(video))
    processor = load_processor(spec_of(first))
    assert not hasattr(processor, "video_processor")
    processor.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert saved["processor_class"] == "Qwen2VLProcessor"
    assert saved["video_processor"] == video
    again = load_processor(spec_of(shutil.copytree(first, tmp_path / "again")))
    assert again.video_settings == video

    whole = json.loads((first / "processor_config.json").read_text())
    old = shutil.copytree(family_folder("qwen2_vl"), tmp_path / "old")
    (old / "processor_config.json").unlink()
    shared = {**whole["image_processor"], "image_processor_type": "Qwen2VLImageProcessor"}
    (old / "preprocessor_config.json").write_text(json.dumps({**shared, "processor_class": "Qwen2VLProcessor"}))
    found = load_processor(spec_of(old))
    assert found.video_settings["video_processor_type"] == "Qwen2VLVideoProcessor"
    assert found.video_settings["patch_size"] == 4
    texts = []
    for place in (first, old):
        backend = open_backend(place)
        texts.append([r.text for r in answers(backend, requests_for("qwen2_vl", 3)).values()])
        backend.close()
    assert texts[0] == texts[1]


def test_a_pair_of_processor_and_tokenizer_is_saved_side_by_side(family_folder, tmp_path):
    processor = load_processor(spec_of(family_folder("visiongpt2")))
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "processor_config.json").exists()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("left lung").input_ids == processor.tokenizer("left lung").input_ids
    assert transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil").size == SQUARE


def test_a_processor_made_by_hand_must_say_whose_it_is(loaded_family):
    model, processor = loaded_family("blip-vqa")
    bare = transformers.BlipProcessor(processor.image_processor, processor.tokenizer)
    with pytest.raises(ModelUnusableError, match=r"BlipProcessor .*bind_family"):
        family_of(bare)
    assert bind_family(bare, model.config) == family_of(processor)


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
