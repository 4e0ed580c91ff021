"""`mhe eval` end to end with scripted answers: keys, resuming, errors, exit codes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from command import mhe

EVAL = ("eval", "--model", "scripted", "--task", "phantom-vqa", "--limit", "20")


def only_run(document):
    (run,) = document["runs"]
    return run


def lines_of(run, cwd):
    return [json.loads(line) for line in (cwd / run["folder"] / "samples.jsonl").read_text().splitlines()]


def test_a_run_stands_on_its_own_and_is_not_made_twice(tmp_path):
    first = mhe(*EVAL, "--json", cwd=tmp_path)
    assert first.code == 0, first.err
    run = only_run(first.document)
    assert run["status"] == "complete"
    assert run["counts"]["answered"] == 20
    assert run["task"]["phantom"] is True
    assert {"accuracy", "accuracy.closed"} <= {v["name"] for m in run["metrics"] for v in m["values"]}
    for metric in run["metrics"]:
        scores = json.loads((tmp_path / run["folder"] / metric["file"]).read_text())
        assert len(scores["ids"]) == 20
    assert run["environment"]["packages"]["mhe"]
    assert run["command"].startswith("mhe eval --model scripted")
    second = mhe(*EVAL, "--json", cwd=tmp_path)
    again = only_run(second.document)
    assert again["was_done"] is True
    assert not run["was_done"]
    assert again["run_key"] == run["run_key"]
    assert "no model call" in second.err


def test_json_is_one_document_and_tables_go_to_stdout(tmp_path):
    done = mhe(*EVAL, cwd=tmp_path)
    assert done.code == 0
    assert "accuracy" in done.out
    assert "says nothing of medicine" in done.out or "say nothing of medicine" in done.out
    assert "\x1b[" not in done.out, "no escape codes where no terminal is"


@pytest.mark.parametrize(
    "change",
    [
        ("--limit", "21"),
        ("--seed", "1"),
        ("--split", "validation"),
        ("--set", "generation.max_new_tokens=5"),
        ("--set", "generation.temperature=0.5"),
        ("--set", "backend.answer=no"),
    ],
    ids=" ".join,
)
def test_whatever_can_change_an_answer_makes_another_run(tmp_path, change):
    base = only_run(mhe(*EVAL, "--json", cwd=tmp_path).document)
    other = only_run(mhe(*EVAL, *change, "--json", cwd=tmp_path).document)
    assert other["run_key"] != base["run_key"]
    assert not other["was_done"]


@pytest.mark.parametrize("change", [("--batch-size", "3"), ("--set", "backend.order=reverse")], ids=" ".join)
def test_what_cannot_change_an_answer_does_not(tmp_path, change):
    base = only_run(mhe(*EVAL, "--json", cwd=tmp_path).document)
    other = only_run(mhe(*EVAL, *change, "--json", cwd=tmp_path).document)
    assert other["was_done"]
    assert other["run_key"] == base["run_key"]


def test_the_order_of_answers_does_not_change_the_scores(tmp_path):
    contents = []
    for order in ("forward", "reverse", "shuffled"):
        run = only_run(
            mhe(*EVAL, "--json", "--runs-dir", order, "--set", f"backend.order={order}", cwd=tmp_path).document
        )
        contents.append([(tmp_path / run["folder"] / m["file"]).read_bytes() for m in run["metrics"]])
    assert contents[0] == contents[1] == contents[2]


@pytest.mark.parametrize("change", [{"metric_version": "0"}, {"profile_version": "0"}, {"options": {"k": 1}}], ids=str)
def test_scores_of_another_version_or_other_options_are_made_anew_without_the_model(tmp_path, change):
    first = only_run(mhe(*EVAL, "--json", cwd=tmp_path).document)
    place = tmp_path / first["folder"] / "run.json"
    record = json.loads(place.read_text())
    record["metrics"][0].update(change)
    place.write_text(json.dumps(record))
    again = only_run(mhe(*EVAL, "--json", cwd=tmp_path).document)
    assert again["was_done"]
    assert json.loads(place.read_text())["metrics"] == again["metrics"] == first["metrics"]


def test_fresh_runs_again(tmp_path):
    mhe(*EVAL, "--json", cwd=tmp_path)
    again = only_run(mhe(*EVAL, "--fresh", "--json", cwd=tmp_path).document)
    assert not again["was_done"]
    assert again["counts"]["answered"] == 20


def test_another_profile_is_scored_without_the_model(tmp_path):
    first = only_run(mhe(*EVAL, "--json", cwd=tmp_path).document)
    second = only_run(
        mhe(*EVAL, "--metrics", "exact-match,bleu", "--profile", "strict", "--json", cwd=tmp_path).document
    )
    assert second["was_done"]
    assert second["run_key"] == first["run_key"]
    assert {"accuracy", "bleu", "exact-match"} <= {m["metric"] for m in second["metrics"]}
    assert second["efficiency"] == first["efficiency"], "the cost is that of the run, not of scoring again"


def test_samples_without_an_answer_make_a_partial_run(tmp_path):
    ids = [line["id"] for line in lines_of(only_run(mhe(*EVAL, "--json", cwd=tmp_path).document), tmp_path)]
    fail_on = {ids[3]: "data", ids[5]: "model", ids[7]: "system"}
    arguments = (*EVAL, "--json", "--set", f"backend.fail_on={json.dumps(fail_on)}")
    done = mhe(*arguments, cwd=tmp_path)
    assert done.code == 3
    run = only_run(done.document)
    assert run["status"] == "partial"
    counts = run["counts"]
    assert (counts["answered"], counts["data_errors"], counts["model_errors"], counts["system_errors"]) == (17, 1, 1, 1)
    accuracy = next(v for m in run["metrics"] for v in m["values"] if v["name"] == "accuracy")
    assert accuracy["samples"] == 17
    assert accuracy["worst_case"] == pytest.approx(accuracy["value"] * 17 / 20)
    assert all(metric["provisional"] for metric in run["metrics"])
    shown = mhe(*arguments[:-3], *arguments[-2:], cwd=tmp_path)
    assert "PARTIAL" in shown.out
    assert shown.code == 3
    errors = {line["id"]: line["error"]["kind"] for line in lines_of(run, tmp_path) if "error" in line}
    assert errors == fail_on


def test_a_backend_that_dies_costs_only_what_it_did_not_answer(tmp_path):
    done = mhe(*EVAL, "--json", "--set", "backend.raise_after=8", cwd=tmp_path)
    assert done.code == 3
    run = only_run(done.document)
    assert run["counts"]["answered"] == 8
    assert "Run the same command again" in run["warnings"][0]
    assert "Traceback" in (tmp_path / run["folder"] / "mhe.log").read_text()
    resumed = only_run(mhe(*EVAL, "--json", cwd=tmp_path).document)
    assert resumed["status"] == "complete"
    assert resumed["run_key"] == run["run_key"]
    assert len(lines_of(resumed, tmp_path)) == 20
    assert resumed["efficiency"]["uninterrupted"] is False
    assert resumed["efficiency"]["samples_per_second"] is None
    assert "resumed" in resumed["efficiency"]["reasons"]["samples_per_second"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("eval", "--model", "scriptd", "--task", "phantom-vqa"), ["no model named 'scriptd'", "'scripted'"]),
        (("eval", "--model", "scripted", "--task", "phantom-vqs"), ["no task named", "Did you mean 'phantom-vqa'"]),
        ((*EVAL, "--metrics", "acuracy"), ["no metric named 'acuracy'", "Did you mean 'accuracy'"]),
        ((*EVAL, "--profile", "strikt"), ["no profile named 'strikt'", "Did you mean 'strict'"]),
        ((*EVAL, "--backend", "hg"), ["no backend named 'hg'", "hf"]),
        ((*EVAL, "--split", "exam"), ["no split named 'exam'", "train"]),
        ((*EVAL, "--engine", "locl"), ["no engine named 'locl'", "local"]),
        ((*EVAL, "--set", "backend.anser=no"), ["anser: no such key", "answer"]),
        ((*EVAL, "--set", "generation.temperature=hot"), ["temperature", "'hot'"]),
        (
            (*EVAL, "--set", "generaton.temperature=1", "--set", "x"),
            ["Did you mean generation.temperature", "KEY=VALUE"],
        ),
        ((*EVAL, "--limit", "0"), ["--limit 0", "1 or more"]),
        ((*EVAL, "--seeds", "0"), ["--seeds 0"]),
        ((*EVAL, "--data-dir", "nowhere"), ["nowhere", "no such folder"]),
        (("eval", "--model", "./nowhere", "--task", "phantom-vqa"), ["./nowhere: no such folder"]),
        (("eval", "--model", "scripted", "--task", "roco", "--offline"), ["--data-dir", "MHE_DATA_DIR"]),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, tuple) else "",
)
def test_mistakes_are_told_with_what_to_type_next(tmp_path, arguments, says):
    done = mhe(*arguments, cwd=tmp_path)
    assert done.code == 2
    assert done.out == ""
    for text in says:
        assert text in done.err
    as_json = mhe(*arguments, "--json", cwd=tmp_path)
    assert as_json.code == as_json.document["error"]["exit_code"] == 2
    assert not list(tmp_path.glob("runs/*/*/*/run.json"))


def test_seeds_and_several_tasks_make_a_run_each(tmp_path):
    done = mhe(*EVAL, "--task", "phantom-caption", "--seeds", "2", "--json", "--metrics", "exact-match", cwd=tmp_path)
    assert [(r["task"]["name"], r["seed"]) for r in done.document["runs"]] == [
        ("phantom-vqa", 0), ("phantom-vqa", 1), ("phantom-caption", 0), ("phantom-caption", 1),
    ]  # fmt: skip


def start(cwd, *extra):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mhe.cli.main",
            *EVAL,
            "--batch-size",
            "1",
            "--set",
            "backend.delay_seconds=0.2",
            *extra,
        ],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "MHE_CACHE_DIR": str(cwd / ".cache")},
    )


def wait_for_answers(cwd, count):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in cwd.glob("runs/*/*/*/samples.jsonl"):
            if path.read_bytes().count(b"\n") >= count:
                return
        time.sleep(0.02)
    raise AssertionError("the run never got going")


def test_two_processes_on_one_run_one_works_and_the_other_says_so(tmp_path):
    worker = start(tmp_path)
    wait_for_answers(tmp_path, 1)
    other = mhe(*EVAL, cwd=tmp_path)
    assert other.code == 2
    assert f"process {worker.pid}" in other.err
    assert "already evaluating" in other.err
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 0, err
    assert "20 of 20" in out


def test_ctrl_c_leaves_a_clean_message_and_a_resumable_run(tmp_path):
    worker = start(tmp_path)
    wait_for_answers(tmp_path, 3)
    worker.send_signal(signal.SIGINT)
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 130
    assert "Traceback" not in err
    assert "run the same command again to go on" in err
    assert out == ""
    done = mhe(*EVAL, "--json", cwd=tmp_path)
    run = only_run(done.document)
    assert run["status"] == "complete"
    assert len({line["id"] for line in lines_of(run, tmp_path)}) == len(lines_of(run, tmp_path)) == 20


def test_a_full_disk_keeps_the_answers_and_says_what_to_do(tmp_path):
    """A limit on the size of files refuses a write in the middle, as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-m", "mhe.cli.main", *EVAL, "--limit", "200"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MHE_CACHE_DIR": str(tmp_path / ".cache")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000)),
    )
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    assert "make room and run the same command again" in done.stderr
    (samples,) = tmp_path.glob("runs/*/*/*/samples.jsonl")
    kept = samples.read_bytes()
    assert kept.endswith(b"\n")
    assert kept.count(b"\n") > 10
    resumed = only_run(mhe(*EVAL, "--limit", "200", "--json", cwd=tmp_path).document)
    assert resumed["status"] == "complete"
    assert samples.read_bytes().startswith(kept)


def test_show_runs_and_show_run(tmp_path):
    assert mhe("show", "runs", cwd=tmp_path).code == 0
    run = only_run(mhe(*EVAL, "--json", cwd=tmp_path).document)
    listed = mhe("show", "runs", "--json", cwd=tmp_path).document["runs"]
    assert [row["folder"] for row in listed] == [run["folder"]]
    assert "95 % interval" in mhe("show", "run", run["folder"], cwd=tmp_path).out
    assert mhe("show", "run", run["folder"], "--json", cwd=tmp_path).document["run"]["run_key"] == run["run_key"]
    missing = mhe("show", "run", "nowhere", cwd=tmp_path)
    assert missing.code == 2
    assert "mhe show runs" in missing.err
