"""Backend `vllm`: every bad sample recorded and its neighbours answered, seeds, stops, figures."""

from __future__ import annotations

import dataclasses
import json

import pytest

import hf_models
from hf_models import ask, picture
from mhe import Generation, Message, ModelUnusableError
from vllm_models import answers, hf_answers, requests_of, vllm

QUESTION = "Is there a circle?"
CONTEXT = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from mhe_tiny.build import build_folder

    return build_folder("tiny-llava", tmp_path_factory.mktemp("twin") / "tiny-llava")


@pytest.fixture(scope="module")
def backend(folder):
    with vllm(folder, max_model_len=CONTEXT, batch_size=4) as opened:
        yield opened


@pytest.fixture(scope="module")
def questions():
    return requests_of("phantom-vqa", 24, max_new_tokens=8)


@pytest.fixture(scope="module")
def texts(backend, questions):
    return {name: response.text for name, response in answers(backend, questions).items()}


class TestBadSamples:
    def test_a_prompt_beyond_the_context_is_recorded_and_never_cut(self, backend, questions, texts):
        words = ask("words", "left " * 2000)
        # Its text fits, and the image's tokens no more.
        pixels = ask("pixels", "left " * (CONTEXT - 40))
        found = answers(backend, [questions[0], words, pixels, questions[1]])
        for name in ("words", "pixels"):
            assert found[name].error.kind == "model"
            assert str(CONTEXT) in found[name].error.message
            assert found[name].text is None
        for question in questions[:2]:
            assert found[question.sample_id].text == texts[question.sample_id]

    def test_a_refused_prompt_does_not_cost_the_next_question_about_its_image(self, backend, questions, texts):
        same = questions[3].images
        long = dataclasses.replace(ask("long", "left " * (CONTEXT - 40)), images=same)
        fresh = dataclasses.replace(ask("fresh", "left " * (CONTEXT - 40), seed=77))
        after = dataclasses.replace(ask("after", QUESTION), images=fresh.images)
        found = answers(backend, [long, questions[3], fresh, after])
        assert found["long"].error.kind == found["fresh"].error.kind == "model"
        assert found[questions[3].sample_id].text == texts[questions[3].sample_id]
        assert found["after"].text

    def test_an_answer_ends_where_the_context_does(self, backend):
        base = answers(backend, [ask("base", "left")])["base"].prompt_tokens
        long = ask("long", "left " * ((CONTEXT - base) // 2), generation=Generation(max_new_tokens=CONTEXT))
        found = answers(backend, [long])["long"]
        assert found.prompt_tokens + found.generated_tokens <= CONTEXT
        assert found.finish_reason in ("length", "stop")

    @pytest.mark.parametrize("damage", [b"", b"no image at all", picture(1)[:60]], ids=["empty", "text", "cut"])
    def test_an_unreadable_image_is_a_data_error(self, backend, questions, texts, damage):
        import mhe

        broken = dataclasses.replace(ask("broken", QUESTION), images=(mhe.Image("broken", mhe.BytesSource(damage)),))
        found = answers(backend, [broken, questions[0]])
        assert found["broken"].error.kind == "data"
        assert found[questions[0].sample_id].text == texts[questions[0].sample_id]

    def test_a_control_token_in_a_question_is_refused(self, backend):
        found = answers(backend, [ask("token", "what is <image> ?")])["token"]
        assert found.error.kind == "model"
        assert "<image>" in found.error.message

    def test_more_images_than_memory_was_set_aside_for_say_what_to_set(self, backend):
        two = ask("two")
        two = dataclasses.replace(two, messages=(Message("user", QUESTION, images=2),), images=two.images * 2)
        with pytest.raises(ModelUnusableError, match=r"backend\.max_images=2"):
            answers(backend, [two])

    def test_a_run_that_is_left_leaves_nothing_in_the_engine(self, backend, questions, texts):
        walk = backend.generate(questions, [q.sample_id for q in questions])
        assert next(walk).text
        walk.close()
        assert not backend._engine.llm.llm_engine.has_unfinished_requests()
        assert {name: r.text for name, r in answers(backend, questions).items()} == texts


class TestGeneration:
    def test_answers_come_one_by_one_and_only_those_that_are_pending(self, backend, questions, texts):
        pending = [q.sample_id for q in questions[::5]]
        found = answers(backend, questions, pending)
        assert {name: r.text for name, r in found.items()} == {name: texts[name] for name in pending}
        assert not answers(backend, questions, [])

    def test_the_first_answer_is_given_before_the_last_question_is_asked(self, backend, questions):
        before = backend._submitted
        walk = backend.generate(questions, [q.sample_id for q in questions])
        next(walk)
        assert backend._submitted - before < len(questions)
        walk.close()

    def test_figures_are_told(self, backend, questions):
        found = answers(backend, questions)
        for response in found.values():
            assert 0 < response.first_token_seconds <= response.seconds
            assert response.generated_tokens <= 8
        usage = backend.usage()
        assert usage["batch_size"] == 4
        assert usage["preprocess_seconds"] > 0
        assert usage["generate_seconds"] > 0

    def test_seeded_sampling_repeats_whatever_runs_beside_it(self, backend, questions):
        sampled = [hf_models.with_generation(q, Generation(max_new_tokens=8, temperature=1.0)) for q in questions]
        first = {name: r.text for name, r in answers(backend, sampled).items()}
        again = {name: r.text for name, r in answers(backend, sampled[::-1][:7]).items()}
        assert again == {name: first[name] for name in again}
        others = [dataclasses.replace(q, seed=q.seed + 1) for q in sampled]
        changed = sum(r.text != first[name] for name, r in answers(backend, others).items())
        assert changed > len(questions) // 2

    def test_a_stop_text_ends_an_answer_as_it_does_for_transformers(self, backend, folder, questions, texts):
        stops = {text.strip()[1:3] for text in list(texts.values())[:3]}
        asked = [
            hf_models.with_generation(q, Generation(max_new_tokens=8, stop=tuple(sorted(stops)))) for q in questions
        ]
        expected, found = hf_answers(folder, asked), answers(backend, asked)
        assert {n: (r.text, r.finish_reason) for n, r in found.items()} == {
            n: (r.text, r.finish_reason) for n, r in expected.items()
        }
        assert any(r.text != texts[name] for name, r in found.items())

    def test_the_checkpoints_own_sampling_settings_are_not_used(self, folder, tmp_path, questions, texts, backend):
        path = folder / "generation_config.json"
        before = path.read_text()
        backend.close()
        try:
            taste = {"do_sample": True, "temperature": 3.0, "repetition_penalty": 9.0, "top_k": 5, "max_new_tokens": 2}
            path.write_text(json.dumps({**json.loads(before), **taste}))
            with vllm(folder, max_model_len=CONTEXT, batch_size=4) as opened:
                assert {n: r.text for n, r in answers(opened, questions).items()} == texts
        finally:
            path.write_text(before)
            backend.load()
