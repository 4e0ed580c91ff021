"""Opening engines: one after another in a process, with adapters, and with what cannot be loaded."""

from __future__ import annotations

import json
import os

import pytest

import hf_models
from mhe import ModelUnusableError
from mhe.testing import check_backend
from vllm_models import alike, answers, hf_answers, requests_of, spec_of, vllm


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from mhe_tiny.build import build_folder

    return build_folder("tiny-llava", tmp_path_factory.mktemp("twin") / "tiny-llava")


@pytest.fixture(scope="module")
def questions():
    return requests_of("phantom-vqa", 24, max_new_tokens=8)


def test_the_contract_of_backends_is_kept(folder):
    import torch

    from mhe_vllm.backend import VllmBackend

    before = torch.set_num_threads, torch.get_num_threads(), os.sched_getaffinity(0)
    options = {"dtype": "float32", "kv_cache_gb": 0.25, "batch_size": 3}
    responses = check_backend(VllmBackend, options=options, model=spec_of(folder))
    assert all(response.text for response in responses)
    assert (torch.set_num_threads, torch.get_num_threads(), os.sched_getaffinity(0)) == before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two workers need two cores")
def test_two_workers_that_share_each_layer_answer_as_one_process_does(folder, questions, monkeypatch):
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND", raising=False)
    with vllm(folder, tensor_parallel_size=2) as backend:
        found = answers(backend, questions)
    assert "VLLM_CPU_OMP_THREADS_BIND" not in os.environ
    expected = hf_answers(folder, questions)
    assert {name: alike(response) for name, response in found.items()} == {n: alike(r) for n, r in expected.items()}


def test_more_workers_than_cores_are_refused(folder):
    refused = pytest.raises(ModelUnusableError, match=r"tensor_parallel_size=500 needs as many cores")
    with refused, vllm(folder, tensor_parallel_size=500):
        pass


def make_adapter(folder, place, targets, **options):
    """A LoRA adapter of random values, large enough to change answers."""
    import torch
    from peft import LoraConfig, get_peft_model

    from mhe_hf import load_model

    model, processor = load_model(spec_of(folder))
    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=5, lora_alpha=10, target_modules=targets, **options))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.15)
    adapted.save_pretrained(place)
    return adapted, processor


def test_an_adapter_on_the_language_model_is_applied_as_peft_applies_it(folder, tmp_path, questions):
    from mhe_hf import save_published

    targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|down_proj)"
    adapted, processor = make_adapter(folder, tmp_path / "adapter", targets)
    save_published(adapted.merge_and_unload(), processor, tmp_path / "merged")
    expected, plain = hf_answers(tmp_path / "merged", questions), hf_answers(folder, questions)
    with vllm(folder, adapter=str(tmp_path / "adapter")) as backend:
        found = answers(backend, questions)
        told = backend.describe()
    assert {n: alike(r) for n, r in found.items()} == {n: alike(r) for n, r in expected.items()}
    assert sum(found[n].text != plain[n].text for n in found) > len(questions) // 2
    assert told.key_options["adapter"] is True
    assert any(name.startswith("1/") for name in told.fingerprint.files)


def test_what_vllm_cannot_load_is_said_in_plain_words(folder, tmp_path):
    import shutil

    make_adapter(folder, tmp_path / "vision", r".*vision_tower.*q_proj")
    with (
        pytest.raises(ModelUnusableError, match="outside the language model"),
        vllm(folder, adapter=str(tmp_path / "vision")),
    ):
        pass
    other = hf_models.build_llava(tmp_path / "other", hidden=128)
    make_adapter(other, tmp_path / "stranger", r".*language_model.*q_proj")
    with (
        pytest.raises(ModelUnusableError, match=r"another base: .*q_proj.* is \[128, 5\]"),
        vllm(folder, adapter=str(tmp_path / "stranger")),
    ):
        pass
    unknown = tmp_path / "unknown"
    shutil.copytree(folder, unknown)
    configuration = json.loads((unknown / "config.json").read_text())
    (unknown / "config.json").write_text(json.dumps({**configuration, "architectures": ["NobodysModel"]}))
    with pytest.raises(ModelUnusableError, match="backend hf"), vllm(unknown):
        pass
    weights = unknown / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelUnusableError, match="truncated"), vllm(unknown):
        pass
