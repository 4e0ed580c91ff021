"""`mhe eval --backend vllm` as a user runs it: killed, run again, and read by a program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from command import mhe

LIMIT = 64
ARGUMENTS = ("eval", "--model", "tiny-llava", "--backend", "vllm", "--task", "phantom-vqa", "--limit", str(LIMIT))
OPTIONS = ("--set", "backend.dtype=float32", "--set", "backend.kv_cache_gb=0.25", "--batch-size", "2")


def lines_of(folder):
    path = next(iter(folder.glob("runs/*/*/*/samples.jsonl")), None)
    return path.read_text().splitlines() if path else []


def test_a_killed_run_goes_on_and_ends_in_the_answers_of_transformers(tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "MHE_CACHE_DIR": str(tmp_path / ".cache")}
    started = subprocess.Popen(
        [sys.executable, "-m", "mhe.cli.main", *ARGUMENTS, *OPTIONS],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while len(lines_of(tmp_path)) < 5:
        assert started.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    started.send_signal(signal.SIGKILL)
    started.wait()
    kept = lines_of(tmp_path)
    assert 5 <= len(kept) < LIMIT, "it should be killed in the middle"

    done = mhe(*ARGUMENTS, *OPTIONS, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (run,) = done.document["runs"]
    assert run["status"] == "complete"
    assert run["backend"]["name"] == "vllm"
    assert "vllm" in run["backend"]["version"]
    assert run["efficiency"]["first_token_p50"] > 0
    whole = lines_of(tmp_path)
    # The last line of a killed process may be cut; it is then made again.
    assert whole[: len(kept) - 1] == kept[:-1]
    texts = {line["id"]: line["text"] for line in map(json.loads, whole)}
    assert len(texts) == len(whole) == LIMIT

    other = mhe(*ARGUMENTS[:3], *ARGUMENTS[5:], "--set", "backend.dtype=float32", "--json", cwd=tmp_path)
    assert other.code == 0, other.err
    (reference,) = other.document["runs"]
    assert reference["backend"]["name"] == "hf"
    assert reference["run_key"] != run["run_key"]
    expected = (tmp_path / reference["folder"] / "samples.jsonl").read_text().splitlines()
    assert texts == {line["id"]: line["text"] for line in map(json.loads, expected)}
