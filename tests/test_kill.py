"""kill -9 at twenty random moments: the resumed run ends in the same bytes, with nothing lost and nothing doubled.

The evaluated model is a random LLaVA in float32: a trained one is so certain that a changed batch could not show.
Each attempt is a fork of a process that has torch and transformers loaded, so that twenty of them take seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from command import mhe

KILLS = 20
LIMIT = 60

SERVER = textwrap.dedent(
    """
    import os, sys, time
    import torch, transformers
    import mhe_hf.backend, mhe_hf.loading, mhe_hf.collation, mhe_hf.generation
    from transformers import LlavaForConditionalGeneration, LlavaProcessor
    from mhe.cli.main import main
    for line in sys.stdin:
        arguments = line.split()
        pid = os.fork()
        if pid == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            torch.set_num_threads(1)
            try:
                main(arguments)
            except SystemExit as done:
                os._exit(done.code or 0)
            os._exit(99)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    """
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from hf_models import build_llava

    folder = tmp_path_factory.mktemp("model") / "random-llava"
    build_llava(folder)
    return folder


class Server:
    """Starts evaluations by forking."""

    def __init__(self, cwd: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env={**os.environ, "MHE_CACHE_DIR": str(cwd / ".cache"), "HF_HUB_OFFLINE": "1"},
        )

    def start(self, *arguments: str) -> int:
        self._process.stdin.write(" ".join(arguments) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def code(self) -> int:
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def scores_of(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in sorted(folder.glob("scores/*.json"))}
    assert found
    return found


def answers_of(folder: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == len(lines), "an answer stands twice"
    return {line["id"]: line["text"] for line in lines}


def test_twenty_kills_leave_the_bytes_of_an_undisturbed_run(tmp_path, model):
    arguments = (
        "eval", "--model", str(model), "--task", "phantom-vqa", "--limit", str(LIMIT), "--batch-size", "4",
        "--set", "backend.dtype=float32", "--set", "generation.max_new_tokens=24",
        "--set", "generation.temperature=1.0", "--set", "backend.num_threads=1",
    )  # fmt: skip
    calm = mhe(*arguments, "--runs-dir", "calm", "--json", cwd=tmp_path)
    assert calm.code == 0, calm.err
    calm_folder = tmp_path / calm.document["runs"][0]["folder"]
    assert len(set(answers_of(calm_folder).values())) > LIMIT // 2, "a model with one answer would prove nothing"

    server = Server(tmp_path)
    chance = random.Random(20)
    kills, seen = 0, 0
    try:
        while kills < KILLS:
            pid = server.start(*arguments, "--runs-dir", "killed")
            # From before the samples are read to between two appended lines.
            time.sleep(chance.choice([chance.uniform(0.0, 0.3), chance.uniform(0.2, 1.5)]))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            if (code := server.code()) == -signal.SIGKILL:
                kills += 1
                path = next(iter(tmp_path.glob("killed/*/*/*/samples.jsonl")), None)
                lines = path.read_bytes().count(b"\n") if path else 0
                assert lines >= seen, "what was answered before a kill is lost"
                seen = lines
            else:
                # It finished: the rest of the kills hits runs that are made again from the start.
                assert code == 0
                (folder,) = tmp_path.glob("killed/*/*/*")
                assert scores_of(folder) == scores_of(calm_folder)
                for path in [folder / "run.json", folder / "samples.jsonl"]:
                    path.unlink()
                seen = 0
    finally:
        server.close()

    done = mhe(*arguments, "--runs-dir", "killed", "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    folder = tmp_path / done.document["runs"][0]["folder"]
    assert done.document["runs"][0]["run_key"] == calm.document["runs"][0]["run_key"]
    assert answers_of(folder) == answers_of(calm_folder)
    assert scores_of(folder) == scores_of(calm_folder)


def test_retrained_weights_at_the_same_path_are_another_run(tmp_path, model):
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    here = tmp_path / "model"
    shutil.copytree(model, here)
    arguments = ("eval", "--model", "./model", "--task", "phantom-vqa", "--limit", "4", "--json")
    first = mhe(*arguments, cwd=tmp_path).document["runs"][0]
    again = mhe(*arguments, cwd=tmp_path).document["runs"][0]
    assert (first["was_done"], again["was_done"]) == (False, True)

    weights = load_file(here / "model.safetensors")
    name = next(name for name in weights if name.endswith("lm_head.weight"))
    weights[name] = weights[name] + 0.5 * torch.randn_like(weights[name])
    save_file(weights, here / "model.safetensors", metadata={"format": "pt"})
    retrained = mhe(*arguments, cwd=tmp_path).document["runs"][0]
    assert retrained["was_done"] is False
    assert retrained["run_key"] != first["run_key"]
    assert retrained["folder"] != first["folder"]
    assert retrained["model"]["fingerprint"] != first["model"]["fingerprint"]
