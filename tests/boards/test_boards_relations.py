"""`relative_to`: entrants beside another one, with the paired difference and costs divided by its costs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from mhe.boards.checking import build_board, check_board
from mhe.boards.rendering import read_entries, render_board
from mhe.errors import DocumentError

TEACHER = {"model.parameters": 2_000_000, "model.bits_per_weight": 32.0}
STUDENT = {
    "model.parameters": 500_000,
    "model.bits_per_weight": 4.13,
    "efficiency.latency_p50": 0.0742,
    "efficiency.peak_host_bytes": 200_000_000,
}
COSTS = ["parameters", "bits per weight", "latency p50", "peak memory"]


def page_of(bench, board) -> str:
    return render_board(board, read_entries(board), bench.shelf)["README.md"]


def beside(page: str, reference: str) -> dict[str, list[str]]:
    """Entrant to cells, of the table below the heading."""
    [part] = re.findall(rf"^### Relative to {reference}\n\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()]
    assert rows[0] == ["Entrant", "toy.overall", *COSTS]
    return {row[0]: row[1:] for row in rows[2:]}


@pytest.fixture
def family(bench):
    board = bench.new(costs=COSTS, relative_to={"teacher": []})
    for name, right, edit in (("teacher", 0.9, TEACHER), ("student", 0.6, STUDENT)):
        board = bench.add(board, bench.make(name, right=right, edit=edit))
    return bench.add(board, bench.make("majority", right=0.4), kind="baseline")


def test_all_others_stand_beside_the_teacher_but_for_baselines(bench, family):
    found = beside(page_of(bench, family), "teacher")
    assert list(found) == ["student"]
    assert found["student"][1:] == ["0.250 x", "0.129 x", "2.00 x", "0.250 x"]


def test_the_interval_is_that_of_the_paired_bootstrap(bench, family):
    """Against the plain definition: both answers of the drawn images, image by image."""
    hits = {}
    for entry in read_entries(family):
        right = entry.scores.of("toy-accuracy", "strict").array()[:, 0]
        hits[entry.entrant] = right.reshape(2, 30).sum(axis=0)  # unit i holds the samples i and i + 30
    units = sorted(f"image-{i}" for i in range(30))
    order = [int(unit.removeprefix("image-")) for unit in units]
    gain = (hits["student"] - hits["teacher"])[order]
    draws = bench.shelf.weights(30).astype(float) @ gain / 60
    low, high = np.percentile(draws, [2.5, 97.5])
    shown = beside(page_of(bench, family), "teacher")["student"][0]
    assert shown == f"{gain.sum() / 60:+.3f} ({low:+.3f} to {high:+.3f})"
    assert high < 0


def test_over_seeds_the_means_are_compared(bench):
    board = bench.new(costs=COSTS, relative_to={"teacher": []})
    for name, right in (("teacher", 0.9), ("student", 0.5)):
        runs = [bench.make(name, right=right, seed=seed) for seed in (0, 1)]
        board = bench.add(board, *runs)
    entries = {(e.entrant, e.seed): e.scores.of("toy-accuracy", "strict").array()[:, 0] for e in read_entries(board)}
    difference = np.mean([entries["student", s].mean() - entries["teacher", s].mean() for s in (0, 1)])
    shown = beside(page_of(bench, board), "teacher")["student"][0]
    assert re.fullmatch(rf"{difference:+.3f} \(-0\.\d{{3}} to -0\.\d{{3}}\)", shown), shown


def test_each_family_has_its_own_base(bench):
    board = bench.new(costs=COSTS, relative_to={"base-a": ["small-a"], "base-b": ["small-b"], "base-c": ["small-c"]})
    for name in ("base-a", "small-a", "small-b"):
        board = bench.add(board, bench.make(name))
    page = page_of(bench, board)
    assert list(beside(page, "base-a")) == ["small-a"]
    assert "### Relative to base-b\n\n`base-b` has no entry here yet." in page
    assert "Relative to base-c" not in page, "nobody stands beside it"


def test_what_was_measured_in_another_way_is_not_divided(bench, family):
    other = bench.make("other", right=0.7, edit={"efficiency.batch_size": 1})
    board = bench.add(family, other)
    found = beside(page_of(bench, board), "teacher")
    assert found["other"][1:] == ["0.502 x", "–", "–", "–"]
    assert found["student"][2:] == ["0.129 x", "2.00 x", "0.250 x"]


def test_a_board_without_it_has_no_such_table(bench):
    board = bench.add(bench.new(), bench.make("alpha"))
    assert "Relative to" not in page_of(bench, board)


def test_the_page_is_checked_with_it(bench, family):
    build_board(family.path, bench.shelf)
    assert check_board(family.path, bench.shelf).problems == ()
    page = family.path / "README.md"
    page.write_text(page.read_text().replace("0.250 x", "0.150 x"))
    assert check_board(family.path, bench.shelf).problems


@pytest.mark.parametrize(
    ("relative_to", "told"),
    [
        ({"a": ["a", "b"]}, "'a' is beside itself"),
        ({"a": ["c"], "b": ["c"]}, "'c' is named twice"),
        ({"a": ["c"], "b": []}, "name who is beside 'b'"),
        ({"a": "c"}, r"relative_to\.a"),
    ],
)
def test_wrong_relations_are_explained(bench, relative_to, told):
    with pytest.raises(DocumentError, match=told):
        bench.new(relative_to=relative_to)
