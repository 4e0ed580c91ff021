"""Small models: built from a seed, published in the usual format, and better than any constant answer."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest

from mhe import UserError, file_digest, read_samples
from mhe_tiny import MODELS, register_models

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors import safe_open  # noqa: E402

from mhe_hf import save_published  # noqa: E402
from mhe_tiny.build import BUILDERS, SPREAD, build, build_folder  # noqa: E402
from mhe_tiny.halving import halve_weights  # noqa: E402
from mhe_tiny.lessons import PLAIN, SOURCE, TARGET, only_captions, read_lessons, stream_lessons  # noqa: E402
from mhe_tiny.packing import IGNORED  # noqa: E402
from mhe_tiny.plan import Plan  # noqa: E402
from mhe_tiny.report import answer_samples, load_learner, load_model, score_answers  # noqa: E402
from mhe_tiny.train import missing_names  # noqa: E402
from mhe_tiny.training import Course, train  # noqa: E402
from mhe_tiny.turns import render_turn  # noqa: E402

PACKAGED = MODELS / "tiny-llava"
WEIGHTS = "model.safetensors"
NAMES = sorted(BUILDERS)
BYTE_LEVEL = [name for name in NAMES if not name.startswith("tiny-blip") or name == "tiny-blip2"]
PRESENT = [spec.name for spec in register_models()]

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
    return {curriculum: read_lessons(curriculum, 0, 64) for curriculum in (PLAIN, SOURCE)}


@pytest.fixture(scope="module")
def fresh():
    """Enough for a short training, with the 512 lessons that the probe's answers are collected from."""
    return {curriculum: read_lessons(curriculum, 1, 560) for curriculum in (PLAIN, SOURCE)}


@pytest.fixture(scope="module")
def pairs(lessons):
    """Each model once, untrained."""
    return {name: build(name, 0, lessons[BUILDERS[name].curriculum]) for name in NAMES}


@pytest.fixture(scope="module")
def learners(pairs):
    return {name: BUILDERS[name].architecture.build_learner(*pair) for name, pair in pairs.items()}


@pytest.fixture(scope="module")
def packaged():
    return load_learner("tiny-llava", PACKAGED)


def test_every_model_with_weights_in_the_package_is_registered():
    specs = register_models()
    found = {path.parent.name for path in MODELS.glob(f"*/{WEIGHTS}")}
    assert "tiny-llava" in found
    assert {spec.name for spec in specs} == found
    assert found | set(missing_names()) == set(NAMES)
    assert all(spec.location == f"package:mhe_tiny/models/{spec.name}" for spec in specs)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_the_packaged_tokenizer(packaged, text):
    tokenizer = packaged.processor.tokenizer
    tokens = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in tokens
    assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_the_tokenizer_knows_every_byte_of_unseen_text(pairs, name):
    tokenizer = pairs[name][1].tokenizer
    assert tokenizer.decode(tokenizer("Ωμέγα 𝛀", add_special_tokens=False).input_ids) == "Ωμέγα 𝛀"


def test_blip_writes_any_printable_text_in_lower_case(pairs):
    tokenizer = pairs["tiny-blip-vqa"][1].tokenizer
    text = "Pneumothorax (left), 3.5 cm; T2-weighted & FLAIR? #1 @x"
    tokens = tokenizer(text).input_ids
    assert tokenizer.unk_token_id not in tokens
    assert tokens[0] == tokenizer.cls_token_id
    assert tokens[-1] == tokenizer.sep_token_id
    written = tokenizer.decode(tokens, skip_special_tokens=True)
    assert re.sub(r"\s", "", written) == re.sub(r"\s", "", text.lower())


