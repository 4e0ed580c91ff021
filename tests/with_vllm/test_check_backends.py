"""Greedy, in float32, every backend gives the same answers: transformers alone and in batches, vLLM in this process,
and vLLM's own server. Where a text differs, the two best tokens are tied, or the answer ends within a character, for
whose bytes transformers shows a sign and the server nothing.

One engine and one server a model answer the questions of both tasks. Images are resized by torchvision everywhere, as
the server does.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from command import mhe
from mhe import ModelSpec, open_catalog
from mhe.backend_checks import AGREEING, Explainer, compare_answers
from mhe_hf import HfBackend, HfOptions
from mhe_vllm.server import ServerBackend
from mhe_vllm.server_options import ServerOptions
from vllm_models import answers, by_sample, context, hf_answers, requests_of, spec_of, vllm

QUESTIONS = 200
TOKENS = 16
KIND = "torchvision"
START_SECONDS = 300
MODELS = ("tiny-llava", "random tiny-llava", "random tiny-qwen2-vl")


class Server:
    """vLLM's server in processes of its own; it starts while others answer."""

    def __init__(self, folder: Path, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self._log = log
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
                    "--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
                    "--enforce-eager", "--max-model-len", "256", "--limit-mm-per-prompt", '{"image": 1}',
                ],
                stdout=stream, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **environment},
            )  # fmt: skip

    def wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/models"):
                return
            time.sleep(0.25)
        raise AssertionError(f"not ready in {START_SECONDS} s: {self._log.read_text()[-3000:]}")

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def starting(folder: Path, place: Path) -> Iterator[Server]:
    server = Server(folder, place / "server.log")
    try:
        yield server
    finally:
        server.close()


def model_folder(name: str, place: Path) -> Path:
    if not name.startswith("random "):
        assert name in open_catalog().models
        return Path(str(files("mhe_tiny") / "models" / name))
    from mhe_tiny.build import build_folder

    return build_folder(name.removeprefix("random "), place / "twin")


def server_answers(server: Server, asked, place: Path):
    server.wait()
    backend = ServerBackend(
        ModelSpec(name="m", backend="server", location="m"), ServerOptions(url=server.url), context(place)
    )
    try:
        backend.load()
        return by_sample(backend.generate(asked, [request.sample_id for request in asked]))
    finally:
        backend.close()


@pytest.fixture(scope="module")
def questions(data_dir):
    found = requests_of("phantom-vqa", QUESTIONS, max_new_tokens=TOKENS)
    found += requests_of("vqa-rad", QUESTIONS, data_dir / "vqa_rad", max_new_tokens=TOKENS)
    assert len({request.sample_id for request in found}) == 2 * QUESTIONS
    return found


@pytest.mark.parametrize("name", MODELS)
def test_every_backend_gives_the_same_answers(name, questions, tmp_path):
    folder = model_folder(name, tmp_path)
    with starting(folder, tmp_path) as server:
        reference = hf_answers(folder, questions, image_processor=KIND, batch_size=1)
        found = {"hf:16": hf_answers(folder, questions, image_processor=KIND, batch_size=16)}
        with vllm(folder, image_processor=KIND) as backend:
            found["vllm"] = answers(backend, questions)
        found["server"] = server_answers(server, questions, tmp_path)
    if name.startswith("random "):
        assert len({response.text for response in reference.values()}) > QUESTIONS, "a model of few answers"
    options = HfOptions(dtype="float32", device="cpu", image_processor=KIND)
    explainer = Explainer(lambda: HfBackend(spec_of(folder), options, context(folder)))
    try:
        listed = {
            label: compare_answers(questions, reference, responses, explainer) for label, responses in found.items()
        }
    finally:
        explainer.close()
    for label, (differences, unanswered) in listed.items():
        print(f"{name}, {label}: {2 * QUESTIONS - len(differences)} of {2 * QUESTIONS} equal", *differences, sep="\n  ")
        assert unanswered == 0
        assert [difference for difference in differences if difference.verdict not in AGREEING] == []
        assert all(difference.causes for difference in differences)
        assert len(differences) < QUESTIONS // 10, "ties are rare"
    for responses in found.values():
        counts = {name: response.prompt_tokens for name, response in responses.items()}
        assert counts == {name: response.prompt_tokens for name, response in reference.items()}


def test_the_command_tells_what_other_pixels_do(data_dir, tmp_path):
    """A random twin is shown the images of two libraries: texts part, and the cause is named."""
    folder = model_folder("random tiny-llava", tmp_path)
    done = mhe(
        "check-backends", folder, "--task", "vqa-rad", "--limit", 48, "--backends", "hf:1,hf:16,vllm",
        "--data-dir", data_dir / "vqa_rad", "--set", "vllm.image_processor=torchvision", "--set", "vllm.kv_cache_gb=0.25",
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
