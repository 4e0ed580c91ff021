"""The backend `server` against vLLM's own OpenAI server, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from command import mhe
from mhe import Message, ModelUnusableError
from vllm_models import hf_answers, requests_of
from vllm_server import CONTEXT

PHANTOMS = 64
TOKENS = 16


def said(responses):
    """Text, tokens and end by sample."""
    told = {}
    for name, response in responses.items():
        assert response.error is None, response.error
        told[name] = (response.text, response.prompt_tokens, response.generated_tokens, response.finish_reason)
    return told


def test_a_random_twin_answers_as_in_transformers(random_twin, tmp_path):
    asked = requests_of("phantom-vqa", PHANTOMS, max_new_tokens=TOKENS)
    expected = said(hf_answers(random_twin.folder, asked, image_processor="torchvision"))
    assert len({told[0] for told in expected.values()}) > PHANTOMS // 2, "a model of few answers"
    assert said(random_twin.answers(asked, tmp_path)) == expected
    assert said(random_twin.answers(asked, tmp_path, concurrency=1)) == expected
    streamed = random_twin.answers(asked, tmp_path, stream=True)
    assert said(streamed) == expected
    for response in streamed.values():
        assert 0 < response.first_token_seconds <= response.seconds
    # The checkpoint's own taste would have shown.
    other = said(random_twin.answers(asked[:8], tmp_path, extra_body={"repetition_penalty": 1.9}))
    assert any(other[name] != expected[name] for name in other)


def test_sampling_follows_each_samples_seed(random_twin, tmp_path):
    asked = requests_of("phantom-vqa", 16, max_new_tokens=TOKENS, temperature=1.0)
    one = said(random_twin.answers(asked, tmp_path))
    assert said(random_twin.answers(list(reversed(asked)), tmp_path)) == one
    reseeded = said(random_twin.answers([replace(request, seed=request.seed + 1) for request in asked], tmp_path))
    assert sum(reseeded[name] != one[name] for name in one) > 12


def test_stop_texts_end_answers_alike(random_twin, tmp_path):
    asked = requests_of("phantom-vqa", 16, max_new_tokens=TOKENS)
    plain = hf_answers(random_twin.folder, asked, image_processor="torchvision")
    letters = [text[3] for response in plain.values() if (text := response.text).isprintable() and len(text) > 3]
    stop = next(letter for letter in letters if letter.isascii() and letter.isalpha())
    asked = requests_of("phantom-vqa", 16, max_new_tokens=TOKENS, stop=(stop,))
    expected = hf_answers(random_twin.folder, asked, image_processor="torchvision")
    assert {response.finish_reason for response in expected.values()} >= {"stop"}
    found = random_twin.answers(asked, tmp_path)
    assert {name: told[0] for name, told in said(found).items()} == {n: told[0] for n, told in said(expected).items()}


def test_what_the_server_refuses_is_told(random_twin, tmp_path):
    first, second = requests_of("phantom-vqa", 2, max_new_tokens=4)
    long = replace(first, messages=(Message("user", "is there a lesion? " * 400, images=1),))
    found = random_twin.answers([long, second], tmp_path)
    assert found[first.sample_id].error.kind == "model"
    assert "beyond the model's context" in found[first.sample_id].error.message
    assert found[second.sample_id].error is None
    # More tokens than the context has are cut by it, as in the other backends.
    (asked,) = requests_of("phantom-vqa", 1, max_new_tokens=4000)
    (response,) = random_twin.answers([asked], tmp_path).values()
    assert response.error is None
    assert response.prompt_tokens + response.generated_tokens <= CONTEXT
    double = replace(first, images=first.images * 2, messages=(Message("user", "compare", images=2),))
    with pytest.raises(ModelUnusableError, match="limit-mm-per-prompt"):
        random_twin.answers([double], tmp_path)
    with pytest.raises(ModelUnusableError, match=f"Did you mean '{random_twin.name}'"):
        random_twin.answers([first], tmp_path, model=random_twin.name + "x")


def test_kill_9_of_the_server_leaves_a_run_that_goes_on_when_it_is_back(trained, tmp_path):
    limit = 200
    asked = requests_of("phantom-vqa", PHANTOMS)
    expected = said(hf_answers(trained.folder, asked, image_processor="torchvision"))
    assert said(trained.answers(asked, tmp_path)) == expected

    arguments = (
        "eval", "--model", "tiny-llava", "--backend", "server", "--task", "phantom-vqa", "--limit", str(limit),
        "--set", f"backend.url={trained.url}", "--set", "backend.model=tiny-llava", "--reuse-unverified", "--json",
        "--set", "backend.concurrency=2", "--set", "backend.give_up_after=3", "--set", "backend.first_wait=0.1",
    )  # fmt: skip
    worker = subprocess.Popen(
        [sys.executable, "-m", "mhe.cli.main", *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MHE_CACHE_DIR": str(tmp_path / ".cache")},
    )
    wait_for_answers(tmp_path, 20, worker)
    trained.kill()
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 3, err
    (run,) = json.loads(out)["runs"]
    assert run["status"] == "partial"
    assert "3 times in a row" in run["warnings"][0]
    before = lines_of(run, tmp_path)
    assert 20 <= len(before) < limit

    trained.start()
    trained.wait()
    done = mhe(*arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    (resumed,) = done.document["runs"]
    assert resumed["run_key"] == run["run_key"]
    lines = lines_of(resumed, tmp_path)
    assert lines[: len(before)] == before
    assert len({line["id"] for line in lines}) == len(lines) == limit
    texts = {line["id"]: line["text"] for line in lines}
    assert {name: texts[name] for name in expected} == {name: told[0] for name, told in expected.items()}


def wait_for_answers(folder: Path, count: int, worker: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert worker.poll() is None, worker.communicate()
        for path in folder.glob("runs/*/*/*/samples.jsonl"):
            if path.read_bytes().count(b"\n") >= count:
                return
        time.sleep(0.01)
    raise AssertionError("the run never got going")


def lines_of(run, folder):
    return [json.loads(line) for line in (folder / run["folder"] / "samples.jsonl").read_text().splitlines()]
