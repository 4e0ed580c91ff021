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
NEEDS_AN_ENCODER = {"bertscore"}
STARTS_JAVA = {"meteor"}
"""Starts a process for each example: it has its own tests, with one process, in test_metrics_meteor."""
PROVIDERS = {name: one for name, one in REGISTERED.items() if name not in NEEDS_AN_ENCODER | STARTS_JAVA}
BLIND_TO_REFERENCES = {"answer-statistics"}
VOCABULARY = ["left", "right", "lung", "nodule", "no", "effusion", "3.5", "cm", "肺", "."]
sentences = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)
anything = st.one_of(sentences, st.text(max_size=40))
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
    assert set(PROVIDERS) >= {"accuracy", "bleu", "cider", "exact-match", "rouge-l", "token-f1"}
    assert set(PROVIDERS) >= {"answer-statistics", "rouge"}
    assert set(REGISTERED) >= NEEDS_AN_ENCODER | STARTS_JAVA


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
        low, high = (value.floor, value.ceiling) if value.higher_is_better else (value.ceiling, value.floor)
        low, high = (-np.inf if low is None else low, np.inf if high is None else high)
        assert np.isnan(total) or low - 1e-12 <= total <= high + 1e-9
        for one in metric.per_sample(statistics)[value.name]:
            assert np.isnan(one) or low - 1e-12 <= one <= high + 1e-9
    backwards = metric.statistics(cases[::-1], profile_of(metric))
    np.testing.assert_allclose(backwards[::-1], statistics, atol=1e-12)


@pytest.mark.parametrize("name", sorted(set(PROVIDERS) - BLIND_TO_REFERENCES))
@given(texts=st.lists(st.lists(st.sampled_from(VOCABULARY[:6]), min_size=4, max_size=9), min_size=2, max_size=6))
@settings(max_examples=30, deadline=None)
def test_identical_captions_of_four_words_are_the_maximum(name, texts):
    # A word of its own in each caption, so that CIDEr's weights do not vanish.
    lines = [" ".join([f"case{number}", *words]) for number, words in enumerate(texts)]
    metric = make(name)
    statistics = metric.statistics(make_cases([(line, [line]) for line in lines]), profile_of(metric))
    totals = metric.aggregate(statistics.sum(axis=0))
    for value in metric.values:
        total = float(totals[value.name])
        assert np.isnan(total) or total == pytest.approx(value.ceiling, abs=1e-6)


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
