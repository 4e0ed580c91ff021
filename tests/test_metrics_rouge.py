"""Google's ROUGE against the package `rouge_score`, caption by caption, on real text."""

from __future__ import annotations

import csv
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest

from mhe import Case, MetricContext, MetricUnavailableError, Sample
from mhe_metrics.profiles.plain import PLAIN
from mhe_metrics.rouge import Rouge

DATA = os.environ.get("MHE_TEST_DATA")
needs_data = pytest.mark.skipif(DATA is None, reason="MHE_TEST_DATA is unset: real captions are not here")
CONTEXT = MetricContext(cache_dir=Path("unused"))
NAMES = ("rouge-1", "rouge-2", "rouge-l-google")
HOSTILE = [
    "",
    "   ",
    "...",
    "a",
    "3.5 x 2-cm",
    "left\rlung",
    "left\u2028lung ||| right",
    "左肺结节",
    "naïve µm ±5 🫁",
    "İstanbul K",
    "the the the the",
]


class Raw:
    """A profile that leaves texts alone, as rouge_score sees them."""

    name, version, kind, source, defects = "raw", "1", "caption", "this test", ()

    def clean(self, texts):
        return list(texts)


def make_cases(pairs):
    return [
        Case(Sample(id=str(n), images=(), references=tuple(refs)), answer) for n, (answer, refs) in enumerate(pairs)
    ]


def rows_of(pairs, profile=None, **options):
    metric = Rouge(Rouge.Options(**options), CONTEXT)
    return metric.statistics(make_cases(pairs), profile or Raw())


def peer_rows(pairs, *, stemming=False):
    scoring = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = scoring.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemming)
    found = [scorer.score_multi(list(refs), answer) for answer, refs in pairs]
    return np.array([[scores[kind].fmeasure for kind in ("rouge1", "rouge2", "rougeL")] for scores in found])


@pytest.fixture(scope="module")
def captions():
    path = Path(DATA or "") / "roco_v1" / "captions_test.tsv"
    with path.open(encoding="utf-8", newline="") as stream:
        texts = [row["caption"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(texts) == 3446
    return texts


def perturbed(texts):
    rng = random.Random(0)
    return [" ".join(word for word in text.split() if rng.random() > 0.2) for text in texts]


@needs_data
def test_real_captions_equal_rouge_score_one_by_one(captions):
    pairs = [(answer, [own]) for answer, own in zip(perturbed(captions), captions, strict=True)]
    np.testing.assert_allclose(rows_of(pairs)[:, :3], peer_rows(pairs), rtol=0, atol=1e-9)


@needs_data
def test_several_references_and_stems_equal_rouge_score(captions):
    shifted = captions[1:] + captions[:1]
    pairs = [(a, refs) for a, *refs in zip(perturbed(captions), shifted, captions, strict=True)][:600]
    np.testing.assert_allclose(rows_of(pairs)[:, :3], peer_rows(pairs), rtol=0, atol=1e-9)
    stemmed = rows_of(pairs, stemming=True)[:, :3]
    np.testing.assert_allclose(stemmed, peer_rows(pairs, stemming=True), rtol=0, atol=1e-9)
    assert not np.allclose(stemmed, rows_of(pairs)[:, :3])


@pytest.mark.parametrize("stemming", [False, True])
def test_hostile_texts_equal_rouge_score(stemming):
    pairs = [(answer, [reference]) for answer in HOSTILE for reference in HOSTILE]
    ours = rows_of(pairs, stemming=stemming)[:, :3]
    np.testing.assert_allclose(ours, peer_rows(pairs, stemming=stemming), rtol=0, atol=1e-9)


def test_values_worked_by_hand():
    # 3 of 4 answer words and 3 of 6 reference words; of the pairs only "the cat"; the subsequence is "the cat mat".
    row = rows_of([("the cat mat sofa", ["the cat sat on a mat"])])[0]
    assert row.tolist() == pytest.approx([2 * 0.75 * 0.5 / 1.25, 2 * (1 / 3) * (1 / 5) / (1 / 3 + 1 / 5), 0.6, 1])


def test_each_value_takes_its_own_best_reference():
    one = rows_of([("a b c d", ["d c b a"])])[0]
    other = rows_of([("a b c d", ["a b x y"])])[0]
    both = rows_of([("a b c d", ["d c b a", "a b x y"])])[0]
    assert both.tolist() == np.maximum(one, other).tolist()
    assert both.tolist() == pytest.approx([1, 1 / 3, 0.5, 1])


def test_text_without_ascii_letters_is_nothing_even_where_it_is_identical():
    assert rows_of([("左肺结节", ["左肺结节"])], PLAIN)[0].tolist() == [0, 0, 0, 1]
    assert rows_of([("", [""])])[0].tolist() == [0, 0, 0, 1]


def test_ten_thousand_words():
    text = " ".join(f"w{number % 997}" for number in range(10_000))
    assert rows_of([(text, [text + " end"])])[0, 2] == pytest.approx(2 * 10_000 / 20_001)


def test_mean_over_samples_and_nan_over_none():
    metric = Rouge(Rouge.Options(), CONTEXT)
    statistics = rows_of([("a b", ["a b"]), ("x", ["y"])])
    assert {name: float(value) for name, value in metric.aggregate(statistics.sum(axis=0)).items()} == dict.fromkeys(
        NAMES, 0.5
    )
    assert all(np.isnan(value) for value in metric.aggregate(np.zeros(4)).values())


def test_stemming_without_nltk_is_unavailable_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.stem.porter", None)
    with pytest.raises(MetricUnavailableError, match="pip install nltk"):
        rows_of([("scans", ["scan"])], stemming=True)
