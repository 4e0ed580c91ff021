"""Scoring without a task: any two files, hostile ones included, and two lists in memory."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

import mhe
from mhe.cli.main import main
from mhe.errors import DocumentError, UserError
from mhe.references import read_pair

DOC = Path(__file__).parents[1] / "docs" / "scoring-files.md"
TEXTS = {
    "a": "No pleural effusion, on the left.",
    "b": 'He said "nothing" and left\nthe room at noon',
    "c": "x-ray of the 3 mm nodule",
    "d": "",
}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as leaving:
        main(["score", *map(str, arguments)])
    captured = capsys.readouterr()
    return leaving.value.code, captured.out, captured.err


def file(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def predictions(tmp_path, texts=None, name="p.jsonl"):
    return file(tmp_path, name, lines(*({"id": i, "prediction": t} for i, t in (texts or TEXTS).items())))


def references(tmp_path, texts=None, name="r.jsonl"):
    return file(tmp_path, name, lines(*({"id": i, "references": [t]} for i, t in (texts or TEXTS).items())))


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def table(head, texts, separator=",", end="\r\n"):
    return head + end + "".join(f"{name}{separator}{quoted(text)}{end}" for name, text in texts.items())


def values_of(out):
    return {value["name"]: value for metric in json.loads(out)["metrics"] for value in metric["values"]}


# ---------------------------------------------------------------- files


def test_captions_by_default_and_by_id(capsys, tmp_path):
    backwards = dict(reversed(TEXTS.items()))
    code, out, _ = call(capsys, predictions(tmp_path), "--references", references(tmp_path, backwards), "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["kind"], document["samples"], document["answered"]) == ("caption", 4, 4)
    assert [(record["metric"], record["profile"]) for record in document["metrics"]] == [
        ("bleu", "plain"),
        ("rouge-l", "plain"),
        ("cider", "plain"),
    ]
    values = values_of(out)
    assert values["bleu-4"]["value"] == pytest.approx(1, abs=1e-6)
    assert values["rouge-l"]["value"] == 1
    assert values["rouge-l"]["low"] == values["rouge-l"]["high"] == 1


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["bare", "bom"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\r\n"], ids=["lf", "crlf", "blank lines"])
@pytest.mark.parametrize(
    ("suffix", "separator", "heads"),
    [
        (".csv", ",", ("id,prediction", "id,reference")),
        (".tsv", "\t", ("id\tprediction", "id\treference")),
        (".CSV", ",", ("ID,Caption", '"ID","Caption"')),
    ],
)
def test_tables_say_the_same_as_json_lines(tmp_path, mark, end, suffix, separator, heads):
    expected = read_pair(predictions(tmp_path), references(tmp_path))
    files = [
        file(tmp_path, f"{name}{suffix}", mark + table(head, TEXTS, separator, end).encode())
        for name, head in zip("pr", heads, strict=True)
    ]
    found = read_pair(*files)
    assert found.cases == expected.cases
    assert [case.answer for case in found.cases] == list(TEXTS.values())


def test_several_references_and_a_single_one(tmp_path):
    path = file(
        tmp_path,
        "r.jsonl",
        lines({"id": 1, "references": ["one", "two"]}, {"id": "2", "reference": "three\u2028four\x85"}),
    )
    pair = read_pair(predictions(tmp_path, {"2": "x", "1": "y"}), path)
    assert [(case.sample.id, case.answer, case.sample.references) for case in pair.cases] == [
        ("1", "y", ("one", "two")),
        ("2", "x", ("three\u2028four\x85",)),
    ]


def test_all_gaps_and_doubles_at_once(capsys, tmp_path):
    one = file(tmp_path, "p.csv", table("id,prediction", {"a": "x\ny", "stranger": "y"}) + "a,again\r\nstranger2,z\r\n")
    two = file(tmp_path, "r.csv", table("id,reference", {"a": "x", "b": "y", "c": "z"}) + "c,again\r\n")
    code, out, err = call(capsys, one, "--references", two)
    assert (code, out) == (2, "")
    assert "1 id more than once: 'a' (lines 2 and 5)" in err
    assert "2 ids not in r.csv: 'stranger' (line 4), 'stranger2' (line 6)" in err
    assert "3 samples without a prediction: 'b', 'c', 'c'" in err
    assert "r.csv: 1 id more than once: 'c' (lines 4 and 5)" in err


def test_the_bad_lines_of_both_files_at_once(capsys, tmp_path):
    one = file(tmp_path, "p.jsonl", b'{"id": "a", "prediction": "\xff"}\n{"id": "b", "prediction": null}\n')
    two = file(tmp_path, "r.jsonl", '{"id": "a", "references": []}\n{"id": "", "reference": "x"}\n[]\n')
    code, _, err = call(capsys, one, "--references", two)
    assert code == 2
    for words in (
        "p.jsonl, line 1: not UTF-8",
        "p.jsonl, line 2: `prediction` must be a text, found null",
        "r.jsonl, line 1: `references` must be a list of one or more texts, found []",
        "r.jsonl, line 2: `id` must be a text or a whole number",
        "r.jsonl, line 3: expected an object, found list",
    ):
        assert words in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no references: expected lines"),
        ("\ufeff\r\n\r\n", "no references"),
        ("id,reference\r\n", "no references"),
        ("a,first\r\nb,second\r\n", "line 1: expected a header with `id` and `reference` or `caption`, found `a`"),
        ("id,text\n1,x\n", "line 1: expected a header with `reference` or `caption`, found `id`, `text`"),
        ("id,reference,ID\n1,x,1\n", "line 1: columns more than once in the header: `id`"),
        ("id,reference\na,one, two\nb,x\n", "line 2: 3 fields where the header has 2"),
        ("id,reference\na\n", "line 2: 1 fields where the header has 2"),
        ('id,reference\na,"one" two\n', "line 2: not a row of a table"),
        ('id,reference\na,x\nb,"never\nends\n', "line 3: not a row of a table"),
        (b"id,reference\na,x\nb,\xe9t\xe9\nc,\xff\n", "line 3: not UTF-8 (invalid continuation byte at byte 2)"),
        (b"id,reference\na,x\nb,\xe9t\xe9\nc,\xff\n", "line 4: not UTF-8"),
        ("id,reference\na,x\n".encode("utf-16"), "line 1: not UTF-8"),
        ("id,reference\n,x\n", "line 2: `id` must be a text or a whole number"),
        ("id,reference,answer_type\na,x,maybe\n", "line 2: `answer_type` must be closed or open, or empty"),
    ],
)
def test_tables_that_cannot_be_understood(tmp_path, content, words):
    with pytest.raises(DocumentError) as failure:
        read_pair(predictions(tmp_path, {"a": "x"}), file(tmp_path, "r.csv", content))
    assert words in str(failure.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"reference": "x"}, "no `id`; it has: `reference`"),
        ({"id": "a", "text": "x"}, "no `references` and no `reference`; it has: `id`, `text`"),
        ({"id": "a", "reference": "x", "references": ["x"]}, "both `references` and `reference`"),
        ({"id": "a", "references": "x"}, '`references` must be a list of one or more texts, found "x"'),
        ({"id": "a", "references": ["x", None]}, "`references` must be a list"),
        ({"id": "a", "reference": ["x"]}, "`reference` must be a text"),
        ({"id": "a", "reference": "x", "image": {}}, "`image` must be a text"),
    ],
)
def test_references_that_cannot_be_understood(tmp_path, row, words):
    with pytest.raises(DocumentError) as failure:
        read_pair(predictions(tmp_path, {"a": "x"}), file(tmp_path, "r.jsonl", lines(row)))
    assert words in str(failure.value)


def test_groups_images_and_types_are_used(capsys, tmp_path):
    rows = [
        {"id": n, "reference": "yes", "answer_type": "closed" if n < 10 else "open", "image": n // 2, "group:organ": o}
        for n, o in enumerate(["lung"] * 8 + ["liver"] * 6 + [""] * 6)
    ]
    answers = {str(n): "yes" if n < 8 else "no" for n in range(20)}
    out_dir = tmp_path / "out"
    common = (predictions(tmp_path, answers), "--references", file(tmp_path, "r.jsonl", lines(*rows)), "--kind", "vqa")
    code, out, _ = call(capsys, *common, "--out", out_dir, "--json")
    assert code == 0
    values = values_of(out)
    assert values["accuracy"]["value"] == pytest.approx(8 / 20)
    assert values["accuracy.closed"]["value"] == pytest.approx(8 / 10)
    assert values["accuracy"]["groups"] == {"organ": {"liver": 0, "lung": 1}}
    document = json.loads((out_dir / "score.json").read_text(encoding="utf-8"))
    kept = json.loads((out_dir / document["metrics"][0]["file"]).read_text(encoding="utf-8"))
    assert len(set(kept["units"])) == 10
    assert len(kept["values"]["accuracy"]) == 20
    code, out, _ = call(capsys, *common)
    assert "p.jsonl against r.jsonl: 20 of 20 samples have a prediction" in out
    assert re.search(r"organ +lung +1\.000", out)


def test_partial_only_when_asked(capsys, tmp_path):
    common = (predictions(tmp_path, {"a": TEXTS["a"]}), "--references", references(tmp_path))
    assert call(capsys, *common)[0] == 2
    code, out, _ = call(capsys, *common, "--allow-partial", "--json")
    assert (code, json.loads(out)["status"]) == (3, "partial")
    assert values_of(out)["rouge-l"]["worst_case"] == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one of: --task TASK, --references FILE"),
        (["--references", "{r}", "--task", "slake"], "one of: --task TASK, --references FILE"),
        (["--references", "{r}", "--limit", "3"], "--limit goes with --task"),
        (["--task", "slake", "--kind", "vqa"], "--kind goes with --references"),
        (["--references", "{r}", "--metrics", "accuracy"], "for vqa tasks"),
        (["--references", "{r}", "--profile", "strict"], "for vqa tasks"),
        (["--references", "{r}", "--metrics", "blue"], "Did you mean 'bleu'"),
        (["--references", "/nowhere/r.jsonl"], "r.jsonl cannot be read: No such file"),
    ],
)
def test_mistakes_in_the_call(capsys, tmp_path, arguments, words):
    path = references(tmp_path)
    code, out, err = call(capsys, predictions(tmp_path), *(part.format(r=path) for part in arguments))
    assert (code, out) == (2, "")
    assert words in err


def test_ten_thousand_lines_show_progress_on_a_terminal(tmp_path):
    texts = {str(n): f"finding number {n} in the lower left lobe of the lung" for n in range(10_000)}
    command = [sys.executable, "-m", "mhe.cli.main", "score", str(predictions(tmp_path, texts))]
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [*command, "--references", str(references(tmp_path, texts)), "--json"],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
    )
    os.close(follower)
    with child.stdout:
        out = child.stdout.read().decode()
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:
        os.close(leader)  # the other end is closed: there is no more
    assert child.wait() == 0
    assert json.loads(out)["answered"] == 10_000
    assert "score 10,000" in shown.decode()
    assert "cider under plain" in shown.decode()


# ---------------------------------------------------------------- in memory


def test_the_function_agrees_with_the_command(capsys, tmp_path):
    answers = {name: text + " today" for name, text in TEXTS.items()}
    _, out, _ = call(capsys, predictions(tmp_path, answers), "--references", references(tmp_path), "--json")
    scores = mhe.score(answers, TEXTS)
    assert {name: (s.value, s.low, s.high, s.samples) for name, s in scores.items()} == {
        name: (v["value"], v["low"], v["high"], v["samples"]) for name, v in values_of(out).items()
    }
    assert mhe.score(list(answers.values()), [[text] for text in TEXTS.values()]) == scores


def test_the_function_takes_one_metric_without_intervals():
    scores = mhe.score(["Yes.", "no"], ["yes", "yes"], metrics="exact-match", kind="vqa", intervals=False)
    assert scores == {"exact-match": mhe.Score("exact-match", 0.5, None, None, 2, None)}


def test_a_metric_that_cannot_be_computed_is_none_with_the_reason(monkeypatch):
    def no_java():
        raise mhe.MetricUnavailableError("Java was not found: pip install 'mhe[metrics]'")

    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr("mhe_metrics.java.find_java", no_java)
    (score,) = mhe.score(["a lung"], ["a lung"], metrics="rouge-l", profile="coco").values()
    assert score.value is None
    assert "pip install" in score.reason


@pytest.mark.parametrize(
    ("answers", "right", "words"),
    [
        (["a"], ["a", "b"], "1 predictions for 2 references"),
        ({"1": "a", "3": "c"}, {"1": "a", "2": "b"}, "1 without a prediction: '2'"),
        ({"1": "a", "3": "c"}, {"1": "a", "2": "b"}, "1 without references: '3'"),
        (["a"], {"0": "a"}, "both be mappings"),
        ("abc", ["a", "b", "c"], "not one text"),
        ([], [], "nothing to score"),
        ([None], ["a"], "predictions that are no text: '0'"),
        (["a"], [[]], "neither a text nor one or more texts: '0'"),
        (["a"], [[1]], "neither a text nor one or more texts: '0'"),
        (["a"], [None], "neither a text nor one or more texts: '0'"),
    ],
)
def test_texts_that_do_not_match(answers, right, words):
    with pytest.raises(UserError) as failure:
        mhe.score(answers, right)
    assert words in str(failure.value)


def test_unknown_kinds_and_metrics():
    with pytest.raises(UserError, match="kind must be caption or vqa"):
        mhe.score(["a"], ["a"], kind="captions")
    with pytest.raises(UserError, match="Did you mean 'cider'"):
        mhe.score(["a"], ["a"], metrics=["ciderr"])


def test_the_example_of_the_page_runs():
    found = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = [block for block in found if "mhe.score(" in block]
    shown = StringIO()
    with redirect_stdout(shown):
        exec(code, {})
    value, low, high = map(float, shown.getvalue().split())
    assert 0 < low <= value <= high < 1


def test_rouge_l_is_the_same_with_and_without_rapidfuzz(monkeypatch):
    pytest.importorskip("rapidfuzz")
    from mhe_metrics import rouge_l

    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdé", k=draw.randrange(25))) for _ in range(600)]
    fast = mhe.score(texts[:300], texts[300:], metrics="rouge-l")
    monkeypatch.setattr(rouge_l, "longest_common", lambda: rouge_l.common_subsequence)
    assert mhe.score(texts[:300], texts[300:], metrics="rouge-l") == fast
    assert 0.3 < fast["rouge-l"].value < 0.9
