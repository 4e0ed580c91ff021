"""The engine in a process of its own: the same answers, and nothing left behind by kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import json, os, sys, time
sys.path.insert(0, sys.argv[2])
if __name__ == "__main__":
    from pathlib import Path
    from mhe_vllm.watcher import child_pids
    from vllm_models import answers, hf_answers, requests_of, vllm

    asked = requests_of("phantom-vqa", 12, max_new_tokens=8)
    folder = Path(sys.argv[1])
    expected = {name: response.text for name, response in hf_answers(folder, asked).items()}
    with vllm(folder, engine_process="own", batch_size=4) as backend:
        found = {name: response.text for name, response in answers(backend, asked).items()}
        print(json.dumps([found == expected, len(set(found.values())), child_pids()]), flush=True)
        time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_answers_are_the_same_and_a_kill_leaves_no_engine(tmp_path):
    from mhe_tiny.build import build_folder

    folder = build_folder("tiny-llava", tmp_path / "tiny-llava")
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    process = subprocess.Popen(
        [sys.executable, program, folder, Path(__file__).parents[1]],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    with process:
        is_same, different, pids = json.loads(process.stdout.readline())
        assert is_same
        assert different > 6
        engines = [psutil.Process(pid) for pid in pids]
        assert len(engines) >= 2, "the engine's process and the watcher"
        os.kill(process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in engines):
            assert time.monotonic() < deadline, f"still there: {engines}"
            time.sleep(0.1)
