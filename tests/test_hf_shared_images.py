"""Questions about one image in a batch: it is resized and encoded once, and the answers stay what they were."""

from __future__ import annotations

import dataclasses

import numpy as np
import PIL.Image
import pytest
import torch
from transformers import LogitsProcessor

import hf_family_models
import hf_models
from hf_models import answers, ask, open_backend, picture
from mhe import Generation, Message
from mhe_hf import Collator, load_model
from mhe_hf.generation import answer_batch, plain_settings
from mhe_hf.image_cache import CachingImageProcessor, ImageCache
from mhe_hf.image_resizing import resized_before, size_after

QUESTIONS = ["is there a fracture ?", "what side ?", "where is the effusion in this chest x ray image ? " * 2, "size ?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_models.build_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def loaded(folder):
    model, processor = load_model(hf_models.spec_of(folder))
    model.generation_config = plain_settings(model, processor)
    return model, processor


@pytest.fixture(scope="module")
def questions():
    """Twelve about five images, which do not lie side by side."""
    return [ask(f"q{n}", QUESTIONS[n % 4], image=picture(n % 5), seed=n) for n in range(12)]


class Scores(LogitsProcessor):
    supports_continuous_batching = False

    def __init__(self):
        self.steps = []

    def __call__(self, input_ids, scores):
        self.steps.append(scores.clone())
        return scores


def run(loaded, batch, context=hf_models.CONTEXT):
    """Answers, the scores of each step, and how many images the vision encoder was shown."""
    model, processor = loaded
    scores, seen = Scores(), []
    tower = next(module for name, module in model.named_modules() if name.endswith(("vision_tower", "visual")))
    hook = tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        found = answer_batch(model, processor, batch, context, processors=[scores])
    finally:
        hook.remove()
    return found, scores.steps, seen


def apart(batch):
    return dataclasses.replace(batch, same_image=())


def test_each_image_is_encoded_once_and_nothing_else_changes(loaded, questions):
    batch = Collator(loaded[1]).collate(questions)
    assert batch.same_image == (0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1)
    found, steps, seen = run(loaded, batch)
    expected, whole, all_seen = run(loaded, apart(batch))
    assert (seen, all_seen) == ([5], [12])
    assert found == expected
    assert len({answer.text for answer in found}) > 6, "a model of few answers"
    assert len(steps) == len(whole)
    for one, two in zip(steps, whole, strict=True):
        torch.testing.assert_close(one, two, atol=2e-4, rtol=1e-4)


def test_a_row_without_padding_and_one_of_much_agree_with_batches_of_one(loaded, questions):
    collator = Collator(loaded[1])
    together, _, _ = run(loaded, collator.collate(questions))
    alone = [run(loaded, collator.collate([question]))[0][0] for question in questions]
    assert together == alone


def test_rows_end_where_the_context_does(loaded, questions):
    asked = [hf_models.with_generation(q, Generation(max_new_tokens=16)) for q in questions]
    batch = Collator(loaded[1]).collate(asked)
    context = max(batch.prompt_tokens) + 3
    found, _, seen = run(loaded, batch, context)
    assert seen == [5]
    assert {answer.tokens for answer in found} >= {3, 16}
    assert found == run(loaded, apart(batch), context)[0]


def test_prompts_that_begin_differently_share_nothing(loaded, questions):
    spoken = [
        dataclasses.replace(
            questions[0], sample_id=f"s{n}", messages=(Message("system", text), Message("user", "?", 1))
        )
        for n, text in enumerate(("be short", "be very short", "be short"))
    ]
    batch = Collator(loaded[1]).collate(spoken)
    assert batch.same_image == (0, 0, 0)
    found, _, seen = run(loaded, batch)
    assert seen == [3]
    assert found == run(loaded, apart(batch))[0]


def test_several_images_or_none_a_row_share_nothing(loaded, questions):
    twice = dataclasses.replace(
        questions[0], images=questions[0].images * 2, messages=(Message("user", "compare", images=2),)
    )
    assert Collator(loaded[1]).collate([questions[0], twice]).same_image == ()
    bare = dataclasses.replace(questions[0], images=(), messages=(Message("user", "well ?"),))
    assert Collator(loaded[1]).collate([bare, bare]).same_image == ()


def test_a_wrapped_model_runs_as_it_is(loaded, folder, questions):
    peft = pytest.importorskip("peft")
    model, processor = load_model(hf_models.spec_of(folder))
    model.generation_config = plain_settings(model, processor)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    batch = Collator(processor).collate(questions)
    found, _, seen = run((adapted, processor), batch)
    assert seen == [12]
    assert found == run(loaded, apart(batch))[0]


def test_a_class_that_places_images_otherwise_runs_as_it_is(tmp_path, questions):
    model, processor = load_model(hf_models.spec_of(hf_family_models.build_llava_next(tmp_path / "next")))
    model.generation_config = plain_settings(model, processor)
    batch = Collator(processor).collate(questions)
    assert len(set(batch.same_image)) == 5
    assert run((model, processor), batch)[0] == run((model, processor), apart(batch))[0]


@pytest.mark.parametrize("size", [4, 5, "auto"])
def test_a_run_answers_as_in_batches_of_one(folder, questions, size):
    def texts(batch_size):
        backend = open_backend(folder, batch_size=batch_size)
        try:
            return {n: (r.text, r.prompt_tokens, r.generated_tokens) for n, r in answers(backend, questions).items()}
        finally:
            backend.close()

    assert texts(size) == texts(1)


# ---------------------------------------------------------------- resizing


def processors():
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    square = {"height": 33, "width": 47}
    return {
        "clip": CLIPImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 36, "width": 36}),
        "clip square": CLIPImageProcessorPil(size=square, do_center_crop=False),
        "vit bilinear": ViTImageProcessorPil(size=square, resample=2),
        "blip": BlipImageProcessorPil(size={"height": 30, "width": 30}),
    }


