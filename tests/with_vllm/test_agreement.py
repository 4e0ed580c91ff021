"""vLLM and transformers give one answer: greedy, float32, the same kind of image processor.

Random twins are asked, whose answers differ from question to question: a trained one is too certain to show anything.
"""

from __future__ import annotations

import pytest

from mhe import open_catalog
from vllm_models import alike, answers, hf_answers, requests_of, vllm

PHANTOMS = 200
REAL = 200
KINDS = {"tiny-llava": "pil", "tiny-qwen2-vl": "torchvision"}


@pytest.fixture(scope="module", params=sorted(KINDS))
def twin(request, tmp_path_factory):
    from mhe_tiny.build import build_folder

    folder = build_folder(request.param, tmp_path_factory.mktemp("twin") / request.param)
    return folder, KINDS[request.param]


@pytest.fixture(scope="module")
def backend(twin):
    folder, kind = twin
    with vllm(folder, image_processor=kind) as opened:
        yield opened


def compare(backend, twin, asked):
    folder, kind = twin
    expected = hf_answers(folder, asked, image_processor=kind)
    found = answers(backend, asked)
    assert len({response.text for response in expected.values()}) > len(asked) // 2, "a model of few answers"
    assert {name: alike(r) for name, r in found.items()} == {name: alike(r) for name, r in expected.items()}


def test_phantoms_are_answered_alike(backend, twin):
    compare(backend, twin, requests_of("phantom-vqa", PHANTOMS, max_new_tokens=16))


def test_real_questions_are_answered_alike(backend, twin, data_dir):
    compare(backend, twin, requests_of("vqa-rad", REAL, data_dir / "vqa_rad", max_new_tokens=16))


def test_what_is_told_of_the_model_is_true(backend, twin):
    folder, kind = twin
    told = backend.describe()
    assert told.device == "cpu"
    assert told.precision == "float32"
    assert told.bits_per_weight == 32
    assert told.key_options["image_processor"] == kind

    from safetensors.torch import load_file

    stored = load_file(folder / "model.safetensors")
    assert told.parameters == sum(tensor.numel() for tensor in stored.values()) > 1_000_000


def test_the_trained_model_is_answered_alike_with_torchvisions_pixels(tmp_path):
    from importlib.resources import files

    assert "tiny-llava" in open_catalog().models
    folder = files("mhe_tiny") / "models" / "tiny-llava"
    asked = requests_of("phantom-vqa", 64)
    expected = hf_answers(folder, asked, image_processor="torchvision")
    with vllm(folder, image_processor="torchvision") as backend:
        found = answers(backend, asked)
    assert {name: alike(r) for name, r in found.items()} == {name: alike(r) for name, r in expected.items()}
