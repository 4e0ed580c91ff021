"""Caption metrics against COCO's published numbers and against pycocoevalcap in this process, on real text."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mhe import Case, MetricContext, MetricUnavailableError, Part, Sample
from mhe_metrics import java
from mhe_metrics.bleu import Bleu
from mhe_metrics.cider import Cider
from mhe_metrics.java import find_jar, find_java, run_jar
from mhe_metrics.profiles.coco import COCO
from mhe_metrics.profiles.plain import PLAIN
from mhe_metrics.ptb_tokens import ptb_tokens
from mhe_metrics.rouge_l import RougeL, common_subsequence

DATA = os.environ.get("MHE_TEST_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MHE_TEST_DATA is unset: real captions are not here")
CONTEXT = MetricContext(cache_dir=Path("unused"))


def make(factory):
    return factory(factory.Options(), CONTEXT)


def make_cases(answers, references):
    return [
        Case(Sample(id=str(number), images=(), references=tuple(refs)), answer)
        for number, (answer, refs) in enumerate(zip(answers, references, strict=True))
    ]


def value_of(factory, cases, profile):
    metric = make(factory)
    statistics = metric.statistics(cases, profile)
    return {name: float(value) for name, value in metric.aggregate(statistics.sum(axis=0)).items()}, {
        name: value.tolist() for name, value in metric.per_sample(statistics).items()
    }


@pytest.fixture(scope="module")
def roco():
    pytest.importorskip("pycocoevalcap")
    path = Path(DATA or "") / "roco_v1" / "captions_test.tsv"
    with path.open(encoding="utf-8", newline="") as stream:
        captions = [row["caption"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(captions) == 3446
    rng = random.Random(0)
    answers = []
    for caption in captions:
        words = [word for word in caption.split() if rng.random() > 0.2]
        rng.shuffle(words) if rng.random() < 0.1 else None
        answers.append(" ".join(words))
    # Captions shifted by one serve as second references.
    return make_cases(answers, [(own, other) for own, other in zip(captions, captions[1:] + captions[:1], strict=True)])


@needs_data
def test_coco_golden_numbers():
    jar = find_jar("spice", "spice-1.0.jar")
    with zipfile.ZipFile(jar) as archive:
        annotations = json.loads(archive.read("coco/annotations/captions_val2014.json"))["annotations"]
    references: dict[int, list[str]] = {}
    for row in annotations:
        references.setdefault(row["image_id"], []).append(row["caption"])
    path = Path(DATA or "") / "coco_fakecap" / "captions_val2014_fakecap_results.json"
    predictions = {row["image_id"]: row["caption"] for row in json.loads(path.read_text(encoding="utf-8"))}
    assert len(predictions) == 1000
    cases = make_cases(predictions.values(), [references[name] for name in predictions])
    texts = [text for case in cases for text in (case.answer, *case.sample.references)]
    cleaned = dict(zip(texts, COCO.clean(texts), strict=True))

    class Cleaned:
        name, version, kind, source, defects = "coco", "1", "caption", "", ()

        def clean(self, wanted):
            return [cleaned[text] for text in wanted]

    found = {}
    for factory in (Bleu, RougeL, Cider):
        found |= value_of(factory, cases, Cleaned())[0]
    published = {
        "bleu-1": 0.579400,
        "bleu-2": 0.404391,
        "bleu-3": 0.278536,
        "bleu-4": 0.190829,
        "rouge-l": 0.396253,
        "cider": 0.599791,
    }
    assert {name: round(value, 6) for name, value in found.items()} == published


@needs_data
def test_equal_to_pycocoevalcap_on_real_captions_one_by_one(roco):
    from pycocoevalcap.bleu.bleu import Bleu as TheirBleu
    from pycocoevalcap.cider.cider import Cider as TheirCider
    from pycocoevalcap.rouge.rouge import Rouge as TheirRouge

    answers = PLAIN.clean([case.answer for case in roco])
    gts = {case.sample.id: PLAIN.clean(case.sample.references) for case in roco}
    res = {case.sample.id: [answer] for case, answer in zip(roco, answers, strict=True)}

    theirs, per_sample = TheirBleu(4).compute_score(gts, res, verbose=0)
    ours, ours_per_sample = value_of(Bleu, roco, PLAIN)
    for k in range(4):
        assert ours[f"bleu-{k + 1}"] == pytest.approx(theirs[k], abs=1e-12)
        np.testing.assert_allclose(ours_per_sample[f"bleu-{k + 1}"], per_sample[k], atol=1e-9, rtol=0)
    mean, values = TheirCider().compute_score(gts, res)
    ours, ours_per_sample = value_of(Cider, roco, PLAIN)
    assert ours["cider"] == pytest.approx(mean, abs=1e-12)
    np.testing.assert_allclose(ours_per_sample["cider"], values, atol=1e-9, rtol=0)

    few = roco[:600]  # their table of lengths is slow: 600 of the captions
    ids = [case.sample.id for case in few]
    mean, values = TheirRouge().compute_score({i: gts[i] for i in ids}, {i: res[i] for i in ids})
    ours, ours_per_sample = value_of(RougeL, few, PLAIN)
    assert ours["rouge-l"] == pytest.approx(mean, abs=1e-12)
    np.testing.assert_allclose(ours_per_sample["rouge-l"], values, atol=1e-9, rtol=0)


@needs_data
def test_common_subsequence_is_rapidfuzz_s(roco):
    distance = pytest.importorskip("rapidfuzz.distance")
    for case in roco:
        first, second = case.answer.split(), case.sample.references[1].split()
        assert common_subsequence(first, second) == distance.LCSseq.similarity(first, second)


@needs_data
def test_tokens_are_pycocoevalcap_s(roco):
    """All but those whose tokens theirs decides by the first letter of the next caption."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    captions = [" ".join(case.sample.references[0].splitlines()) for case in roco]
    jar = find_jar("tokenizer", "stanford-corenlp-3.4.1.jar")
    lines = subprocess.run(
        [find_java(), *java.FLAGS, "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"],
        input="\n".join(captions).encode(),
        capture_output=True,
        check=True,
    ).stdout.decode()
    theirs = [
        " ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATIONS) for line in lines.split("\n")
    ]
    ours = ptb_tokens(captions)
    different = [caption for caption, a, b in zip(captions, ours, theirs, strict=False) if a != b]
    # Only where a caption ends in an abbreviation's or an initial's period, which they judge by the next caption.
    assert len(different) <= 3
    assert all(re.search(r"\b[A-Z]\.\W*$", caption) for caption in different), different


