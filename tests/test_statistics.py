"""Bootstrap against the naive one on the same draws, randomisation tests against enumeration, Holm, seeds."""

from __future__ import annotations

import itertools
import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mhe.statistics as st_module
from mhe.statistics import (
    bootstrap_indices,
    bootstrap_weights,
    holm,
    intervals,
    mean_and_std,
    paired_p_value,
    resampled_values,
    unit_sums,
)


def ratio(sums):
    """A function of sums that is no mean: the geometric mean of two ratios."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"ratio": np.sqrt(sums[..., 0] * sums[..., 1]) / sums[..., 2]}


def mean(sums):
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"mean": np.asarray(sums[..., 0] / sums[..., 1])}


def random_case(rows, n_units, columns=3, seed=0):
    rng = np.random.default_rng(seed)
    units = [f"image {number}" for number in rng.integers(0, n_units, rows)]
    return rng.random((rows, columns)), units


def test_unit_sums_are_ordered_by_name():
    statistics = np.array([[1.0, 1], [2, 1], [4, 1]])
    assert unit_sums(statistics, ["b", "a", "b"]).tolist() == [[2, 1], [5, 2]]


def test_unit_sums_keep_names_apart_that_numpy_would_merge():
    assert len(unit_sums(np.ones((3, 1)), ["a", "a\0", "a\0\0"])) == 3


def test_unit_sums_need_a_unit_a_row():
    with pytest.raises(ValueError, match="2 rows of statistics for 1"):
        unit_sums(np.ones((2, 1)), ["a"])


def test_weights_are_counts_of_the_indices():
    weights, indices = bootstrap_weights(17, 50, seed=3), bootstrap_indices(17, 50, seed=3)
    assert weights.shape == indices.shape == (50, 17)
    assert (weights.sum(axis=1) == 17).all()
    for row, drawn in zip(weights, indices, strict=True):
        assert row.tolist() == [int((drawn == unit).sum()) for unit in range(17)]


def test_weights_are_the_same_each_time_and_change_with_the_seed():
    assert (bootstrap_weights(30) == bootstrap_weights(30)).all()
    assert (bootstrap_weights(30, seed=1) != bootstrap_weights(30)).any()


@pytest.mark.parametrize("chunk", [4_000_000, 100])
def test_equal_to_the_naive_bootstrap_on_the_same_indices(monkeypatch, chunk):
    monkeypatch.setattr(st_module, "CHUNK_CELLS", chunk)
    statistics, units = random_case(300, 80)
    rows = {unit: [n for n, one in enumerate(units) if one == unit] for unit in units}
    names = sorted(rows)
    naive = []
    for drawn in bootstrap_indices(len(names), 200, seed=0):
        picked = [row for unit in drawn for row in rows[names[unit]]]
        naive.append(float(ratio(statistics[picked].sum(axis=0))["ratio"]))
    weights = bootstrap_weights(len(names), 200, seed=0)
    values = resampled_values(ratio, unit_sums(statistics, units), weights)["ratio"]
    np.testing.assert_allclose(values, naive, rtol=1e-12)
    low, high = intervals(ratio, unit_sums(statistics, units), weights)["ratio"]
    assert (low, high) == pytest.approx(tuple(np.percentile(naive, [2.5, 97.5])), rel=1e-12)


def test_an_interval_covers_the_mean_about_95_times_in_100():
    hits = 0
    for seed in range(200):
        values = np.random.default_rng(seed).normal(size=60)
        sums = np.stack([values, np.ones(60)], axis=1)
        low, high = intervals(mean, sums, bootstrap_weights(60, seed=0))["mean"]
        hits += low <= 0 <= high
    assert 180 <= hits <= 198


def test_resampling_by_image_is_wider_than_by_question():
    rng = np.random.default_rng(0)
    image_effect = np.repeat(rng.integers(0, 2, 40), 10).astype(float)
    statistics = np.stack([image_effect, np.ones(400)], axis=1)
    by_image = intervals(mean, unit_sums(statistics, [str(n // 10) for n in range(400)]), bootstrap_weights(40))["mean"]
    by_row = intervals(mean, statistics, bootstrap_weights(400))["mean"]
    assert by_image[1] - by_image[0] > 2 * (by_row[1] - by_row[0])


def test_no_interval_from_one_unit_or_over_nothing():
    assert intervals(mean, np.array([[1.0, 2.0]]), bootstrap_weights(1, 10)) == {"mean": None}
    assert intervals(mean, np.zeros((5, 2)), bootstrap_weights(5, 10)) == {"mean": None}


def test_resamples_without_the_kind_do_not_count():
    sums = np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    assert intervals(mean, sums, bootstrap_weights(3))["mean"] == (1.0, 1.0)


def test_a_thousand_resamples_of_ten_thousand_units_are_fast_and_small():
    start = time.perf_counter()
    sums = np.random.default_rng(0).random((10_000, 9))
    weights = bootstrap_weights(10_000)
    intervals(ratio, sums, weights)
    assert time.perf_counter() - start < 2
    assert weights.nbytes == 20_000_000


def naive_p_value(a, b):
    observed = abs(sum(a) - sum(b))
    hits = 0
    for swaps in itertools.product([False, True], repeat=len(a)):
        total = sum((y - x if swap else x - y) for x, y, swap in zip(a, b, swaps, strict=True))
        hits += abs(total) >= observed - 1e-9
    return hits / 2 ** len(a)


def rows_of(values):
    return np.stack([np.asarray(values, dtype=float), np.ones(len(values))], axis=1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_p_value_of_few_units_is_exact(pairs):
    a, b = zip(*pairs, strict=True)
    units = [str(n) for n in range(len(a))]
    assert paired_p_value(rows_of(a), rows_of(b), mean, "mean", units) == pytest.approx(naive_p_value(a, b))


def test_p_value_of_many_units():
    rng = random.Random(0)
    a = [rng.random() for _ in range(300)]
    units = [str(n) for n in range(300)]
    same = [value + rng.gauss(0, 0.1) for value in a]
    better = [value + 0.1 + rng.gauss(0, 0.1) for value in a]
    assert paired_p_value(rows_of(a), rows_of(a), mean, "mean", units) == 1
    assert paired_p_value(rows_of(a), rows_of(same), mean, "mean", units) > 0.01
    p = paired_p_value(rows_of(a), rows_of(better), mean, "mean", units)
    assert p == 1 / 10_001
    assert p == paired_p_value(rows_of(better), rows_of(a), mean, "mean", units)


def test_p_value_by_image_is_larger_than_by_question():
    a = [0.0] * 100
    b = [1.0] * 60 + [0.0] * 40
    by_question = paired_p_value(rows_of(a), rows_of(b), mean, "mean", [str(n) for n in range(100)])
    by_image = paired_p_value(rows_of(a), rows_of(b), mean, "mean", [str(n // 20) for n in range(100)])
    assert by_question < 0.001
    assert by_image == 0.25


def test_p_value_needs_equal_samples():
    with pytest.raises(ValueError, match="equal samples"):
        paired_p_value(rows_of([1]), rows_of([1, 2]), mean, "mean", ["a"])


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_never_lowers(p_values):
    corrected = holm(p_values)
    assert all(p <= c <= 1 for p, c in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=lambda n: p_values[n])
    assert all(corrected[a] <= corrected[b] for a, b in itertools.pairwise(order))


def test_mean_and_std():
    assert mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_and_std([0.5]) == (0.5, None)
    assert mean_and_std([1, 2])[1] == pytest.approx(math.sqrt(0.5))
    with pytest.raises(ValueError, match="no values"):
        mean_and_std([])
