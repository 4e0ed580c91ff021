"""The backend `server` against vLLM's own OpenAI server, on this machine."""

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
from dataclasses import replace
from pathlib import Path

import pytest

from command import mhe
from mhe import Message, ModelSpec, ModelUnusableError
from mhe_vllm.server import ServerBackend
from mhe_vllm.server_options import ServerOptions
from vllm_models import by_sample, context, hf_answers, requests_of

PHANTOMS = 64
TOKENS = 16
START_SECONDS = 240
HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class VllmServer:
    """vLLM's server in processes of its own, in a group that can be killed."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.log = folder.parent / f"server-{self.port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder),
                    "--served-model-name", self.folder.name, "--host", "127.0.0.1", "--port", str(self.port),
                    "--dtype", "float32", "--enforce-eager", "--max-model-len", "256",
                    "--limit-mm-per-prompt", '{"image": 1}',
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/models"):
                return
            time.sleep(0.25)
        raise AssertionError(f"not ready in {START_SECONDS} s: {self.log.read_text()[-3000:]}")

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def served(folder: Path) -> Iterator[VllmServer]:
    server = VllmServer(folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def ask(server, requests, tmp_path, **options):
    spec = ModelSpec(name="m", backend="server", location=server.folder.name)
    backend = ServerBackend(spec, ServerOptions(url=server.url, **options), context(tmp_path))
    try:
        backend.load()
        return by_sample(backend.generate(requests, [request.sample_id for request in requests]))
    finally:
        backend.close()


def said(responses):
    """Text, tokens and end by sample.

    The server holds half a character at an answer's end back; transformers shows a sign for it.
    """
    told = {}
    for name, response in responses.items():
        assert response.error is None, response.error
        text = response.text.rstrip(HALF_A_CHARACTER).strip()
        told[name] = (text, response.prompt_tokens, response.generated_tokens, response.finish_reason)
    return told


@pytest.fixture(scope="module", params=["tiny-llava", "tiny-qwen2-vl"])
def random_twin(request, tmp_path_factory):
    """A random twin, served, whose own settings would change every answer of a server that follows them."""
    from mhe_tiny.build import build_folder

    folder = build_folder(request.param, tmp_path_factory.mktemp("served") / request.param)
    path = folder / "generation_config.json"
    own = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**own, "do_sample": True, "temperature": 0.9, "repetition_penalty": 1.9, "top_k": 3}))
    with served(folder) as server:
        yield server


def test_a_random_twin_answers_as_in_transformers(random_twin, tmp_path):
    asked = requests_of("phantom-vqa", PHANTOMS, max_new_tokens=TOKENS)
    expected = said(hf_answers(random_twin.folder, asked, image_processor="torchvision"))
    assert len({told[0] for told in expected.values()}) > PHANTOMS // 2, "a model of few answers"
    assert said(ask(random_twin, asked, tmp_path)) == expected
    assert said(ask(random_twin, asked, tmp_path, concurrency=1)) == expected
    streamed = ask(random_twin, asked, tmp_path, stream=True)
    assert said(streamed) == expected
    for response in streamed.values():
        assert 0 < response.first_token_seconds <= response.seconds
    # The checkpoint's own taste would have shown.
    other = said(ask(random_twin, asked[:8], tmp_path, extra_body={"repetition_penalty": 1.9}))
    assert any(other[name] != expected[name] for name in other)


def test_sampling_follows_each_samples_seed(random_twin, tmp_path):
    asked = requests_of("phantom-vqa", 16, max_new_tokens=TOKENS, temperature=1.0)
    one = said(ask(random_twin, asked, tmp_path))
    assert said(ask(random_twin, list(reversed(asked)), tmp_path)) == one
    reseeded = said(ask(random_twin, [replace(request, seed=request.seed + 1) for request in asked], tmp_path))
    assert sum(reseeded[name] != one[name] for name in one) > 12


def test_stop_texts_end_answers_alike(random_twin, tmp_path):
    asked = requests_of("phantom-vqa", 16, max_new_tokens=TOKENS)
    plain = hf_answers(random_twin.folder, asked, image_processor="torchvision")
    letters = [text[3] for response in plain.values() if (text := response.text).isprintable() and len(text) > 3]
    stop = next(letter for letter in letters if letter.isascii() and letter.isalpha())
    asked = requests_of("phantom-vqa", 16, max_new_tokens=TOKENS, stop=(stop,))
    expected = hf_answers(random_twin.folder, asked, image_processor="torchvision")
    assert {response.finish_reason for response in expected.values()} >= {"stop"}
    found = ask(random_twin, asked, tmp_path)
    assert {name: told[0] for name, told in said(found).items()} == {n: told[0] for n, told in said(expected).items()}


def test_what_the_server_refuses_is_told(random_twin, tmp_path):
    first, second = requests_of("phantom-vqa", 2, max_new_tokens=4)
    long = replace(first, messages=(Message("user", "is there a lesion? " * 400, images=1),))
    found = ask(random_twin, [long, second], tmp_path)
    assert found[first.sample_id].error.kind == "model"
    assert "beyond the model's context" in found[first.sample_id].error.message
    assert found[second.sample_id].error is None
    # More tokens than the context has are cut by it, as in the other backends.
    (asked,) = requests_of("phantom-vqa", 1, max_new_tokens=4000)
    (response,) = ask(random_twin, [asked], tmp_path).values()
    assert response.error is None
    assert response.prompt_tokens + response.generated_tokens <= 256
    double = replace(first, images=first.images * 2, messages=(Message("user", "compare", images=2),))
    with pytest.raises(ModelUnusableError, match="limit-mm-per-prompt"):
        ask(random_twin, [double], tmp_path)
    with pytest.raises(ModelUnusableError, match=f"Did you mean '{random_twin.folder.name}'"):
        ask(random_twin, [first], tmp_path, model=random_twin.folder.name + "x")


def test_kill_9_of_the_server_leaves_a_run_that_goes_on_when_it_is_back(tmp_path):
    import shutil
    from importlib.resources import as_file, files

    with as_file(files("mhe_tiny") / "models" / "tiny-llava") as packaged:
        shutil.copytree(packaged, tmp_path / "tiny-llava")
    limit = 200
    with served(tmp_path / "tiny-llava") as server:
        asked = requests_of("phantom-vqa", PHANTOMS)
        expected = said(hf_answers(server.folder, asked, image_processor="torchvision"))
        assert said(ask(server, asked, tmp_path)) == expected

        arguments = (
            "eval", "--model", "tiny-llava", "--backend", "server", "--task", "phantom-vqa", "--limit", str(limit),
            "--set", f"backend.url={server.url}", "--set", "backend.model=tiny-llava", "--reuse-unverified", "--json",
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
        server.kill()
        out, err = worker.communicate(timeout=60)
        assert worker.returncode == 3, err
        (run,) = json.loads(out)["runs"]
        assert run["status"] == "partial"
        assert "3 times in a row" in run["warnings"][0]
        before = lines_of(run, tmp_path)
        assert 20 <= len(before) < limit

        server.start()
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
