"""VQA metrics and the `strict` profile on hand-made cases, and the rows of the table of disagreeing peers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mhe import AnswerProfile, Case, MetricContext, MetricUnavailableError, Sample
from mhe.testing import check_metric
from mhe_metrics.accuracy import Accuracy
from mhe_metrics.bleu import Bleu
from mhe_metrics.bleu_open import BleuOpen
from mhe_metrics.exact_match import ExactMatch
from mhe_metrics.profiles.miss import MISS
from mhe_metrics.profiles.plain import PLAIN
from mhe_metrics.profiles.strict import STRICT
from mhe_metrics.token_f1 import TokenF1
from mhe_metrics.words import words

CONTEXT = MetricContext(cache_dir=Path("unused"))


def sample(*references, answer_type=None, name="s"):
    return Sample(id=name, images=(), references=references, question="?", answer_type=answer_type)


def values(factory, cases, profile=STRICT):
    metric = factory(factory.Options(), CONTEXT)
    statistics = metric.statistics(cases, profile)
    assert statistics.shape == (len(cases), len(metric.columns))
    return {name: float(value) for name, value in metric.aggregate(statistics.sum(axis=0)).items()}


@pytest.mark.parametrize(
    ("gold", "prediction", "answer_type", "credit"),
    [
        ("Yes", "Yes, there is.", "closed", 0),
        ("No", "There is no evidence of pneumothorax", "closed", 0),
        ("Yes", "Yes and no", "closed", 0),
        ("No", "None", "closed", 0),
        ("Yes", "true", "closed", 0),
        ("Right Lung", "right lung.", "open", 1),
        ("Right Lung", "The right lung", "open", 0),
        ("Liver, Heart", "heart, liver", "open", 0),
        ("Left", "not left", "open", 0),
    ],
)
def test_strict_on_the_answers_that_peers_disagree_on(gold, prediction, answer_type, credit):
    assert STRICT.credit(prediction, sample(gold, answer_type=answer_type)) == credit


@pytest.mark.parametrize(
    ("gold", "prediction", "credit"),
    [
        ("Yes", " yes.\n", 1),
        ("X-Ray", "x ray", 1),
        ("X-Ray", "xray", 0),
        ("3.5 cm", "3.5 CM.", 1),
        ("3.5", "35", 0),
        ("3.5", "3 5", 0),
        ("5", "5.", 1),
        ("5", "five", 0),
        ("1,5", "1.5", 0),
        ("T2", "t2", 1),
        ("\uff34\uff12", "T2", 1),
        ("是", "是。", 1),
        ("肺部", "肺", 0),
        ("Café", "cafe\u0301", 1),
        ("?", "!", 0),
        ("No", "", 0),
        ("نعم", "نعم؟", 1),
    ],
)
def test_strict_credit(gold, prediction, credit):
    assert STRICT.credit(prediction, sample(gold)) == credit


def test_strict_takes_any_reference():
    assert STRICT.credit("pa", sample("AP", "PA")) == 1
    assert STRICT.credit("lateral", sample("AP", "PA")) == 0


def test_strict_question_types():
    assert STRICT.question_type(sample("Left", answer_type="closed")) == "closed"
    assert STRICT.question_type(sample("Yes", answer_type="open")) == "open"
    assert STRICT.question_type(sample("Yes.")) == "closed"
    assert STRICT.question_type(sample("Left")) == "open"
    assert STRICT.question_type(sample("Yes", "maybe")) == "open"


def test_strict_is_an_answer_profile_and_plain_is_not():
    assert isinstance(STRICT, AnswerProfile)
    assert not isinstance(PLAIN, AnswerProfile)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("T2-weighted, 3.5 cm.", ["t2", "weighted", "3.5", "cm"]),
        ("左肺 T2", ["左", "肺", "t2"]),
        ("", []),
        ("\u2028 ||| …", []),
        ("patient's", ["patient", "s"]),
        ("1,234.5", ["1,234.5"]),
        ("a_b", ["a_b"]),
        ("\ud800", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


def test_accuracy_by_kind():
    cases = [
        Case(sample("Yes", answer_type="closed"), "yes"),
        Case(sample("No", answer_type="closed"), "yes"),
        Case(sample("Left", answer_type="closed"), "left"),
        Case(sample("Right Lung", answer_type="open"), "right lung"),
        Case(sample("2", answer_type="open"), "two"),
        Case(sample("CT", "computed tomography", answer_type="open"), "Computed Tomography"),
        Case(sample("yes", answer_type="open"), "no"),
        Case(sample("不是", answer_type="closed"), "不是。"),
    ]
    assert values(Accuracy, cases) == {
        "accuracy": 5 / 8,
        "accuracy.closed": 3 / 4,
        "accuracy.open": 2 / 4,
        "accuracy.yes-no": 2 / 4,
    }


def test_accuracy_over_nothing_is_nan_and_not_zero():
    found = values(Accuracy, [Case(sample("Left", answer_type="open"), "left")])
    assert found["accuracy"] == found["accuracy.open"] == 1
    assert np.isnan(found["accuracy.closed"])
    assert np.isnan(found["accuracy.yes-no"])


def test_accuracy_needs_a_profile_that_judges():
    with pytest.raises(MetricUnavailableError, match="plain"):
        values(Accuracy, [Case(sample("a"), "a")], PLAIN)


def test_accuracy_per_sample_is_null_for_other_kinds():
    metric = Accuracy(Accuracy.Options(), CONTEXT)
    rows = metric.statistics([Case(sample("Yes", answer_type="closed"), "no")], STRICT)
    found = {name: value.tolist() for name, value in metric.per_sample(rows).items()}
    assert found["accuracy"] == found["accuracy.closed"] == found["accuracy.yes-no"] == [0.0]
    assert np.isnan(found["accuracy.open"][0])


def test_exact_match():
    cases = [
        Case(sample("Liver"), "liver."),
        Case(sample("Liver", "Heart"), "heart"),
        Case(sample("Liver"), "the liver"),
        Case(sample("?"), ""),
    ]
    assert values(ExactMatch, cases) == {"exact-match": 0.5}


@pytest.mark.parametrize(
    ("references", "answer", "precision", "recall", "f1"),
    [
        (["right lung"], "the right lung", 2 / 3, 1, 0.8),
        (["lung"], "lung lung lung", 1 / 3, 1, 0.5),
        (["lung lung"], "lung", 1, 0.5, 2 / 3),
        (["left"], "not left", 0.5, 1, 2 / 3),
        (["heart", "liver and heart"], "heart liver", 1, 2 / 3, 0.8),
        (["heart"], "liver", 0, 0, 0),
        (["heart"], "", 0, 0, 0),
        (["..."], "", 0, 0, 0),
        (["肺部"], "肺", 1, 0.5, 2 / 3),
    ],
)
def test_token_f1(references, answer, precision, recall, f1):
    found = values(TokenF1, [Case(sample(*references), answer)])
    assert found == pytest.approx({"token-precision": precision, "token-recall": recall, "token-f1": f1})


# ---------------------------------------------------------------- BLEU-1 of open answers

OPEN = [
    Case(sample("right lung", answer_type="open", name="1"), "the right lung"),
    Case(sample("liver", "the liver and the heart", answer_type="open", name="2"), "liver the the the"),
    Case(sample("pneumothorax", answer_type="open", name="3"), ""),
    Case(sample("left upper lobe", answer_type="open", name="4"), "left"),
]
CLOSED = [
    Case(sample("yes", answer_type="closed", name="5"), "yes"),
    Case(sample("left", answer_type="closed", name="6"), "right"),
]


def test_bleu_1_of_open_answers_worked_by_hand():
    """Matched 2 + 3 + 0 + 1 (`the` twice: the second reference has it twice) of 3 + 4 + 0 + 1 words.

    The closest references have 2, 5, 1 and 3 words: of 1 and 5 the latter is closer to 4.
    """
    (value,) = values(BleuOpen, OPEN + CLOSED).values()
    assert value == pytest.approx(6 / 8 * np.exp(1 - 11 / 8), abs=1e-15)


def test_bleu_1_of_open_answers_is_bleu_over_them_alone():
    assert values(BleuOpen, OPEN + CLOSED)["bleu-1.open"] == pytest.approx(values(Bleu, OPEN)["bleu-1"], abs=1e-8)
    assert values(BleuOpen, OPEN + CLOSED) == values(BleuOpen, OPEN)
    assert values(Bleu, OPEN + CLOSED)["bleu-1"] != pytest.approx(values(Bleu, OPEN)["bleu-1"], abs=1e-3)


def test_the_profile_says_what_is_open_and_what_a_word_is():
    cases = [Case(sample("Left lung.", answer_type="closed"), "left lung")]
    assert np.isnan(values(BleuOpen, cases)["bleu-1.open"])
    # Under MISS every reference but yes and no is open, and words are compared as they are spelt.
    assert values(BleuOpen, cases, MISS)["bleu-1.open"] == 0
    with pytest.raises(MetricUnavailableError, match="'plain' does not say which questions are open"):
        values(BleuOpen, cases, PLAIN)


def test_bleu_1_of_open_answers_without_a_word_is_zero_and_over_none_is_null():
    assert values(BleuOpen, [OPEN[2]]) == {"bleu-1.open": 0}
    assert np.isnan(values(BleuOpen, CLOSED)["bleu-1.open"])
    assert np.isnan(values(BleuOpen, [])["bleu-1.open"])


def test_bleu_1_of_each_open_answer():
    metric = BleuOpen(BleuOpen.Options(), CONTEXT)
    found = metric.per_sample(metric.statistics(OPEN + CLOSED, STRICT))["bleu-1.open"]
    assert found[:4].tolist() == pytest.approx([2 / 3, 3 / 4 * np.exp(1 - 5 / 4), 0, np.exp(-2)])
    assert np.isnan(found[4:]).all()


def test_bleu_1_of_open_answers_keeps_the_contract():
    assert check_metric(BleuOpen, STRICT, cases=OPEN + CLOSED)
