"""Pruned checkpoints that claim to load in vLLM answer there as in transformers; the others are refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

import prune_cases as cases
from mhe import ModelUnusableError, open_catalog
from mhe.pipelines import run_step
from vllm_models import alike, answers, hf_answers, requests_of, vllm

QUESTIONS = 24


def prune(twin, folder, **settings):
    from mhe_tiny.build import build_folder

    base = build_folder(twin, folder / twin)
    return base, run_step(open_catalog(), cases.step_on(base, **settings), cases.place_at(folder))


def assert_answers_alike(folder, whole):
    """vLLM answers as transformers does, and otherwise than the model that the one in `folder` was made from."""
    asked = requests_of("phantom-vqa", QUESTIONS, max_new_tokens=12)
    expected = hf_answers(folder, asked, image_processor="torchvision")
    of_whole = hf_answers(whole, asked, image_processor="torchvision")
    changed = sum(alike(expected[name]) != alike(of_whole[name]) for name in expected)
    assert changed > QUESTIONS // 2, "it answers as the whole model does, so this would show nothing"
    with vllm(folder, image_processor="torchvision") as backend:
        found = answers(backend, asked)
    assert {name: alike(r) for name, r in found.items()} == {name: alike(r) for name, r in expected.items()}


# Grouped queries in the second: equally many heads leave every group.
@pytest.mark.parametrize(
    ("twin", "settings"),
    [
        ("tiny-llava", {"multiple": 4}),
        ("tiny-llava-next", {"heads": 0.5, "groups": "within"}),
        ("tiny-qwen2-vl", {"only_plain": True}),
    ],
)
def test_a_plain_pruned_model_answers_alike(twin, settings, tmp_path):
    base, done = prune(twin, tmp_path, **settings)
    assert "vllm" in done.checkpoint.loads_in
    assert_answers_alike(Path(done.model.location), base)


def test_a_class_of_ours_is_refused(tmp_path):
    _, done = prune("tiny-qwen2-vl", tmp_path)
    assert done.checkpoint.loads_in == ()
    with pytest.raises(ModelUnusableError), vllm(Path(done.model.location)):
        pytest.fail("it was loaded")


def test_a_distilled_student_of_fewer_layers_answers_alike(tmp_path, monkeypatch):
    """The recipe `distill` keeps two of three language layers; the student learns from the whole model."""
    pytest.importorskip("peft")
    import distill_cases
    import tune_cases
    from mhe_tiny.build import build_folder

    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))
    whole = build_folder("tiny-llava", tmp_path / "tiny-llava")
    release = tune_cases.write_release(tmp_path / "release" / "vqa_rad", images=6)
    step = distill_cases.step_of(whole, whole, keep_layers=2, max_steps=3, evaluate_every=3, save_every=3)
    done = run_step(open_catalog(), step, tune_cases.place_at(tmp_path / "checkpoints", release))
    assert "transformers" in done.checkpoint.loads_in
    folder = Path(done.model.location)
    layers = [distill_cases.configuration_of(place)["text_config"]["num_hidden_layers"] for place in (whole, folder)]
    assert layers == [3, 2]
    assert_answers_alike(folder, whole)