def test_a_caption_s_tokens_do_not_depend_on_its_neighbours():
    pytest.importorskip("pycocoevalcap")
    for follower in ("The end", "the end", "", "1", "\n"):
        assert ptb_tokens(["Seen in twin B.", follower])[0] == "seen in twin b"


HOSTILE = {
    "a\rb": "a b",
    "a\r\nb": "a b",
    "a\u2028b\u2029c\x85d": "a b c d",
    "a\x0bb\x0cc\x1cd\x1de\x1ef": "a b c d e f",
    "line\nline\n": "line line",
    "|||": "| | |",
    "": "",
    " \t ": "",
    "...": "",
    "?!": "?!",  # one token, which their list of punctuation does not have
    ".,;:": "",
    "左肺有结节。": "左肺有结节 。",
    "The": "the",
    "\ud800 lone": "lone",
    "nul\x00byte": "nul byte",
    "a (left) lung": "a -lrb- left -rrb- lung",
    "heart 😀 lung": "heart lung",
    "<b>bold</b>": "<b> bold </b>",
}


def test_hostile_captions_do_not_shift_the_others():
    pytest.importorskip("pycocoevalcap")
    texts = [text for hostile in HOSTILE for text in (hostile, "the marker stays")]
    texts += [" ".join(["word"] * 10_000), "x" * 100_000, ""]
    tokens = ptb_tokens(texts)
    assert len(tokens) == len(texts)
    assert tokens[1 : 2 * len(HOSTILE) : 2] == ["the marker stays"] * len(HOSTILE)
    found = dict(zip(HOSTILE, tokens[: 2 * len(HOSTILE) : 2], strict=True))
    assert found["左肺有结节。"].replace(" ", "").rstrip("。") == "左肺有结节"
    assert {k: v for k, v in found.items() if "左" not in k} == {k: v for k, v in HOSTILE.items() if "左" not in k}
    assert tokens[-3].split() == ["word"] * 10_000
    assert tokens[-1] == ""


