"""What holds for every metric on any text: ranges, order, identity, finite numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mhe_metrics
from mhe import Case, MetricContext, Sample
from mhe_metrics.cider import Cider
from mhe_metrics.profiles.plain import PLAIN
from mhe_metrics.profiles.strict import STRICT

CONTEXT = MetricContext(cache_dir=Path("unused"))
REGISTERED = {provider.name: provider for provider in mhe_metrics.register_metrics()}
NEEDS_AN_ENCODER = {"bertscore", "bleurt", "clinicalbleurt", "clipscore", "medbertscore"}
STARTS_JAVA = {"meteor", "spice"}
"""A process for each example would start: these have their own tests, with one process."""
FAMILIES = {name for name in REGISTERED if name.endswith(":")}
"""`evaluate:` is other people's metrics under other people's rules."""
PROVIDERS = {name: one for name, one in REGISTERED.items() if name not in NEEDS_AN_ENCODER | STARTS_JAVA | FAMILIES}
BLIND_TO_REFERENCES = {"answer-statistics"}
VOCABULARY = ["left", "right", "lung", "nodule", "no", "effusion", "3.5", "cm", "肺", "."]
sentences = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)
anything = st.one_of(sentences, st.text(max_size=40))
ascii_words = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=8)
rows = st.lists(st.tuples(anything, st.lists(anything, min_size=1, max_size=3)), min_size=1, max_size=8)


def make(name):
    factory = PROVIDERS[name].load()
    return factory(factory.Options(), CONTEXT)


def profile_of(metric):
    return STRICT if "vqa" in metric.kinds else PLAIN


def make_cases(pairs):
    return [
        Case(Sample(id=str(n), images=(), references=tuple(references), question="?"), answer)
        for n, (answer, references) in enumerate(pairs)
    ]


def test_the_list_of_metrics():
    assert set(PROVIDERS) == {
        "accuracy",
        "answer-statistics",
        "bleu",
        "bleu-open",
        "cider",
        "exact-match",
        "rouge",
        "rouge-l",
        "token-f1",
    }
    assert {"bertscore", "clipscore", "medbertscore", *STARTS_JAVA} <= set(REGISTERED)


@pytest.mark.parametrize("name", sorted(PROVIDERS))
@given(pairs=rows)
@settings(max_examples=60, deadline=None)
def test_finite_in_range_and_blind_to_order(name, pairs):
    metric = make(name)
    cases = make_cases(pairs)
    statistics = metric.statistics(cases, profile_of(metric))
    assert statistics.shape == (len(cases), len(metric.columns))
    assert statistics.dtype == np.float64
    assert np.isfinite(statistics).all()
    totals = metric.aggregate(statistics.sum(axis=0))
    assert list(totals) == [value.name for value in metric.values]
    for value in metric.values:
        total = float(totals[value.name])
        low, high = value.bounds
        low, high = (-np.inf if low is None else low, np.inf if high is None else high)
        assert np.isnan(total) or low - 1e-12 <= total <= high + 1e-9
        for one in metric.per_sample(statistics)[value.name]:
            assert np.isnan(one) or low - 1e-12 <= one <= high + 1e-9
    backwards = metric.statistics(cases[::-1], profile_of(metric))
    np.testing.assert_allclose(backwards[::-1], statistics, atol=1e-12)
    for value_name, value in metric.aggregate(backwards.sum(axis=0)).items():
        np.testing.assert_allclose(value, totals[value_name], atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(PROVIDERS) - BLIND_TO_REFERENCES))
@given(texts=st.lists(st.lists(ascii_words, min_size=3, max_size=9), min_size=2, max_size=6))
@settings(max_examples=60, deadline=None)
def test_identical_captions_of_four_words_are_the_maximum(name, texts):
    # A word of its own in each caption: an n-gram that all references have weighs nothing in CIDEr.
    lines = [" ".join([f"case{number}", *words]) for number, words in enumerate(texts)]
    found = values_of(name, lines)
    for value in make(name).values:
        assert np.isnan(found[value.name]) or found[value.name] == pytest.approx(value.ceiling, abs=1e-6)


# The exceptions to that rule.


def values_of(name, lines):
    """The values over captions that equal their references."""
    metric = make(name)
    statistics = metric.statistics(make_cases([(line, [line]) for line in lines]), profile_of(metric))
    return {name: float(value) for name, value in metric.aggregate(statistics.sum(axis=0)).items()}


def test_cider_of_one_caption_is_zero():
    """The weight of every n-gram is log 1."""
    assert values_of("cider", ["a small nodule of the left lung"]) == {"cider": 0}


def test_cider_of_short_captions_stays_below_ten():
    """An order without an n-gram adds nothing: a quarter for each missing one."""
    for words, expected in [(1, 2.5), (2, 5), (3, 7.5), (4, 10)]:
        lines = [" ".join(f"{start}{number}" for number in range(words)) for start in "ab"]
        assert values_of("cider", lines)["cider"] == pytest.approx(expected)


def test_bleu_4_of_short_captions_is_close_to_zero():
    found = values_of("bleu", ["left lung nodule", "right lung"])
    assert found["bleu-1"] == pytest.approx(1)
    assert 0 < found["bleu-4"] < 0.05


def test_rouge_2_of_one_word_is_zero():
    assert values_of("rouge", ["pneumothorax", "effusion"]) == {"rouge-1": 1, "rouge-2": 0, "rouge-l-google": 1}


def test_rouge_of_non_ascii_captions_is_zero():
    assert set(values_of("rouge", ["左肺有结节", "右肺无异常"]).values()) == {0}


@pytest.mark.parametrize("name", sorted(set(PROVIDERS) - BLIND_TO_REFERENCES - {"rouge-l"}))
def test_captions_without_a_word_are_never_right(name):
    found = [value for value in values_of(name, ["", "..."]).values() if not np.isnan(value)]
    assert found == [pytest.approx(0, abs=1e-6)] * len(found)


def test_coco_s_rouge_l_calls_two_captions_without_a_word_equal():
    assert values_of("rouge-l", ["", "..."]) == {"rouge-l": 1}


def test_cider_of_captions_that_are_all_equal_is_zero():
    """The exception: an n-gram that every reference has weighs nothing."""
    metric = make("cider")
    assert isinstance(metric, Cider)
    statistics = metric.statistics(make_cases([("a small nodule here", ["a small nodule here"])] * 3), PLAIN)
    assert statistics[:, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", sorted(PROVIDERS))
def test_no_cases_give_no_rows_and_shapes_broadcast(name):
    metric = make(name)
    assert metric.statistics([], profile_of(metric)).shape == (0, len(metric.columns))
    many = metric.aggregate(np.ones((3, 2, len(metric.columns))))
    assert all(array.shape == (3, 2) for array in many.values())
