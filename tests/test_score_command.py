"""`mhe score` end to end, on the whole English test of SLAKE with made predictions."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest

from mhe import MetricUnavailableError, read_samples
from mhe.cli.main import main
from mhe.errors import DocumentError, UserError
from mhe.predictions import read_predictions

DATA = os.environ.get("MHE_TEST_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MHE_TEST_DATA is unset: SLAKE's annotations are not here")
SLAKE = Path(DATA or "") / "slake"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def samples():
    found = read_samples("slake", "test", data_dir=SLAKE)
    assert len(found) == 1061
    return found


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(["score", *map(str, arguments)])
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(samples, answer):
    return [{"id": sample.id, "prediction": answer(sample)} for sample in samples]


def slake(path, *more):
    return path, "--task", "slake", "--data-dir", SLAKE, *more


@needs_data
def test_right_answers_score_one_in_any_order(capsys, tmp_path, samples):
    rows = rows_of(samples, lambda sample: f"Answer: {sample.references[0].upper()}.\nmore")
    random.Random(0).shuffle(rows)
    code, out, _ = call(capsys, *slake(write(tmp_path / "p.jsonl", rows), "--json"))
    assert code == 0
    document = json.loads(out)
    values = {value["name"]: value for metric in document["metrics"] for value in metric["values"]}
    assert {name: values[name]["value"] for name in ("accuracy", "accuracy.closed", "accuracy.open")} == {
        "accuracy": 1,
        "accuracy.closed": 1,
        "accuracy.open": 1,
    }
    assert [values[f"accuracy{kind}"]["samples"] for kind in ("", ".closed", ".open")] == [1061, 416, 645]
    assert set(values["accuracy"]["groups"]["modality"]) == {"CT", "MRI", "X-Ray"}
    assert document["data"]["digest"].startswith("text-only:")


@needs_data
def test_a_wrong_third_and_the_table(capsys, tmp_path, samples):
    wrong = {sample.id for sample in samples[::3]}
    rows = rows_of(samples, lambda sample: "wrong" if sample.id in wrong else sample.references[0])
    code, out, _ = call(capsys, *slake(write(tmp_path / "p.jsonl", rows)))
    assert code == 0
    assert "1061 of 1061 samples have a prediction" in out
    line = next(line for line in out.splitlines() if line.startswith("accuracy "))
    assert f"{1 - len(wrong) / 1061:.3f}" in line
    assert "higher is better" in line
    assert "strict" in line


@needs_data
def test_all_problems_of_the_ids_at_once(capsys, tmp_path, samples):
    rows = rows_of(samples[20:], lambda sample: "yes")
    rows += [{"id": samples[30].id, "prediction": "no"}]
    rows += [{"id": f"stranger {number}", "prediction": "x"} for number in range(15)]
    code, out, err = call(capsys, *slake(write(tmp_path / "p.jsonl", rows)))
    assert code == 2
    assert out == ""
    assert f"1 id more than once: '{samples[30].id}' (lines 11 and 1042)" in err
    assert "15 ids not in slake, split test: 'stranger 0' (line 1043)" in err
    assert "… and 5 more" in err
    assert "20 samples without a prediction" in err
    assert "… and 10 more. Pass --allow-partial" in err


@needs_data
def test_allow_partial_is_provisional_with_its_own_exit_code(capsys, tmp_path, samples):
    rows = rows_of(samples[:500], lambda sample: sample.references[0])
    path = write(tmp_path / "p.jsonl", rows)
    code, out, _ = call(capsys, *slake(path, "--allow-partial"))
    assert code == 3
    assert "500 of 1061" in out
    assert "provisional; 0.471 with the unanswered at the floor" in out
    code, out, _ = call(capsys, *slake(path, "--allow-partial", "--json"))
    assert (code, json.loads(out)["status"]) == (3, "partial")
    code, _, err = call(capsys, *slake(write(tmp_path / "q.jsonl", rows + rows[:1]), "--allow-partial"))
    assert code == 2
    assert "more than once" in err


@needs_data
def test_limit_and_ids_beyond_it(capsys, tmp_path, samples):
    path = write(tmp_path / "p.jsonl", rows_of(samples[:10], lambda sample: "yes"))
    code, out, _ = call(capsys, *slake(path, "--limit", "10", "--json"))
    assert (code, json.loads(out)["samples"]) == (0, 10)
    code, _, err = call(capsys, *slake(path, "--limit", "8"))
    assert code == 2
    assert "2 ids not in slake, split test, first 8" in err


@needs_data
def test_out_keeps_scores_and_statistics(capsys, tmp_path, samples):
    path = write(tmp_path / "p.jsonl", rows_of(samples, lambda sample: "yes"))
    out_dir = tmp_path / "kept" / "here"
    code, out, _ = call(capsys, *slake(path, "--out", out_dir, "--json"))
    assert code == 0
    assert json.loads((out_dir / "score.json").read_text(encoding="utf-8")) == json.loads(out)
    for metric in json.loads(out)["metrics"]:
        assert len(json.loads((out_dir / metric["file"]).read_text(encoding="utf-8"))["ids"]) == 1061
    before = {file: file.read_bytes() for file in out_dir.rglob("*.json")}
    assert len(before) == 1 + len(json.loads(out)["metrics"]) == 5
    call(capsys, *slake(path, "--out", out_dir, "--json"))
    assert {file: file.read_bytes() for file in out_dir.rglob("*.json")} == before


@needs_data
def test_profiles_all_and_chosen_metrics(capsys, tmp_path, samples):
    path = write(tmp_path / "p.jsonl", rows_of(samples[:20], lambda sample: "yes"))
    code, out, _ = call(
        capsys, *slake(path, "--limit", 20, "--profile", "all", "--metrics", "token-f1, bleu", "--json")
    )
    assert code == 0
    metrics = json.loads(out)["metrics"]
    assert [record["metric"] for record in metrics[:2]] == ["token-f1", "bleu"]
    assert metrics[0]["profile"] == "strict"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "slakee"], "Did you mean 'slake'"),
        (["--task", "slake", "--profile", "strickt"], "Did you mean 'strict'"),
        (["--task", "slake", "--profile", "coco"], "for caption tasks"),
        (["--task", "slake", "--metrics", "acuracy"], "Did you mean 'accuracy'"),
        (["--task", "slake", "--metrics", "cider"], "for caption tasks"),
        (["--task", "slake", "--data-dir", "/nowhere/at/all"], "no such folder"),
    ],
)
def test_mistakes_in_the_call(capsys, tmp_path, arguments, words):
    path = write(tmp_path / "p.jsonl", [{"id": "1", "prediction": "yes"}])
    code, out, err = call(capsys, path, *arguments)
    assert code == 2
    assert out == ""
    assert words in err


def test_a_file_that_is_not_there(capsys, tmp_path):
    code, _, err = call(capsys, tmp_path / "gone.jsonl", "--task", "slake")
    assert code == 2
    assert "gone.jsonl cannot be read: No such file" in err


def test_every_malformed_line_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf"
        b'{"id": "a", "prediction": "fine"}\r\n'
        b"\n"
        b"not json\n"
        b"[1]\n"
        b'{"id": "b"}\n'
        b'{"answer": "c"}\n'
        b'{"id": true, "prediction": "x"}\n'
        b'{"id": "d", "prediction": null}\n'
        b'{"id": "e", "prediction": 5}\n'
        b'{"id": "f", "prediction": "\xff"}\n' + b"[" * 100_000 + b"\n"
    )
    with pytest.raises(DocumentError) as failure:
        read_predictions(path)
    assert [problem.split(":")[0] for problem in failure.value.problems] == [f"line {n}" for n in range(3, 12)]
    text = str(failure.value)
    for words in ("not JSON", "found list", "no `prediction`", "no `id` and no `prediction`; it has: `answer`"):
        assert words in text
    for words in ("found true", "pass --allow-partial", "found 5", "not UTF-8", "nested too deeply"):
        assert words in text


def test_many_malformed_lines_are_counted(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("x\n" * 5000, encoding="utf-8")
    with pytest.raises(DocumentError, match="and 4990 more lines"):
        read_predictions(path)


def test_lines_end_at_newlines_alone_and_ids_may_be_numbers(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"id": 7, "prediction": "one\u2028two\x85three\r", "model": "m"}])
    (prediction,) = read_predictions(path)
    assert (prediction.line, prediction.id, prediction.text) == (1, "7", "one\u2028two\x85three\r")


def test_an_empty_file_and_a_folder(tmp_path):
    (tmp_path / "empty").write_text("\n\n", encoding="utf-8")
    with pytest.raises(DocumentError, match="no predictions"):
        read_predictions(tmp_path / "empty")
    with pytest.raises(UserError, match="Is a directory"):
        read_predictions(tmp_path)


@pytest.fixture
def captions(tmp_path):
    found = read_samples("phantom-caption", "test", limit=12)
    return write(tmp_path / "captions.jsonl", rows_of(found, lambda sample: sample.references[0]))


PHANTOM = ("--task", "phantom-caption", "--limit", 12, "--profile", "all")


def test_captions_under_every_profile(capsys, captions):
    pytest.importorskip("pycocoevalcap")
    code, out, _ = call(capsys, captions, *PHANTOM, "--json")
    assert code == 0
    metrics = json.loads(out)["metrics"]
    profiles = [record["profile"] for record in metrics]
    assert set(profiles) >= {"plain", "coco"}
    for record in metrics:
        for value in record["values"]:
            if value["name"].startswith(("bleu", "rouge")):
                assert value["value"] == pytest.approx(1, abs=1e-6), (record["profile"], value["name"])


def test_without_java_the_value_is_null_with_the_reason_and_the_exit_code_is_not_zero(capsys, captions, monkeypatch):
    def no_java():
        raise MetricUnavailableError("Java was not found: pip install 'mhe[metrics]'")

    for module in ("java", "tokenizer_jar", "meteor_jar"):
        monkeypatch.setattr(f"mhe_metrics.{module}.find_java", no_java)
    # What earlier calls of this process keep needs no Java any more.
    monkeypatch.setattr("mhe_metrics.ptb_tokens._kept", [])
    monkeypatch.setattr("mhe.remembered_profiles._kept", WeakKeyDictionary())
    code, out, _ = call(capsys, captions, *PHANTOM, "--json")
    assert code == 3
    by_profile = {}
    for record in json.loads(out)["metrics"]:
        by_profile.setdefault(record["profile"], []).extend(record["values"])
    assert all(value["value"] is None and "pip install" in value["reason"] for value in by_profile["coco"])
    assert all(value["value"] is not None for value in by_profile["plain"])
    code, out, _ = call(capsys, captions, *PHANTOM)
    assert code == 3
    assert "Java was not found" in out
    assert "PHANTOM" in out.upper()
