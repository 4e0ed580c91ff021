"""Whole runs of the backend `server` against a real HTTP server: keys, interruptions, mistakes."""

from __future__ import annotations

import json
import threading
import time

import pytest

from chat_server import MODEL, Reply, answer, refusal, serving
from command import mhe
from mhe import (
    MheError,
)
from server_cases import HALF, KEY, open_backend

# ---------------------------------------------------------------- whole runs


def evaluate(tmp_path, server, *extra, limit=12, **environment):
    return mhe(
        "eval", "--model", MODEL, "--backend", "server", "--task", "phantom-vqa", "--limit", limit,
        "--set", f"backend.url={server.url}", "--set", "backend.first_wait=0.02", "--json", *extra,
        cwd=tmp_path, **environment,
    )  # fmt: skip


def lines_of(run, tmp_path):
    return [json.loads(line) for line in (tmp_path / run["folder"] / "samples.jsonl").read_text().splitlines()]


def written(tmp_path):
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 4
    return files


@pytest.mark.parametrize("kind", ["answers", "echoes", "refuses"])
def test_the_key_is_sent_and_written_nowhere(tmp_path, kind):
    def behave(number, body):
        if kind == "echoes" and number % 3 == 0:
            return answer(f"your key is {KEY}")
        if kind == "echoes" and number % 3 == 1:
            return refusal(500, "x" * 190 + KEY)
        if kind == "refuses" and number >= 2:
            return refusal(401, f"Incorrect API key provided: {KEY}")
        return None

    with serving(behave) as server:
        done = evaluate(tmp_path, server, "--set", "backend.retries=0", OPENAI_API_KEY=KEY)
        assert {asked.headers["Authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
    assert done.code == {"answers": 0, "echoes": 3, "refuses": 3}[kind], done.err
    assert KEY[:20] not in done.out + done.err
    for path in written(tmp_path):
        assert KEY[:20].encode() not in path.read_bytes(), path
    (run,) = done.document["runs"]
    assert run["backend"]["neutral_options"]["key_variable"] == "OPENAI_API_KEY"
    if kind == "echoes":
        assert any("API key" in line["error"]["message"] for line in lines_of(run, tmp_path) if "error" in line)


def test_a_server_that_dies_leaves_a_partial_run_that_goes_on(tmp_path):
    limit, quick = 30, ("--reuse-unverified", "--set", "backend.give_up_after=3", "--set", "backend.concurrency=4")

    def behave(number, body):
        if number == 12:
            threading.Thread(target=server.die).start()
        if number >= 12:
            time.sleep(2)

    with serving(behave) as server:
        first = evaluate(tmp_path, server, *quick, limit=limit)
        port = server.port
    assert first.code == 3, first.err
    (run,) = first.document["runs"]
    assert run["status"] == "partial"
    assert "3 times in a row" in run["warnings"][0]
    before = lines_of(run, tmp_path)
    assert 8 <= len(before) <= 12
    assert not any("error" in line for line in before)

    gone = evaluate(tmp_path, server, *quick, limit=limit)
    assert gone.code == 2
    assert "no server answers" in gone.err

    with serving(port=port) as again:
        second = evaluate(tmp_path, again, *quick, limit=limit)
        assert len(again.asked) == limit - len(before), "what is answered is not asked again"
        third = evaluate(tmp_path, again, *quick, limit=limit)
        assert len(again.asked) == limit - len(before)
    assert (second.code, third.code) == (0, 0), second.err
    (resumed,), (done,) = second.document["runs"], third.document["runs"]
    assert resumed["folder"] == run["folder"]
    assert done["was_done"]
    lines = lines_of(resumed, tmp_path)
    assert lines[: len(before)] == before
    assert len({line["id"] for line in lines}) == len(lines) == limit


def test_errors_of_the_system_are_tried_again_at_the_next_start(tmp_path):
    with serving(lambda number, _: Reply(HALF) if number < 3 else None) as server:
        first = evaluate(tmp_path, server, "--reuse-unverified")
        assert first.code == 3
        assert first.document["runs"][0]["counts"]["system_errors"] == 3
        second = evaluate(tmp_path, server, "--reuse-unverified")
        assert len(server.asked) == 12 + 3
    assert second.code == 0
    assert second.document["runs"][0]["counts"]["answered"] == 12


def test_a_run_is_used_again_only_where_that_is_asked_for(tmp_path):
    with serving() as server:
        runs = [evaluate(tmp_path, server, limit=3).document["runs"][0] for _ in range(2)]
        assert len(server.asked) == 6
    assert runs[0]["run_key"] != runs[1]["run_key"]
    assert [run["model"]["verified"] for run in runs] == [False, False]
    assert runs[0]["model"]["fingerprint"] == runs[1]["model"]["fingerprint"]


def test_mistakes_are_told_with_what_to_type_next(tmp_path):
    with serving() as server:
        done = evaluate(tmp_path, server, "--set", "backend.model=med-vlm")
        wrong = evaluate(tmp_path, server, "--set", "backend.concurency=3")
    assert (done.code, wrong.code) == (2, 2)
    assert "Did you mean 'org/med-vlm'" in done.document["error"]["message"]
    assert "concurrency" in wrong.document["error"]["message"]
    assert not list(tmp_path.rglob("run.json"))


def test_nothing_imports_httpx_before_a_server_is_asked(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys\nfrom mhe.cli.main import main\n"
        "try: main(['show', 'backends', 'server'])\nexcept SystemExit as done: code = done.code\n"
        "import mhe_vllm.server\n"
        "sys.exit(code or ('httpx' in sys.modules) * 5)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "key_variable" in done.stdout


def test_without_httpx_the_extra_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "httpx", None)
    with serving() as server, pytest.raises(MheError, match=r"mhe\[server\]"):
        open_backend(server, tmp_path)
