"""Values by group on a board's page, recomputed from the published statistics; and values without a direction."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import pytest

from mhe.boards.ranking import Contender, places
from mhe.boards.rendering import read_entries, render_board
from mhe.cli.board import board as board_command

PUBLISHED = Path(__file__).parents[2] / "leaderboards"


def page_of(bench, board) -> str:
    return render_board(board, read_entries(board), bench.shelf)["README.md"]


def tables_after(page: str, words: str) -> list[list[str]]:
    lines = page[page.index(words) :].split("\n\n")[1].splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def accuracy_by_label(place: Path, group: str) -> dict[str, tuple[float, int]]:
    """Label to accuracy and number of samples, from the lines of a published file."""
    with gzip.open(place, "rt", encoding="utf-8") as stream:
        head, *lines = [json.loads(line) for line in stream]
    samples, rest = lines[: head["samples"]], lines[head["samples"] :]
    start = next(at for at, line in enumerate(rest) if isinstance(line, dict) and line["metric"] == "accuracy")
    rows = rest[start + 1 : start + 1 + head["samples"]]
    which = sorted(head["groups"]).index(group)
    found: dict[str, list[float]] = {}
    for sample, row in zip(samples, rows, strict=True):
        if (code := sample["groups"][which]) is not None:
            found.setdefault(head["groups"][group][code], []).append(row[0])
    return {label: (sum(earned) / len(earned), len(earned)) for label, earned in found.items()}


@pytest.mark.parametrize("group", ["organ", "question_type"])
def test_groups_of_a_published_board_are_those_of_its_statistics(tmp_path, capsys, group):
    from mhe import open_catalog

    shutil.copytree(PUBLISHED, tmp_path / "boards")
    words = ["build", "vqa-rad-tiny", "--leaderboards-dir", str(tmp_path / "boards")]
    assert not board_command.main(words, standalone_mode=False, obj=open_catalog())
    capsys.readouterr()
    folder = tmp_path / "boards" / "vqa-rad-tiny" / "v1"
    head, _, *rows = tables_after((folder / "README.md").read_text(encoding="utf-8"), f"By `{group}`:")
    assert len(rows) == 3
    for name, *cells in rows:
        expected = accuracy_by_label(folder / "entries" / name / "vqa-rad" / "0" / "scores.jsonl.gz", group)
        assert head[1:] == [f"{label} ({expected[label][1]})" for label in sorted(expected)]
        assert cells == [f"{expected[label][0]:.3f}" for label in sorted(expected)]


def test_groups_are_means_over_seeds(bench):
    board = bench.new()
    board = bench.add(board, *[bench.make("alpha", seed=seed) for seed in (0, 1)])
    entries = read_entries(board)
    head, _, row = tables_after(page_of(bench, board), "By `modality`:")
    assert [re.sub(r" \(\d+\)", "", label) for label in head[1:]] == ["CT", "MRI"]
    for label, cell in zip(("CT", "MRI"), row[1:], strict=True):
        found = [entry.record.metrics[0].values[0].groups["modality"][label] for entry in entries]
        assert cell == f"{sum(found) / 2:.3f}"


def test_a_value_without_a_direction_is_never_ranked(bench):
    edit = {"metrics.0.values.0.higher_is_better": None}
    board = bench.add(bench.new(), bench.make("alpha", edit=edit), bench.make("beta", right=0.2, edit=edit))
    page = page_of(bench, board)
    lines = [line for line in page.splitlines() if "**alpha**" in line or "**beta**" in line]
    assert len(lines) == 2
    assert all(line.split("|")[1].strip() == "–" for line in lines)
    assert "Not ranked: `toy.overall` has no direction" in page
    assert "**toy.overall** |" in page
    assert "Pareto" not in page


def test_nobody_has_a_place_without_a_direction():
    def forbidden(sums):
        pytest.fail("nothing is to be tested")

    contenders = [Contender(name, 1.0, ("a",), ("a",), None) for name in ("one", "two")]
    assert places(contenders, forbidden, "mean", higher_is_better=None) == {}