def test_no_texts_start_no_java(monkeypatch):
    monkeypatch.setattr(java, "find_java", lambda: pytest.fail("Java was looked for"))
    assert ptb_tokens([]) == []


def test_java_under_a_locale_with_decimal_commas(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("LC_ALL", "de_DE.ISO-8859-1")
    monkeypatch.setenv("LANG", "tr_TR")
    assert ptb_tokens(["LIVER µm é 3.5"]) == ["liver µm é 3.5"]


def test_no_java_says_what_to_install(monkeypatch):
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(MetricUnavailableError, match=r"pip install 'mhe\[metrics\]'"):
        find_java()
    with pytest.raises(MetricUnavailableError, match=r"pip install 'mhe\[metrics\]'"):
        COCO.clean(["a caption"])


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("sleep 30", "did not end within 1 s"),
        ("echo broken >&2; exit 3", "status 3: broken"),
        ("yes | head -c 3000000; exit 9", "status 9"),
    ],
)
def test_a_java_that_hangs_or_fails_is_a_reason_and_never_a_hang(monkeypatch, tmp_path, script, reason):
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setattr(java, "find_java", lambda: fake)
    jar = tmp_path / "a.jar"
    jar.touch()
    with pytest.raises(MetricUnavailableError, match=reason):
        run_jar(jar, ["x"], "text\n" * 100_000, timeout=1)


def test_lost_lines_are_an_error_and_not_a_shift(monkeypatch):
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr("mhe_metrics.ptb_tokens.run_jar", lambda *args, **kwargs: "a\nthe\nb\nb\nthe\n")
    with pytest.raises(MetricUnavailableError, match="5 lines for 4"):
        ptb_tokens(["a", "b"])
    monkeypatch.setattr("mhe_metrics.ptb_tokens.run_jar", lambda *args, **kwargs: "a\nthe\nthe\nb\n")
    with pytest.raises(MetricUnavailableError, match="another order"):
        ptb_tokens(["a", "b"])


def test_cider_of_one_caption_is_zero():
    cases = make_cases(["a small nodule in the left lung"], [["a small nodule in the left lung"]])
    assert value_of(Cider, cases, PLAIN)[0] == {"cider": 0.0}


def test_cider_of_identical_three_word_captions_is_seven_and_a_half():
    texts = ["one two three", "four five six"]
    assert value_of(Cider, make_cases(texts, [[text] for text in texts]), PLAIN)[0]["cider"] == pytest.approx(7.5)


def test_bleu_counts_clipped_matches_and_the_closest_reference():
    cases = make_cases(["the the the the cat"], [["the cat is on the mat", "there is a cat"]])
    row = make(Bleu).statistics(cases, PLAIN)[0].tolist()
    assert row == [3, 1, 0, 0, 5, 4, 3, 2, 4]


def test_metrics_have_no_options():
    for factory in (Bleu, RougeL, Cider):
        assert issubclass(factory.Options, Part)
        with pytest.raises(ValueError, match="extra"):
            factory.Options.model_validate({"n": 4})
