"""Backend `hf`: the same answers whatever the batch, every bad sample recorded, its neighbours answered."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import hf_models
from hf_models import answers, ask, open_backend, picture
from mhe import Generation, Message, ModelSpec, RendersPrompts, SampleModelError, ScoresTokens
from mhe.testing import check_backend
from mhe_hf import Collator, HfBackend, batches, generation, load_processor, render_prompt
from mhe_hf.image_cache import ImageCache, stack

QUESTIONS = ["is there a fracture ?", "what side ?", "where is the effusion in this chest x ray image ? " * 3, "size ?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_models.build_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def backend(folder):
    opened = open_backend(folder, batch_size=4)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def questions():
    """Sixteen questions of unequal length on eight images."""
    return [ask(f"q{n}", QUESTIONS[n % 4], image=picture(n // 2), seed=n) for n in range(16)]


@pytest.fixture(scope="module")
def texts(folder, questions):
    """What batch 1, without threads or caches, answers."""
    opened = open_backend(folder, batch_size=1, prefetch=0, image_cache_mb=0)
    found = {name: response.text for name, response in answers(opened, questions).items()}
    opened.close()
    return found


def without_seconds(responses):
    return {
        name: (r.text, r.error, r.prompt_tokens, r.generated_tokens, r.finish_reason) for name, r in responses.items()
    }


@pytest.mark.parametrize("options", [{}, {"batch_size": 3}], ids=["auto", "three"])
def test_it_keeps_what_every_backend_must(folder, options):
    model = ModelSpec(name="m", backend="hf", location=str(folder))
    responses = check_backend(HfBackend, model=model, options={"dtype": "float32", "device": "cpu", **options})
    assert len({response.text for response in responses}) > 1
    assert issubclass(HfBackend, ScoresTokens)
    assert issubclass(HfBackend, RendersPrompts)


class TestBatches:
    def test_answers_differ_between_questions_and_images(self, texts):
        assert len(set(texts.values())) >= 12

    @pytest.mark.parametrize("size", [1, 4, 16])
    def test_any_batch_size_gives_the_same_texts(self, folder, questions, texts, size):
        opened = open_backend(folder, batch_size=size)
        assert {name: r.text for name, r in answers(opened, questions).items()} == texts
        assert opened.usage()["batch_size"] == size
        opened.close()

    def test_rows_are_padded_left_and_right_padding_would_change_answers(self, folder, backend, questions):
        processor = load_processor(hf_models.ModelSpec(name="t", backend="hf", location=str(folder)))
        batch = Collator(processor, context=hf_models.CONTEXT).collate(questions[:4])
        mask = batch.inputs["attention_mask"]
        assert mask.shape[0] == 4
        assert (mask[:, -1] == 1).all()
        assert (mask[:, 0] == 0).sum() == 3
        assert (mask.diff(dim=1) >= 0).all()
        model = backend._model
        for row, length in enumerate(batch.prompt_tokens):
            alone = Collator(processor, context=None).collate([questions[row]])
            assert alone.prompt_tokens == (length,)
            with torch.inference_mode():
                left = model(**batch.inputs).logits[row, -1]
                single = model(**alone.inputs).logits[0, -1]
            torch.testing.assert_close(left, single, atol=2e-5, rtol=1e-4)

    def test_prompt_tokens_count_the_image_and_no_padding(self, backend, questions):
        responses = answers(backend, questions[:4])
        tokenizer = backend._processor.tokenizer
        for number in range(4):
            prompt = f"USER: <image> {QUESTIONS[number]}\nASSISTANT:"
            expected = len(tokenizer(prompt)["input_ids"]) - 1 + hf_models.IMAGE_TOKENS
            assert responses[f"q{number}"].prompt_tokens == expected

    def test_a_half_pending_batch_runs_whole_and_yields_only_what_is_pending(self, backend, questions):
        seen = []
        whole = without_seconds(answers(backend, questions))
        original = backend._collator.collate
        backend._collator.collate = lambda batch: seen.append([r.sample_id for r in batch]) or original(batch)
        try:
            part = without_seconds(answers(backend, questions, pending=["q5", "q6", "q15"]))
        finally:
            del backend._collator.collate
        assert seen == [["q4", "q5", "q6", "q7"], ["q12", "q13", "q14", "q15"]]
        assert part == {name: whole[name] for name in ("q5", "q6", "q15")}

    def test_nothing_pending_runs_nothing(self, backend, questions):
        assert answers(backend, questions, pending=[]) == {}

    def test_batches_never_mix_ways_of_generating(self):
        short, long = Generation(max_new_tokens=2), Generation(max_new_tokens=5)
        requests = [ask(str(n), generation=short if n < 3 else long) for n in range(7)]
        assert [len(batch) for batch in batches.form_batches(requests, 4)] == [3, 4]

    def test_the_next_batches_are_made_while_one_is_worked_on(self):
        made = []
        walk = batches.made_ahead([(n,) for n in range(6)], lambda batch: made.append(batch) or batch, 2)
        assert next(walk) == (0,)
        assert list(walk) == [(n,) for n in range(1, 6)]
        assert made == [(n,) for n in range(6)]

    def test_an_error_while_making_a_batch_reaches_the_caller(self):
        def make(batch):
            raise RuntimeError("disk on fire")

        with pytest.raises(RuntimeError, match="disk on fire"):
            list(batches.made_ahead([(1,)], make, 2))


class TestGeneration:
    def test_answers_end_at_the_token_limit_or_earlier(self, backend):
        request = ask("a", generation=Generation(max_new_tokens=3), seed=3)
        response = answers(backend, [request])["a"]
        assert response.finish_reason == "length"
        assert response.generated_tokens == 3
        assert response.seconds > 0

    def test_a_stop_text_ends_a_row_and_is_not_part_of_it(self, backend, questions, texts):
        chosen = next(q for q in questions if " " in texts[q.sample_id])
        full = texts[chosen.sample_id]
        stop = full[full.index(" ") :][:3]
        asked = Generation(max_new_tokens=8, stop=(stop,))
        response = answers(backend, [hf_models.with_generation(q, asked) for q in questions])[chosen.sample_id]
        assert response.text == full[: full.index(stop)].strip()
        assert response.finish_reason == "stop"
        assert response.generated_tokens < 8

    def test_the_end_of_turn_stops_an_answer(self, backend, questions):
        model = backend._model
        own = model.generation_config.eos_token_id
        first = answers(backend, questions[:1])["q0"]
        tokens = backend._processor.tokenizer(first.text, add_special_tokens=False)["input_ids"]
        assert first.generated_tokens == 8
        batch = backend._collator.collate(questions[:1])
        with torch.inference_mode():
            third = model.generate(**batch.inputs, max_new_tokens=3)[0, -1].item()
        assert tokens
        try:
            model.generation_config.eos_token_id = [own, third]
            response = answers(backend, questions[:1])["q0"]
        finally:
            model.generation_config.eos_token_id = own
        assert response.finish_reason == "stop"
        assert response.generated_tokens <= 3

    def test_the_checkpoints_own_sampling_settings_are_not_used(self, folder, tmp_path, questions, texts):
        import json
        import shutil

        twin = tmp_path / "twin"
        shutil.copytree(folder, twin)
        path = twin / "generation_config.json"
        settings = json.loads(path.read_text())
        path.write_text(
            json.dumps({**settings, "do_sample": True, "temperature": 3.0, "repetition_penalty": 9.0, "top_k": 5})
        )
        opened = open_backend(twin, batch_size=1)
        assert {n: r.text for n, r in answers(opened, questions[:6]).items()} == {
            f"q{n}": texts[f"q{n}"] for n in range(6)
        }
        opened.close()

    def test_an_answer_that_fills_the_context_is_cut_and_says_so(self, backend):
        unit = "lung "
        tokenizer = backend._processor.tokenizer
        space = hf_models.CONTEXT - 4
        overhead = len(tokenizer("USER: <image> \nASSISTANT:")["input_ids"]) - 1 + hf_models.IMAGE_TOKENS
        each = len(tokenizer(unit * 50)["input_ids"]) / 50
        long = ask("long", unit * int((space - overhead) / each), generation=Generation(max_new_tokens=20), seed=1)
        short = ask("short", generation=Generation(max_new_tokens=20), seed=2)
        responses = answers(backend, [long, short])
        room = hf_models.CONTEXT - responses["long"].prompt_tokens
        assert 0 < room < 20
        assert (responses["long"].generated_tokens, responses["long"].finish_reason) == (room, "length")
        assert responses["short"].generated_tokens == 20

    def test_memory_that_runs_out_halves_the_batch_and_goes_on(self, folder, questions, texts, monkeypatch):
        opened = open_backend(folder, batch_size=16)
        sizes = []
        original = generation.answer_batch

        def starved(model, tokenizer, batch, context, **more):
            sizes.append(len(batch.requests))
            if len(batch.requests) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(model, tokenizer, batch, context, **more)

        monkeypatch.setattr(generation, "answer_batch", starved)
        assert {name: r.text for name, r in answers(opened, questions).items()} == texts
        assert sizes == [16, 8, 4, *[2] * 8]
        assert opened.usage()["batch_size"] == 2
        opened.close()

    def test_a_sample_too_large_alone_is_its_own_system_error(self, folder, questions, texts, monkeypatch):
        opened = open_backend(folder, batch_size=4)
        original = generation.answer_batch

        def starved(model, tokenizer, batch, context, **more):
            if any(r.sample_id == "q2" for r in batch.requests):
                raise RuntimeError(
                    "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
                )
            return original(model, tokenizer, batch, context, **more)

        monkeypatch.setattr(generation, "answer_batch", starved)
        responses = answers(opened, questions)
        assert responses["q2"].error.kind == "system"
        assert "out of memory" in responses["q2"].error.message
        assert {n: r.text for n, r in responses.items() if n != "q2"} == {n: t for n, t in texts.items() if n != "q2"}
        opened.close()

    def test_other_errors_of_the_model_are_not_swallowed(self, backend, questions, monkeypatch):
        def broken(*args, **more):
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(generation, "answer_batch", broken)
        with pytest.raises(RuntimeError, match="shapes do not match"):
            answers(backend, questions)


def bad_files(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    whole = picture(1)
    contents = {"empty.png": b"", "truncated.png": whole[: len(whole) // 2], "words.jpg": b"this is no image" * 20}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    PIL.Image.new("1", (20_000, 20_000)).save(folder / "huge.png")
    (folder / "folder.png").mkdir()
    return {name: folder / name for name in [*contents, "missing.png", "huge.png", "folder.png"]}


def odd_files(folder: Path) -> dict[str, Path]:
    folder.mkdir()
    rgb = PIL.Image.open(io.BytesIO(picture(2)))
    rgb.convert("P").save(folder / "palette.png")
    rgb.convert("L").save(folder / "grey.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    PIL.Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27).save(folder / "deep.png")
    rgb.save(folder / "wrong.jpg", format="PNG")
    rgb.resize((1, 1)).save(folder / "dot.png")
    return {path.name: path for path in folder.iterdir()}


class TestBadSamples:
    def test_unreadable_images_are_recorded_and_neighbours_answered(self, backend, tmp_path, questions, texts):
        files = bad_files(tmp_path / "bad")
        bad = [ask(name, image=path) for name, path in files.items()]
        mixed = [item for pair in zip(questions, [*bad, *questions[8:]], strict=False) for item in pair][: 2 * len(bad)]
        responses = answers(backend, mixed)
        assert len(files) == 6
        for name in files:
            assert responses[name].error.kind == "data", name
            assert responses[name].text is None
            assert name in responses[name].error.message
        good = [q.sample_id for q in questions[: len(bad)]]
        assert {n: responses[n].text for n in good} == {n: texts[n] for n in good}

    def test_a_batch_of_nothing_but_bad_images(self, backend, tmp_path):
        files = bad_files(tmp_path / "bad")
        responses = answers(backend, [ask(name, image=path) for name, path in files.items()])
        assert {response.error.kind for response in responses.values()} == {"data"}

    def test_odd_but_readable_images_are_answered(self, backend, tmp_path):
        files = odd_files(tmp_path / "odd")
        assert len(files) == 6
        responses = answers(backend, [ask(name, image=path) for name, path in files.items()])
        assert all(response.error is None and response.text for response in responses.values())

    @pytest.mark.parametrize(
        "text", ["first line\nsecond\r\n\u2028third", "هل يوجد كسر في الصورة؟", "\u202ereversed\u202c", "🩻" * 9, " "]
    )
    def test_odd_questions_are_answered_the_same_in_any_batch(self, backend, questions, text):
        odd = ask("odd", text, seed=5)
        alone = answers(backend, [odd])["odd"]
        among = answers(backend, [*questions[:3], odd])["odd"]
        assert alone.error is None
        assert alone.text == among.text

    def test_a_hundred_kilobytes_of_text_is_a_recorded_model_error(self, backend, questions, texts):
        long = ask("long", "word " * 20_000)
        little_too_long = ask("longer", "? " * 180)
        responses = answers(backend, [questions[0], long, little_too_long, questions[1]])
        for name in ("long", "longer"):
            assert responses[name].error.kind == "model"
            assert str(hf_models.CONTEXT) in responses[name].error.message
        assert responses["q0"].text == texts["q0"]
        assert responses["q1"].text == texts["q1"]

    @pytest.mark.parametrize("token", ["<image>", "</s>", "<pad>"])
    def test_a_control_token_in_a_question_is_a_model_error(self, backend, questions, texts, token):
        responses = answers(backend, [ask("sly", f"is there {token} here ?"), questions[0]])
        assert responses["sly"].error.kind == "model"
        assert token in responses["sly"].error.message
        assert responses["q0"].text == texts["q0"]

    def test_an_image_that_the_processor_refuses_costs_that_sample_only(self, backend, questions, texts, monkeypatch):
        own = backend._collator._images._own
        shape = (3, 77)

        def picky(images, **kwargs):
            if any(getattr(image, "size", None) == shape for image in hf_models.flat(images)):
                raise ValueError("absolute aspect ratio must be smaller than 20")
            return own(images, **kwargs)

        monkeypatch.setattr(backend._collator._images, "_own", hf_models.Instead(own, picky))
        thin = ask("thin", image=picture(9, size=(77, 3)))
        responses = answers(backend, [questions[0], thin, questions[1]])
        assert responses["thin"].error.kind == "model"
        assert "aspect ratio" in responses["thin"].error.message
        assert responses["q0"].text == texts["q0"]


class TestImageCache:
    def test_a_shared_image_is_preprocessed_once(self, folder):
        processor = load_processor(hf_models.ModelSpec(name="t", backend="hf", location=str(folder)))
        collator = Collator(processor, cache_bytes=10_000_000)
        calls = []
        own = collator._images._own
        collator._images._own = hf_models.Instead(own, lambda images, **kw: calls.append(images) or own(images, **kw))
        shared = [ask(str(n), image=picture(n % 2)) for n in range(8)]
        first, second = collator.collate(shared[:4]), collator.collate(shared[4:])
        assert len(calls) == 2
        plain = processor(
            text=[render_prompt(processor, r.messages) for r in shared[:4]],
            images=[hf_models.PIL.Image.open(io.BytesIO(picture(n % 2))) for n in range(4)],
            padding=True, return_tensors="pt",
        )  # fmt: skip
        assert torch.equal(first.inputs["pixel_values"], plain["pixel_values"])
        assert torch.equal(second.inputs["pixel_values"], plain["pixel_values"])

    def test_features_that_do_not_stack_go_through_the_own_processor(self, folder):
        """Tiles are padded to the longest in the batch: only the own processor can do that."""
        processor = load_processor(hf_models.ModelSpec(name="t", backend="hf", location=str(folder)))
        own = processor.image_processor
        whole_batches = []

        def tiling(images, **kwargs):
            features = own(images, **kwargs)
            if len(hf_models.flat(images)) == 1:
                wide = hf_models.flat(images)[0].size[0]
                return {**features, "tiles": torch.zeros(1, wide)}
            whole_batches.append(len(hf_models.flat(images)))
            return features

        collator = Collator(processor, cache_bytes=10_000_000)
        collator._images._own = hf_models.Instead(own, tiling)
        same = [ask("a", image=picture(1)), ask("b", image=picture(2))]
        mixed = [ask("c", image=picture(1)), ask("d", image=picture(3, size=(9, 9)))]
        assert collator.collate(same).inputs["tiles"].shape == (2, 56)
        assert not whole_batches
        batch = collator.collate(mixed)
        assert whole_batches == [2]
        assert batch.inputs["pixel_values"].shape[0] == 2
        expected = Collator(processor).collate(mixed)
        assert torch.equal(batch.inputs["pixel_values"], expected.inputs["pixel_values"])

    def test_the_longest_unused_is_forgotten(self):
        cache = ImageCache(limit=100)
        for name in "abc":
            cache.put(name, {"x": torch.zeros(1, 10)}, (1, 1))
            cache.get("a")
        assert cache.get("a") is not None
        assert cache.get("b") is None
        assert cache.get("c") is not None

    def test_lists_are_joined_and_unequal_shapes_are_not(self):
        joined = stack([{"x": torch.ones(1, 2), "n": [1]}, {"x": torch.zeros(2, 2), "n": [2, 3]}])
        assert joined["x"].shape == (3, 2)
        assert joined["n"] == [1, 2, 3]
        assert stack([{"x": torch.ones(1, 2)}, {"x": torch.ones(1, 3)}]) is None


def test_a_template_that_refuses_the_messages_is_a_model_error(folder):
    processor = load_processor(hf_models.ModelSpec(name="t", backend="hf", location=str(folder)))
    processor.chat_template = "{{ raise_exception('no system turn, please') }}"
    with pytest.raises(SampleModelError, match="no system turn"):
        render_prompt(processor, [Message("system", "be brief"), Message("user", "hello")])
