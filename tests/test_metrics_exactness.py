"""On all 3,446 real captions: equal to pycocoevalcap, to rouge_score, to METEOR's program, and to a naive bootstrap."""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path

import numpy as np
import pytest

from meteor_program import no_paraphrases, program_scores
from mhe import Case, MetricContext, MetricUnavailableError, Sample
from mhe.statistics import bootstrap_indices, bootstrap_weights, resampled_values, unit_sums
from mhe_metrics.bleu import Bleu
from mhe_metrics.cider import Cider
from mhe_metrics.meteor import Meteor, columns_of
from mhe_metrics.meteor_jar import MeteorJar, score_line
from mhe_metrics.profiles.plain import PLAIN
from mhe_metrics.rouge import Rouge
from mhe_metrics.rouge_l import RougeL

DATA = os.environ.get("MHE_TEST_DATA")
pytestmark = pytest.mark.skipif(DATA is None, reason="MHE_TEST_DATA is unset: real captions are not here")
CONTEXT = MetricContext(cache_dir=Path("unused"))
COUNT = 3446


def make(factory):
    return factory(factory.Options(), CONTEXT)


def make_cases(answers, captions):
    return [
        Case(Sample(id=str(number), images=(), references=(caption,)), answer)
        for number, (answer, caption) in enumerate(zip(answers, captions, strict=True))
    ]


@pytest.fixture(scope="module")
def captions():
    path = Path(DATA or "") / "roco_v1" / "captions_test.tsv"
    with path.open(encoding="utf-8", newline="") as stream:
        texts = [row["caption"] for row in csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(texts) == COUNT
    return texts


def perturbed(captions):
    """Words dropped, doubled, exchanged with their neighbour, one caption in ten shuffled."""
    rng = random.Random(7)
    answers = []
    for caption in captions:
        words = [word for word in caption.split() for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2)))]
        for place in range(len(words) - 1):
            if rng.random() < 0.1:
                words[place : place + 2] = words[place + 1], words[place]
        if rng.random() < 0.1:
            rng.shuffle(words)
        answers.append(" ".join(words))
    return answers


def shifted(captions):
    """Each caption answers the image before it."""
    return [*captions[1:], captions[0]]


COPIES = {"perturbed": perturbed, "shifted": shifted}


@pytest.fixture(scope="module", params=sorted(COPIES))
def cases(request, captions):
    return make_cases(COPIES[request.param](captions), captions)


@pytest.fixture(scope="module")
def words(cases):
    """Answers and references by id, as pycocoevalcap takes them."""
    pytest.importorskip("pycocoevalcap")
    answers = PLAIN.clean([case.answer for case in cases])
    right = PLAIN.clean([case.sample.references[0] for case in cases])
    ids = [case.sample.id for case in cases]
    return {i: [text] for i, text in zip(ids, right, strict=True)}, {
        i: [text] for i, text in zip(ids, answers, strict=True)
    }


def per_sample(factory, cases):
    metric = make(factory)
    statistics = metric.statistics(cases, PLAIN)
    assert len(statistics) == COUNT
    totals = metric.aggregate(statistics.sum(axis=0))
    return metric.per_sample(statistics), {name: float(value) for name, value in totals.items()}


def test_bleu(cases, words):
    from pycocoevalcap.bleu.bleu import Bleu as Theirs

    theirs, their_samples = Theirs(4).compute_score(*words, verbose=0)
    ours, totals = per_sample(Bleu, cases)
    for k in range(4):
        np.testing.assert_allclose(ours[f"bleu-{k + 1}"], their_samples[k], rtol=0, atol=1e-9)
        assert totals[f"bleu-{k + 1}"] == pytest.approx(theirs[k], abs=1e-12)


def test_cider(cases, words):
    from pycocoevalcap.cider.cider import Cider as Theirs

    mean, values = Theirs().compute_score(*words)
    ours, totals = per_sample(Cider, cases)
    np.testing.assert_allclose(ours["cider"], values, rtol=0, atol=1e-9)
    assert totals["cider"] == pytest.approx(mean, abs=1e-12)


def test_rouge_l_of_coco(cases, words):
    from pycocoevalcap.rouge.rouge import Rouge as Theirs

    scorer = Theirs()
    right, answers = words
    ours, totals = per_sample(RougeL, cases)
    theirs = [scorer.calc_score(answers[name], right[name]) for name in right]
    np.testing.assert_allclose(ours["rouge-l"], theirs, rtol=0, atol=1e-9)
    assert totals["rouge-l"] == pytest.approx(np.mean(theirs), abs=1e-12)


def test_rouge_of_google(cases):
    scoring = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = scoring.RougeScorer(["rouge1", "rouge2", "rougeL"])

    class Raw:
        name, version, kind, source, defects = "raw", "1", "caption", "this test", ()

        def clean(self, texts):
            return list(texts)

    theirs = [scorer.score(case.sample.references[0], case.answer) for case in cases]
    ours = make(Rouge).statistics(cases, Raw())
    for column, kind in enumerate(("rouge1", "rouge2", "rougeL")):
        np.testing.assert_allclose(ours[:, column], [found[kind].fmeasure for found in theirs], rtol=0, atol=1e-9)


def test_meteor_s_closed_form_is_the_program_s(captions, tmp_path):
    """All perturbed and shifted copies: 6,892 segments and the corpus, from the program's own statistics."""
    pairs = [case for copy in COPIES.values() for case in make_cases(copy(captions), captions)]
    try:
        # Without paraphrases: only the formula is in question here.
        jar = MeteorJar(no_paraphrases(tmp_path))
        numbers = jar.ask([score_line(case.answer, case.sample.references) for case in pairs])
        jar.close()
        theirs, corpus = program_scores(numbers, tmp_path)
    except MetricUnavailableError as error:
        pytest.skip(str(error))
    metric = make(Meteor)
    rows = columns_of(np.array(numbers, dtype=np.float64))
    assert len(theirs) == len(rows) == 2 * COUNT
    np.testing.assert_allclose(metric.per_sample(rows)["meteor"], theirs, rtol=0, atol=1e-12)
    assert float(metric.aggregate(rows.sum(axis=0))["meteor"]) == pytest.approx(corpus, abs=1e-12)


@pytest.mark.parametrize("factory", [Bleu, RougeL, Rouge, Cider], ids=lambda factory: factory.name)
def test_the_bootstrap_is_the_naive_one_on_the_same_indices(factory, captions):
    """Naive: every drawn caption scored again as if there were no others (CIDEr with the weights of the whole set)."""
    chosen = make_cases(perturbed(captions)[:200], captions[:200])
    metric = make(factory)
    statistics = metric.statistics(chosen, PLAIN)
    units = [f"image-{number // 2}" for number in range(200)]
    names = sorted(set(units))
    sums = unit_sums(statistics, units)
    fast = resampled_values(metric.aggregate, sums, bootstrap_weights(len(names), 25, seed=0))
    members = {name: [row for row, unit in enumerate(units) if unit == name] for name in names}
    for draw, indices in enumerate(bootstrap_indices(len(names), 25, seed=0)):
        rows = [row for index in indices for row in members[names[index]]]
        drawn = statistics[rows] if factory is Cider else metric.statistics([chosen[row] for row in rows], PLAIN)
        naive = metric.aggregate(drawn.sum(axis=0))
        for value in metric.values:
            assert fast[value.name][draw] == pytest.approx(float(naive[value.name]), abs=1e-12, rel=0)
