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
    folder = Path(done.model.location)
    asked = requests_of("phantom-vqa", QUESTIONS, max_new_tokens=12)
    expected = hf_answers(folder, asked, image_processor="torchvision")
    whole = hf_answers(base, asked, image_processor="torchvision")
    changed = sum(alike(expected[name]) != alike(whole[name]) for name in expected)
    assert changed > QUESTIONS // 2, "pruning hardly changes anything, so this would show nothing"
    with vllm(folder, image_processor="torchvision") as backend:
        found = answers(backend, asked)
    assert {name: alike(r) for name, r in found.items()} == {name: alike(r) for name, r in expected.items()}


def test_a_class_of_ours_is_refused(tmp_path):
    _, done = prune("tiny-qwen2-vl", tmp_path)
    assert done.checkpoint.loads_in == ()
    with pytest.raises(ModelUnusableError), vllm(Path(done.model.location)):
        pytest.fail("it was loaded")
