"""What the recipe `export` leaves loads in vLLM, where it has the architecture, and answers as in transformers."""

from __future__ import annotations

import pytest

import tune_cases
from mhe import open_catalog
from mhe.pipelines import Step, run_step
from vllm_models import alike, answers, hf_answers, requests_of, vllm

pytest.importorskip("peft")


@pytest.fixture(scope="module")
def catalog():
    return open_catalog()


def export(catalog, model, directory, **settings):
    step = Step(name="out", recipe="export", base=model, settings=settings)
    return run_step(catalog, step, tune_cases.place_at(directory, directory))


def twin(name, folder):
    from mhe_tiny.build import build_folder

    return tune_cases.model_at(build_folder(name, folder / name))


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-qwen2-vl"])
def test_an_exported_folder_is_checked_in_vllm(catalog, tmp_path, name):
    done = export(catalog, twin(name, tmp_path), tmp_path / "c", vllm="require")
    assert done.checkpoint.loads_in == ("transformers", "vllm")
    assert any("writes 8 of 8 tokens alike" in note for note in done.checkpoint.notes), done.checkpoint.notes


def test_an_architecture_that_vllm_lacks_is_said(catalog, tmp_path):
    done = export(catalog, twin("tiny-mllama", tmp_path), tmp_path / "c")
    assert done.checkpoint.loads_in == ("transformers",)
    assert any("vLLM has no MllamaForConditionalGeneration" in note for note in done.checkpoint.notes)


def test_a_pruned_and_exported_model_answers_alike(catalog, tmp_path):
    place = tune_cases.place_at(tmp_path / "c", tmp_path)
    settings = {"preset": "neto2025-prune"}
    pruned = run_step(catalog, Step("pruned", "prune", twin("tiny-llava", tmp_path), settings), place)
    done = export(catalog, pruned.model, tmp_path / "c", vllm="skip")
    folder = done.folder / "model"
    asked = requests_of("phantom-vqa", 16, max_new_tokens=12)
    expected = hf_answers(folder, asked)
    with vllm(folder) as backend:
        found = answers(backend, asked)
    assert {name: alike(r) for name, r in found.items()} == {name: alike(r) for name, r in expected.items()}
