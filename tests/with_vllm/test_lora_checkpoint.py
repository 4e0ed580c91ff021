"""A checkpoint of the recipe `lora` on the language model answers through vLLM as it does through transformers."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

import tune_cases
from mhe import ModelUnusableError, open_catalog
from mhe.pipelines import run_step
from vllm_models import alike, answers, hf_answers, requests_of, vllm

pytest.importorskip("peft")

# A high rate, so that the adapter changes answers and not only logits.
SETTINGS = {
    "learning_rate": 3e-2, "batch_size": 8, "max_steps": 6, "warmup": 0.0, "keep": "last", "rank": 6, "rslora": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from mhe_tiny.build import build_folder

    return build_folder("tiny-llava", tmp_path_factory.mktemp("twin") / "tiny-llava")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad")


def tune(base, release, directory, **settings):
    step = replace(tune_cases.step_on(base), recipe="lora", settings={**SETTINGS, **settings})
    return run_step(open_catalog(), step, tune_cases.place_at(directory, release))


@pytest.fixture(scope="module")
def tuned(base, release, tmp_path_factory):
    return tune(base, release, tmp_path_factory.mktemp("tuned"))


def test_both_backends_answer_alike(tuned, base):
    asked = requests_of("phantom-vqa", 64, max_new_tokens=12)
    expected = hf_answers(Path(tuned.model.location), asked)
    untuned = hf_answers(base, asked)
    changed = sum(alike(expected[name]) != alike(untuned[name]) for name in expected)
    assert changed > len(asked) // 2, "the adapter hardly changes anything, so this would show nothing"
    before = set(Path(tempfile.gettempdir()).glob("mhe-adapter-*"))
    with vllm(Path(tuned.model.location)) as backend:
        found = answers(backend, asked)
        assert backend.describe().fingerprint.digest == tuned.checkpoint.fingerprint
    assert {name: alike(r) for name, r in found.items()} == {name: alike(r) for name, r in expected.items()}
    assert set(Path(tempfile.gettempdir()).glob("mhe-adapter-*")) == before, "nothing is left behind"


def test_adapters_outside_the_language_model_are_refused(base, release, tmp_path):
    outside = tune(base, release, tmp_path / "vision", vision="adapter", language="frozen", max_steps=1)
    both = tune(base, release, tmp_path / "both", vision="adapter", max_steps=1)
    for made, told in ((outside, "outside the language model"), (both, r"2 adapters .vision, language")):
        with pytest.raises(ModelUnusableError, match=told), vllm(Path(made.model.location)):
            pytest.fail("it was loaded")


def test_another_base_at_the_same_place_is_refused(tuned, base, tmp_path):
    moved = shutil.copytree(tuned.model.location, tmp_path / "model")
    about = json.loads((moved / "adapters.json").read_text())
    (moved / "adapters.json").write_text(json.dumps({**about, "base_fingerprint": "0" * 64}))
    with pytest.raises(ModelUnusableError, match="trained on other weights"), vllm(moved):
        pytest.fail("it was loaded")
