"""Greedy, in float32, every backend gives the same answers: transformers alone and in batches, vLLM in this process,
and vLLM's own server. Where a text differs, the two best tokens are tied.

One engine and one server a model answer the questions of both tasks. Images are resized by torchvision everywhere, as
the server does.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from command import mhe
from mhe.backend_checks import Explainer, compare_answers
from mhe_hf import HfBackend, HfOptions
from vllm_models import answers, context, hf_answers, requests_of, spec_of, vllm

QUESTIONS = 200
TOKENS = 16
KIND = "torchvision"


@pytest.fixture(scope="module")
def questions():
    """200 phantoms, and 200 questions of VQA-RAD where its folder is named."""
    found = requests_of("phantom-vqa", QUESTIONS, max_new_tokens=TOKENS)
    if root := os.environ.get("MHE_TEST_DATA"):
        found += requests_of("vqa-rad", QUESTIONS, Path(root) / "vqa_rad", max_new_tokens=TOKENS)
    assert len({request.sample_id for request in found}) == len(found)
    return found


def test_a_random_twin_answers_alike_everywhere(random_twin, questions, tmp_path):
    texts = check(random_twin, questions, tmp_path)
    assert len(set(texts)) > len(questions) // 2, "a model of few answers"


def test_the_trained_model_answers_alike_everywhere(trained, questions, tmp_path):
    check(trained, questions, tmp_path)


def check(server, questions, place):
    """Compare three ways of answering with transformers' batches of 1, and return the texts of these."""
    folder = server.folder
    reference = hf_answers(folder, questions, image_processor=KIND, batch_size=1)
    found = {"hf:16": hf_answers(folder, questions, image_processor=KIND, batch_size=16)}
    with vllm(folder, image_processor=KIND) as backend:
        found["vllm"] = answers(backend, questions)
        check_what_is_told(backend, folder)
    found["server"] = server.answers(questions, place)
    options = HfOptions(dtype="float32", device="cpu", image_processor=KIND)
    explainer = Explainer(lambda: HfBackend(spec_of(folder), options, context(folder)))
    try:
        listed = {
            label: compare_answers(questions, reference, responses, explainer) for label, responses in found.items()
        }
    finally:
        explainer.close()
    for label, (differences, unanswered) in listed.items():
        print(f"{server.name}, {label}: {len(questions) - len(differences)} of {len(questions)} equal")
        for difference in differences:
            gaps = [f"gap {fork.gap:.6f} at token {fork.place}" for fork in difference.forks if fork.gap is not None]
            print(" ", difference.sample, difference.verdict, *difference.causes, *gaps)
        assert unanswered == 0
        assert [difference for difference in differences if difference.verdict != "tie"] == []
        assert all(difference.causes for difference in differences)
        assert len(differences) <= len(questions) // 100
    for responses in found.values():
        counts = {name: response.prompt_tokens for name, response in responses.items()}
        assert counts == {name: response.prompt_tokens for name, response in reference.items()}
    return [response.text for response in reference.values()]


def check_what_is_told(backend, folder):
    """What the loaded engine says of the model, against the file."""
    from safetensors.torch import load_file

    told = backend.describe()
    assert told.device == "cpu"
    assert told.precision == "float32"
    assert told.key_options["image_processor"] == KIND
    stored = load_file(folder / "model.safetensors")
    assert told.parameters == sum(tensor.numel() for tensor in stored.values()) > 1_000_000
    assert told.bits_per_weight == 32


def test_the_command_tells_what_other_pixels_do(data_dir, tmp_path):
    """A random twin is shown the images of two libraries: texts part, and the cause is named."""
    from mhe_tiny.build import build_folder

    folder = build_folder("tiny-llava", tmp_path / "twin")
    done = mhe(
        "check-backends", folder, "--task", "vqa-rad", "--data-dir", data_dir / "vqa_rad", "--limit", 48,
        "--backends", "hf:1,hf:16,vllm", "--set", "vllm.image_processor=torchvision", "--set", "vllm.kv_cache_gb=0.25",
        "--set", f"generation.max_new_tokens={TOKENS}", "--json", cwd=tmp_path,
    )  # fmt: skip
    assert done.code in (0, 3), done.err
    batch, engine = done.document["backends"]
    assert batch["agrees"]
    assert [run["precision"] for run in (done.document["reference"], batch, engine)] == ["float32"] * 3
    assert engine["differences"], "the twin should see that the pixels are others"
    for difference in engine["differences"]:
        assert difference["causes"][-1] == "other image pixels: the image processor is pil, and torchvision"
        assert difference["verdict"] == "disagreement"
    assert done.code == 3
    assert json.loads(json.dumps(done.document, allow_nan=False)) == done.document