@pytest.mark.parametrize("name", ["clip", "clip square", "vit bilinear", "blip"])
@pytest.mark.parametrize("nested", [False, True])
def test_pixels_are_the_processors_own_to_the_last_bit(name, nested, monkeypatch):
    own = processors()[name]
    shown = {}
    monkeypatch.setattr(
        "mhe_hf.image_cache.resized_before", lambda *given: shown.setdefault("as", resized_before(*given))
    )
    for seed, size in enumerate([(90, 61), (31, 200), (36, 36), (12, 9), (47, 33)]):
        image = PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))
        image.info["mhe_key"] = seed
        shown.clear()
        caching = CachingImageProcessor(own, ImageCache(10**9), lambda key: pytest.fail("opened again"))
        found = caching([[image]] if nested else [image], return_tensors="pt")
        assert shown["as"] is not None, "it was not resized before"
        assert torch.equal(found["pixel_values"], own([image], return_tensors="pt")["pixel_values"])


def test_a_class_with_steps_of_its_own_is_left_alone():
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    class Own(CLIPImageProcessorPil):
        def resize(self, image, size, **more):
            return super().resize(image, size, **more)

    image = PIL.Image.new("RGB", (50, 40))
    plain = CLIPImageProcessorPil(size={"height": 20, "width": 20})
    assert resized_before(plain, image, {"return_tensors": "pt"}).size == (20, 20)
    for other in (Own(), LlavaNextImageProcessorPil(), CLIPImageProcessorPil(do_resize=False)):
        assert resized_before(other, image, {}) is None
    assert resized_before(plain, image, {"size": {"height": 3, "width": 3}}) is None
    assert resized_before(plain, image.convert("L"), {}) is None
    assert size_after({"longest_edge": 5, "shortest_edge": 3}, (50, 40)) is None
    assert size_after({"shortest_edge": 20}, (50, 40)) == (25, 20)
