"""Length, silence, cut ends, repetition and variety of answers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from mhe import Case, MetricContext, Response, Sample
from mhe.testing import check_metric
from mhe_metrics.answer_statistics import AnswerStatistics
from mhe_metrics.profiles.plain import PLAIN
from mhe_metrics.profiles.strict import STRICT


def make():
    return AnswerStatistics(AnswerStatistics.Options(), MetricContext(cache_dir=Path("unused")))


def make_cases(answers, reasons=None):
    cases = []
    for number, answer in enumerate(answers):
        response = None if reasons is None else Response(str(number), answer, finish_reason=reasons[number])
        cases.append(Case(Sample(id=str(number), images=(), references=("a lung",)), answer, response))
    return cases


def values_of(cases, profile=PLAIN):
    metric = make()
    statistics = metric.statistics(cases, profile)
    totals = {name: float(value) for name, value in metric.aggregate(statistics.sum(axis=0)).items()}
    return totals, metric.per_sample(statistics)


def test_values_worked_by_hand():
    totals, rows = values_of(make_cases(["a b a b a b a b", "a small nodule", "", " ... "]))
    assert totals["answer-words"] == (8 + 3) / 4
    assert totals["answer-empty"] == 0.5  # punctuation alone is no word
    # Five 4-grams, two of them different; the others have none.
    assert totals["answer-repeated-4"] == pytest.approx(1 - 2 / 5)
    assert totals["answer-distinct-1"] == pytest.approx((2 / 8 + 1) / 2)
    assert totals["answer-distinct-2"] == pytest.approx((2 / 7 + 1) / 2)
    assert rows["answer-words"].tolist() == [8, 3, 0, 0]
    assert [math.isnan(value) for value in rows["answer-repeated-4"]] == [False, True, True, True]
    assert [math.isnan(value) for value in rows["answer-distinct-1"]] == [False, False, True, True]


def test_cut_answers_are_known_from_responses_only():
    totals, rows = values_of(make_cases(["a b", "c", "d", "e"], ["length", "stop", "stop", None]))
    assert totals["answer-cut"] == pytest.approx(1 / 3)
    assert math.isnan(rows["answer-cut"][3])
    assert math.isnan(values_of(make_cases(["a b"]))[0]["answer-cut"])


def test_every_value_over_nothing_is_nan():
    metric = make()
    assert metric.statistics([], PLAIN).shape == (0, 12)
    assert all(np.isnan(value) for value in metric.aggregate(np.zeros(12)).values())


def test_chinese_is_counted_by_character_under_the_plain_and_strict_words():
    for profile in (PLAIN, STRICT):
        totals, _ = values_of(make_cases(["左肺有结节"]), profile)
        assert totals["answer-empty"] == 0
        assert totals["answer-words"] > 0
    assert values_of(make_cases(["左肺有结节"]))[0]["answer-words"] == 5


def test_ten_thousand_equal_words():
    totals, _ = values_of(make_cases(["lung " * 10_000]))
    assert totals["answer-words"] == 10_000
    assert totals["answer-repeated-4"] == pytest.approx(1 - 1 / 9_997)


def test_worst_values_are_the_upper_ones_where_lower_is_better():
    lower = [value for value in make().values if value.higher_is_better is False]
    assert {(value.floor, value.ceiling) for value in lower} == {(1.0, 0.0)}
    assert [value.bounds for value in lower] == [(0.0, 1.0)] * 3


def test_a_length_has_a_range_and_no_direction():
    (words,) = [value for value in make().values if value.name == "answer-words"]
    assert words.higher_is_better is None
    assert words.bounds == (0.0, None)
    assert check_metric(AnswerStatistics, PLAIN)["answer-empty"] <= 1


def test_the_contract_holds_with_responses():
    cases = make_cases(["a b c d a b c d", "", "lung"], ["length", "stop", "stop"])
    values = check_metric(AnswerStatistics, PLAIN, cases=cases, expected={"answer-cut": 1 / 3, "answer-empty": 1 / 3})
    assert values["answer-repeated-4"] == pytest.approx(1 / 5)
