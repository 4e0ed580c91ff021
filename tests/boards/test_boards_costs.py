"""Columns of cost: the board names them, and what training took comes from the run's record of the checkpoint."""

from __future__ import annotations

import re

import pytest

from mhe.boards.checking import check_board
from mhe.boards.markdown import short_number
from mhe.boards.rendering import read_entries, render_board
from mhe.documents.board import USUAL_COSTS
from mhe.errors import DocumentError

COSTS = ["trained share", "training memory", "training time"]
LINEAGE = [{"recipe": "lora", "parent": "base", "parent_fingerprint": "f" * 64, "seed": 0}]


def training(trained: int, memory: int, seconds: float, device: int | None = None) -> dict:
    return {
        "model.lineage": LINEAGE,
        "model.seed": 0,
        "model.training": {
            "parameters": 2_000_000,
            "trainable_parameters": trained,
            "seconds": seconds,
            "peak_host_bytes": memory,
            "peak_device_bytes": device,
        },
    }


def pages_of(bench, board) -> dict[str, str]:
    return render_board(board, read_entries(board), bench.shelf)


def main_table(page: str) -> list[dict[str, str]]:
    lines = page[page.index("| Rank |") :].split("\n\n", maxsplit=1)[0].splitlines()
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def of_entrant(page: str, name: str) -> dict[str, str]:
    return next(row for row in main_table(page) if row["Entrant"].startswith((f"**{name}**", f"*{name} ")))


@pytest.fixture
def tuned(bench):
    """A base, two checkpoints of it (one trained on a device), one whose record is of older days, and a baseline."""
    board = bench.new(costs=COSTS)
    for name, edit in {
        "base": {},
        "whole": training(2_000_000, 900_000_000, 61.25),
        "few": training(3_262, 800_000_000, 0.5, device=20_000_000),
        "older": {"model.lineage": LINEAGE, "model.seed": 0},
    }.items():
        board = bench.add(board, bench.make(name, right={"whole": 0.9, "few": 0.7}.get(name, 0.3), edit=edit))
    return bench.add(board, bench.make("majority", right=0.4), kind="baseline")


def test_the_columns_are_those_of_the_board(bench, tuned):
    page = pages_of(bench, tuned)["README.md"]
    heads = list(main_table(page)[0])
    assert heads[-4:] == [*COSTS, "Front"]
    assert not set(heads) & set(USUAL_COSTS)
    assert [of_entrant(page, "whole")[cost] for cost in COSTS] == ["100.000 %", "900 MB", "61.2 s"]
    assert [of_entrant(page, "few")[cost] for cost in COSTS] == ["0.163 %", "20.0 MB", "500 ms"]
    for name in ("base", "older", "majority"):
        assert [of_entrant(page, name)[cost] for cost in COSTS] == ["–"] * 3
    assert "– trained share, majority, base: no checkpoint of a recipe" in page
    assert "– training memory, older: the run does not tell" in page
    assert "Trained share:" in page
    assert "Training memory:" in page
    assert "Peak memory is" not in page
    assert "latency" not in page


def test_the_front_is_drawn_for_training_costs_and_leaves_out_who_was_not_trained(bench, tuned):
    files = pages_of(bench, tuned)
    page, drawing = files["README.md"], files["pareto-toy-vqa.svg"]
    assert of_entrant(page, "few")["Front"] == "trained share, training memory"
    assert of_entrant(page, "whole")["Front"] == "trained share, training memory"
    assert "- by trained share: few (0.163 %, " in page, "as in the table, though fronts compare three digits"
    assert re.findall(r">([^<>]+) \(log scale\)", drawing) == ["trained share", "training memory"]
    assert "older" not in drawing
    assert "majority" not in drawing


def test_a_board_that_names_no_costs_has_the_usual_ones(bench):
    board = bench.add(bench.new(), bench.make("alpha", edit=training(10, 20, 1.0)))
    text = (board.path / "board.yaml").read_text()
    page = pages_of(bench, board)["README.md"]
    (board.path / "board.yaml").write_text(re.sub(r"costs:\n(- .*\n)+", "", text))
    from mhe.boards.folders import open_board

    again = open_board(board.path)
    assert again.spec.costs == USUAL_COSTS
    assert pages_of(bench, again)["README.md"] == page
    assert list(main_table(page)[0])[-6:] == [*USUAL_COSTS, "Front"]
    assert "Trained share" not in page


def test_wrong_columns_are_explained(bench):
    with pytest.raises(DocumentError, match=r"costs\.1: .*'training memory'.*found 'price'"):
        bench.new(costs=["bytes", "price"])
    with pytest.raises(DocumentError, match="costs are listed twice"):
        bench.new(costs=["bytes", "bytes"])
    with pytest.raises(DocumentError, match="costs"):
        bench.new(costs=[])


def test_an_edited_training_cost_is_found(bench, tuned):
    from mhe.boards.checking import build_board

    build_board(tuned.path, bench.shelf)
    assert check_board(tuned.path, bench.shelf).problems == ()
    place = tuned.path / "entries/few/toy-vqa/0/run.json"
    place.write_text(place.read_text().replace("3262", "3"))
    assert any("few/toy-vqa/0" in problem for problem in check_board(tuned.path, bench.shelf).problems)


def test_seeds_are_averaged(bench):
    runs = [
        bench.make("mine", seed=seed, edit={**training(1000 * (seed + 1), 10**8, 10.0), "model.seed": seed})
        for seed in (0, 1)
    ]
    board = bench.add(bench.new(costs=COSTS), *runs)
    row = main_table(pages_of(bench, board)["README.md"])[0]
    assert [row[cost] for cost in COSTS] == ["0.075 %", "100 MB", "10.0 s"]


@pytest.mark.parametrize(
    ("value", "cost", "text"),
    [
        (0.00163, "trained share", "0.163 %"),
        (1.0, "trained share", "100.000 %"),
        (3.06e8, "training memory", "306 MB"),
        (12.34, "training time", "12.3 s"),
        (4321.0, "training time", "4321 s"),
        (None, "trained share", "–"),
    ],
)
def test_costs_as_people_read_them(value, cost, text):
    assert short_number(value, cost) == text


def test_many_names_are_told_by_those_left_out(bench):
    board = bench.new(costs=COSTS)
    for index in range(6):
        board = bench.add(board, bench.make(f"m{index}", noise=index, edit=training(10 + index, 10**8, 1.0)))
    board = bench.add(board, bench.make("base"))
    page = pages_of(bench, board)["README.md"]
    assert "Measured on: cpu, batch 8 (all)." in page
    board = bench.add(board, bench.make("other", edit={"efficiency.batch_size": 1}))
    page = pages_of(bench, board)["README.md"]
    assert "Measured on: cpu, batch 1 (other); cpu, batch 8 (all but other)." in page
    assert "– trained share, base, other: no checkpoint of a recipe" in page