def test_a_long_text_is_encoded_whole(packaged):
    tokenizer = packaged.processor.tokenizer
    assert len(tokenizer("lesion " * 15_000).input_ids) > tokenizer.model_max_length


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="there are: tiny-blip, tiny-blip-vqa"):
        build("tiny-lava", 0)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_build_equal_models(lessons, pairs, name):
    known = lessons[BUILDERS[name].curriculum]
    again, _ = build(name, 0, known)
    other, _ = build(name, 1, known)
    first, second, third = (model.state_dict() for model in (pairs[name][0], again, other))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], third[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_has_heads_to_prune(pairs, name):
    model, _ = pairs[name]
    assert 500_000 < sum(p.numel() for p in model.parameters()) < 1_700_000
    text = model.config.get_text_config(decoder=True)
    assert text.num_attention_heads == 8
    assert type(model).__name__ == BUILDERS[name].architecture.CLASS
    assert getattr(transformers, BUILDERS[name].architecture.CLASS) is type(model)


def test_those_that_vllm_has_have_heads_of_32(pairs):
    for name in ("tiny-llava", "tiny-llava-next", "tiny-qwen2-vl", "tiny-blip2"):
        config = pairs[name][0].config
        text, vision = config.text_config, config.vision_config
        assert (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads) == 32
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        heads = getattr(vision, "num_heads", None) or vision.num_attention_heads
        assert width // heads == 32


def loss_of_turn(learner, lesson, prompt, answer):
    """The library's own loss of one conversation, without packing."""
    model, tokenizer, images = learner.model, learner.processor.tokenizer, [lesson.open()]
    kind = type(model).__name__
    pixels = learner.look(images)
    words = tokenizer(answer, add_special_tokens=False).input_ids
    if kind == "BlipForQuestionAnswering":
        said = torch.tensor([[tokenizer.bos_token_id, *words, tokenizer.sep_token_id]])
        labels = said.clone()
        labels[:, 0] = IGNORED
        # It is asked the bare question, which stands in the first line of the task's prompt; a caption's prompt whole.
        prompt = prompt if answer == lesson.caption else prompt.split("\n")[0]
        return model(**tokenizer(prompt, return_tensors="pt"), **pixels, decoder_input_ids=said, labels=labels).loss
    if kind == "BlipForConditionalGeneration":
        said = torch.tensor([[tokenizer.bos_token_id, *words, tokenizer.sep_token_id]])
        return model(input_ids=said, **pixels, labels=said.masked_fill(said == tokenizer.bos_token_id, IGNORED)).loss
    if kind == "VisionEncoderDecoderModel":
        return model(**pixels, labels=torch.tensor([[*words, tokenizer.eos_token_id]])).loss
    if kind == "Blip2ForConditionalGeneration":
        text = f"Question: {prompt} Answer:"
        opened = learner.processor(images=images, text=[text], return_tensors="pt")["input_ids"].shape[1]
        whole = learner.processor(images=images, text=[f"{text} {answer}</s>"], return_tensors="pt")
    else:
        images = [images]
        told = partial(learner.processor, images=images, return_tensors="pt", add_special_tokens=False)
        opened = told(text=[render_turn(learner.processor, prompt)])["input_ids"].shape[1]
        full = render_turn(learner.processor, prompt, answer)
        end = tokenizer.eos_token
        whole = told(text=[full[: full.rindex(end) + len(end)]])
    labels = whole["input_ids"].clone()
    labels[:, :opened] = IGNORED
    return model(**whole, labels=labels).loss


@pytest.mark.parametrize("name", NAMES)
def test_packed_turns_cost_what_single_ones_do(lessons, learners, name):
    """The loss of packed images is that of their conversations, each run alone through the whole model."""
    learner = learners[name]
    two = lessons[BUILDERS[name].curriculum][:2]
    turns = two if BUILDERS[name].architecture.ANSWERS_QUESTIONS else only_captions(two)
    learner.model.eval()
    with torch.no_grad():
        pictures = learner.look([lesson.open() for lesson in two])
        packed = learner.answer_loss(two, pictures, learner.see(pictures))
        single = [loss_of_turn(learner, lesson, *turn) for lesson in turns for turn in lesson.turns]
    assert len(single) >= 2
    assert packed.item() == pytest.approx(torch.stack(single).mean().item(), abs=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_training_is_seeded_and_learns(lessons, fresh, name):
    builder = BUILDERS[name]
    known = lessons[builder.curriculum]
    plan = Plan(vision_steps=2, vision_batch=4, steps=5, batch=4, warm_up=2, turns=3)
    runs = []
    for _ in range(2):
        model, processor = build(name, 0, known)
        heard = []
        report = partial(lambda to, stage, _step, _steps, loss: to.append((stage, loss)), heard)
        learner = builder.architecture.build_learner(model, processor)
        train(Course(learner, model, iter(fresh[builder.curriculum]), plan, report))
        runs.append((heard, model.state_dict()))
    (first, weights), (second, again) = runs
    assert first == second
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    whole = [loss for stage, loss in first if stage == "whole"]
    assert whole[-1] < whole[0]


@pytest.fixture(scope="module")
def twins(tmp_path_factory, lessons):
    """A random twin of each, in its folder."""
    root = tmp_path_factory.mktemp("twins")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mhe_tiny.build.read_lessons", lambda curriculum, _stream, _count: lessons[curriculum])
        return {name: build_folder(name, root / name, seed=5) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_built_folder_loads_in_transformers(lessons, twins, name):
    loader = getattr(transformers, BUILDERS[name].architecture.CLASS)
    model, report = loader.from_pretrained(twins[name], output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype == torch.float32
    built, _ = build(name, 5, lessons[BUILDERS[name].curriculum])
    expected = {key: value.clone() for key, value in built.named_parameters()}
    for key, value in model.named_parameters():
        assert torch.equal(value, expected[key] * SPREAD if value.ndim == 2 else expected[key]), key


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("tiny-qwen2-vl", "tiny-visiongpt2")])
def test_its_processor_loads_in_transformers(pairs, twins, name):
    """Qwen2-VL's needs torchvision; VisionGPT-2 has none."""
    processor = transformers.AutoProcessor.from_pretrained(twins[name], backend="pil")
    own = pairs[name][1]
    assert type(processor) is type(own)
    assert processor.tokenizer.get_vocab() == own.tokenizer.get_vocab()
    assert getattr(processor, "chat_template", None) == getattr(own, "chat_template", None)


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-visiongpt2"])
def test_its_image_processor_and_tokenizer_load_in_transformers(pairs, twins, name):
    images = transformers.AutoImageProcessor.from_pretrained(twins[name], backend="pil")
    tokenizer = transformers.AutoTokenizer.from_pretrained(twins[name])
    own = pairs[name][1]
    assert images.to_dict() == own.image_processor.to_dict()
    assert tokenizer.get_vocab() == own.tokenizer.get_vocab()
    assert tokenizer.chat_template == own.tokenizer.chat_template
    if name == "tiny-qwen2-vl":
        preprocessing = json.loads((twins[name] / "preprocessor_config.json").read_text(encoding="utf-8"))
        assert preprocessing["processor_class"] == "Qwen2VLProcessor"
        assert preprocessing["image_processor_type"] == "Qwen2VLImageProcessor"


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-llava-next"])
def test_clip_is_spelt_as_published(twins, name):
    with safe_open(twins[name] / WEIGHTS, "pt") as file:
        names = list(file.keys())
    assert any("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight" in key for key in names)
    assert not any(re.search(r"vision_tower\.encoder", key) for key in names)


@pytest.mark.parametrize("name", NAMES)
def test_a_random_twin_answers_by_what_it_is_shown(twins, name):
    """Otherwise it could not show whether two backends agree. Its answer does not depend on its neighbours."""
    learner = load_learner(name, twins[name])
    curriculum = BUILDERS[name].curriculum
    captions = read_samples(curriculum.captions, "test", limit=12)
    assert len(set(answer_samples(learner, captions, curriculum.read_prompts()[1]))) >= 4
    asked = read_samples(curriculum.questions, "test", limit=5)
    prompt = curriculum.read_prompts()[0]
    together = answer_samples(learner, asked, prompt)
    assert together == [answer_samples(learner, [sample], prompt)[0] for sample in asked]


def test_mllama_looks_at_the_image_from_the_start(pairs):
    gates = {key: value for key, value in pairs["tiny-mllama"][0].named_parameters() if "attn_gate" in key}
    assert len(gates) == 2
    assert all(float(value.detach()) > 0.1 for value in gates.values())


def test_halved_weights_load_as_float32_and_answer_alike(tmp_path, pairs):
    model, processor = pairs["tiny-blip"]
    folder = tmp_path / "halved"
    save_published(model, processor, folder)
    before = (folder / WEIGHTS).stat().st_size
    halve_weights(folder)
    assert (folder / WEIGHTS).stat().st_size < 0.55 * before
    again, _ = load_model("tiny-blip", folder)
    assert again.dtype == torch.float32
    auto = type(model).from_pretrained(folder, dtype="auto")
    assert auto.dtype == torch.float32
    for (key, value), (_, loaded) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(value.to(torch.float16).float(), loaded), key


def test_a_weight_beyond_float16_is_refused(tmp_path, lessons):
    model, processor = build("tiny-blip", 0, lessons[SOURCE])
    with torch.no_grad():
        next(model.parameters()).fill_(1e6)
    save_published(model, processor, tmp_path)
    with pytest.raises(ValueError, match="beyond float16"):
        halve_weights(tmp_path)


@pytest.mark.parametrize("curriculum", [PLAIN, SOURCE, TARGET])
def test_lessons_are_never_repeated_nor_those_of_the_test(curriculum, monkeypatch):
    monkeypatch.setattr("mhe_tiny.lessons.IMAGES_A_STREAM", 40)
    stream = stream_lessons(curriculum, 1)
    fresh = [next(stream) for _ in range(100)]
    used = {lesson.image.source.digest() for lesson in fresh}
    tested = {sample.images[0].source.digest() for sample in read_samples(curriculum.captions, "test")}
    published = {lesson.image.source.digest() for lesson in read_lessons(curriculum, 0, 64)}
    assert len(used) == len(fresh)
    assert len(tested) == 300
    assert not used & (tested | published)


def test_source_lessons_hold_nothing_of_the_target():
    said = [" ".join(part for turn in lesson.turns for part in turn) for lesson in read_lessons(SOURCE, 0, 300)]
    assert len(said) == 300
    assert not [text for text in said if "large" in text or "small" in text or "size" in text]
    assert {lesson.image.source.facts().modality for lesson in read_lessons(SOURCE, 0, 300)} == {
        "CT",
        "MRI",
        "radiograph",
    }


@pytest.mark.parametrize("name", PRESENT)
def test_packaged_weights_are_small_and_those_of_their_readme(name):
    weights = MODELS / name / WEIGHTS
    assert weights.stat().st_size < (4_000_000 if BUILDERS[name].is_halved else 8_000_000)
    page = (MODELS / name / "README.md").read_text(encoding="utf-8")
    assert re.search(r"SHA-256 of `model.safetensors`: `([0-9a-f]{64})`", page).group(1) == file_digest(weights)
    assert "nothing of medicine" in page


def test_the_packaged_model_beats_every_constant_answer(packaged):
    """On every type of question, open and closed, over the first images of the test split."""
    samples = read_samples(PLAIN.questions, "test", options={"count": 60, "per_type": 2})
    rows = score_answers(samples, answer_samples(packaged, samples, PLAIN.read_prompts()[0]))
    assert len(rows) == 13
    for row in rows:
        assert row.right > row.majority + 0.1, row


def test_the_packaged_model_writes_captions(packaged):
    samples = read_samples(PLAIN.captions, "test", limit=20)
    captions = answer_samples(packaged, samples, PLAIN.read_prompts()[1], 48)
    named = sum(
        s.groups["region"] in text and s.groups["modality"].lower() in text.lower()
        for s, text in zip(samples, captions, strict=True)
    )
    assert named >= 18


TRAINED_ON_SOURCE = [name for name in PRESENT if BUILDERS[name].curriculum == SOURCE]


@pytest.mark.parametrize("name", [n for n in TRAINED_ON_SOURCE if BUILDERS[n].architecture.ANSWERS_QUESTIONS])
def test_a_base_knows_the_source_and_has_the_target_to_learn(name):
    learner = load_learner(name, MODELS / name)
    right = {}
    for curriculum in (SOURCE, TARGET):
        samples = read_samples(curriculum.questions, "test", limit=250)
        rows = score_answers(samples, answer_samples(learner, samples, curriculum.read_prompts()[0]))
        right[curriculum] = sum(row.right * row.questions for row in rows) / len(samples)
        constant = sum(row.majority * row.questions for row in rows) / len(samples)
        if curriculum == SOURCE:
            assert right[curriculum] > constant + 0.1
            # Modality and region alone would lift the mean: it has to see lesions too.
            seen = [row for row in rows if row.question_type in ("presence", "position", "intensity")]
            assert sum(row.right * row.questions for row in seen) > sum(
                (row.majority + 0.1) * row.questions for row in seen
            )
    assert right[TARGET] < right[SOURCE] - 0.1


@pytest.mark.parametrize("name", [n for n in TRAINED_ON_SOURCE if not BUILDERS[n].architecture.ANSWERS_QUESTIONS])
def test_a_captioner_names_modality_and_region(name):
    learner = load_learner(name, MODELS / name)
    samples = read_samples(SOURCE.captions, "test", limit=40)
    captions = answer_samples(learner, samples, SOURCE.read_prompts()[1], 48)
    named = sum(
        s.groups["region"] in text.lower() and s.groups["modality"].lower() in text.lower()
        for s, text in zip(samples, captions, strict=True)
    )
    assert named >= 30
