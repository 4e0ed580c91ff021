"""The page: the same bytes each time, ranks that a test supports, and text that cannot break it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from mhe.boards.checking import build_board
from mhe.boards.markdown import code, escaped, fixed, plain_line, short_number
from mhe.boards.pareto import Point, front_of
from mhe.boards.ranking import Contender, places
from mhe.boards.rendering import read_entries, render_board
from mhe.boards.results import rows_of

HOSTILE = 'x | y\n# head <script>alert(1)</script> [a](b) `c` ![i](j) "\u202eabc\u2028d\x00 & ~~s~~ *b*'


def page_of(bench, board) -> str:
    return render_board(board, read_entries(board), bench.shelf)["README.md"]


def table_rows(page: str, head: str = "| Rank |") -> list[list[str]]:
    lines = page[page.index(head) :].split("\n\n", maxsplit=1)[0].splitlines()
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def mean_contender(name: str, values) -> Contender:
    values = np.asarray(values, dtype=float)
    ids = tuple(f"q{i}" for i in range(len(values)))
    return Contender(name, float(values.mean()), ids, ids, np.stack([values, np.ones(len(values))], axis=1))


def mean(sums):
    return {"mean": sums[..., 0] / sums[..., 1]}


# ------------------------------------------------------------ places


def test_entrants_that_a_test_cannot_tell_apart_share_a_place():
    rng = np.random.default_rng(1)
    base = (rng.random(200) < 0.8).astype(float)
    near = base.copy()
    near[:3] = 1 - near[:3]
    far = base * (rng.random(200) < 0.5)
    found = places(
        [mean_contender("far", far), mean_contender("near", near), mean_contender("base", base)], mean, "mean"
    )
    assert found["base"] == found["near"] == 1
    assert found["far"] == 3


def test_places_do_not_depend_on_the_order_and_follow_the_direction():
    contenders = [mean_contender(n, np.full(60, v) + np.arange(60) % 2) for n, v in [("a", 3), ("b", 1), ("c", 2)]]
    assert places(contenders, mean, "mean") == places(contenders[::-1], mean, "mean") == {"a": 1, "c": 2, "b": 3}
    assert places(contenders, mean, "mean", higher_is_better=False) == {"b": 1, "c": 2, "a": 3}


def test_a_contender_without_a_value_has_no_place():
    blank = mean_contender("blank", np.zeros(5))
    nothing = Contender("nothing", None, blank.ids, blank.units, blank.statistics)
    assert places([nothing, blank], mean, "mean") == {"blank": 1}
    assert places([], mean, "mean") == {}


def test_samples_are_paired_by_id_whatever_their_order():
    left = mean_contender("left", np.arange(40))
    order = np.random.default_rng(0).permutation(40)
    right = Contender("right", 19.5, tuple(left.ids[i] for i in order), tuple(left.units[i] for i in order),
                      left.statistics[order])  # fmt: skip
    assert places([left, right], mean, "mean") == {"left": 1, "right": 1}


def test_the_front_holds_whom_nobody_beats():
    points = [Point("cheap", 1, 0.2), Point("good", 9, 0.9), Point("beaten", 9, 0.5), Point("mid", 4, 0.5)]
    assert front_of(points) == ("cheap", "mid", "good")
    assert front_of(points, higher_is_better=False) == ("cheap",)
    assert front_of([Point("b", 1, 1), Point("a", 1, 1)]) == ("a", "b")


# ------------------------------------------------------------ the table


def test_seeds_are_averaged_and_missing_ones_counted(bench):
    runs = [bench.make("alpha", seed=0), bench.make("alpha", seed=1), bench.make("beta", right=0.2)]
    board = bench.add(bench.new(seeds=[0, 1, 2]), *runs)
    rows = rows_of(board.spec.tasks[0], board.spec.entrants, read_entries(board), bench.shelf)
    alpha = rows[0]
    values = [e.record.metrics[0].values[0].value for e in alpha.entries]
    cell = alpha.cells["toy.overall"]
    assert cell.value == pytest.approx(np.mean(values))
    assert cell.std == pytest.approx(np.std(values, ddof=1))
    assert cell.low < cell.value < cell.high
    widths = [e.record.metrics[0].values[0].high - e.record.metrics[0].values[0].low for e in alpha.entries]
    assert cell.high - cell.low < max(widths)
    table = table_rows(page_of(bench, board))
    assert [row[2] for row in table[2:]] == ["2 of 3", "1 of 3"]
    assert f"± {fixed(cell.std)}" in table[2][3]


def test_the_same_entries_make_the_same_bytes_in_another_process(bench):
    board = bench.add(bench.new(), bench.make("alpha"), bench.make("beta", right=0.5, noise=2))
    pages = render_board(board, read_entries(board), bench.shelf)
    again = render_board(board, read_entries(board)[::-1], bench.shelf)
    assert pages == again
    first = build_board(board.path, bench.shelf)
    stamp = {path: path.read_bytes() for path in first}
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from conftest import FakeCatalog;"
        "from mhe.boards.checking import build_board; from mhe.boards.verification import MetricShelf;"
        "build_board(Path(sys.argv[2]), MetricShelf(FakeCatalog()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C"}
    here = os.path.dirname(__file__)  # noqa: PTH120
    subprocess.run([sys.executable, "-c", script, here, str(board.path)], check=True, env=environment)
    assert {path: path.read_bytes() for path in first} == stamp


def test_a_checkpoint_that_needs_a_class_of_a_plugin_says_which(bench):
    edit = {"model.needs_class": "mhe_compress.PrunedQwen2VLForConditionalGeneration"}
    board = bench.add(bench.add(bench.new(), bench.make("pruned", edit=edit)), bench.make("whole"))
    page = page_of(bench, board)
    assert "**pruned** (needs `mhe_compress.PrunedQwen2VLForConditionalGeneration`)" in page
    assert "**whole** (" not in page


def test_a_baseline_is_marked_and_an_unverified_model_too(bench):
    board = bench.add(bench.new(), bench.make("majority", right=0.4), kind="baseline")
    board = bench.add(board, bench.make("server", edit={"model.verified": False}))
    page = page_of(bench, board)
    assert "*majority (baseline)*" in page
    assert "- by bytes: server" in page, "baselines are on no front"
    assert "**server** (weights unverified)" in page
    assert "**unverified**" in page


def test_null_costs_have_their_reason(bench):
    edit = {"efficiency.latency_p50": None, "efficiency.reasons": {"latency_p50": "the run was interrupted"},
            "model.parameters": None}  # fmt: skip
    page = page_of(bench, bench.add(bench.new(), bench.make("alpha", edit=edit)))
    assert "- – latency p50, alpha: the run was interrupted" in page
    assert "by parameters" not in page
    assert "by bytes" in page


def test_latency_of_different_devices_makes_no_front(bench):
    board = bench.add(bench.new(), bench.make("alpha"), bench.make("beta", edit={"efficiency.batch_size": 1}))
    page = page_of(bench, board)
    assert "No front by latency" in page
    assert "cpu, batch 1 (beta)" in page


def test_reported_rows_are_never_ranked(bench):
    reported = [{"name": "Paper | model", "task": "toy-vqa", "values": {"toy.overall": 0.999, "other": 12.5},
                 "source": "Doe 2024, Table 2, p. 7"},
                {"name": "Four digits", "task": "toy-vqa", "values": {"toy.overall": 0.7605, "other": 0.05},
                 "source": "Doe 2024, Table 2, p. 7"}]  # fmt: skip
    board = bench.add(bench.new(reported=reported), bench.make("alpha"))
    page = page_of(bench, board)
    assert len(table_rows(page)) == 3, "head, rule and one measured row"
    quoted = table_rows(page, "| Model |")
    assert quoted[2] == ["Paper \\| model", "0.999", "12.500", "Doe 2024, Table 2, p. 7", "–"]
    assert quoted[3][1:3] == ["0.7605", "0.050"], "as printed"
    assert "not ranked" in page
    svg = render_board(board, read_entries(board), bench.shelf)["pareto-toy-vqa.svg"]
    assert "Paper" not in svg


def test_phantoms_are_said_loudly_and_notes_shown(bench, new_board_data):
    task = {**new_board_data()["tasks"][0], "phantom": True, "notes": ["train and test share images: by question"]}
    page = page_of(bench, bench.new(tasks=[task]))
    assert page.count("PHANTOM") == 2
    assert "say nothing of medicine" in page
    assert "⚠ train and test share images: by question" in page
    assert "No entry yet." in page


def test_how_to_enter_has_the_exact_commands(bench, new_board_data):
    task = {**new_board_data()["tasks"][0], "limit": 60, "settings": ["--set", 'generation.stop=["a b"]']}
    page = page_of(bench, bench.new(tasks=[task], enter="Ask first."))
    assert (
        "mhe eval --model MODEL --task toy-vqa --split test --profile strict --limit 60 "
        "--set 'generation.stop=[\"a b\"]' --seeds 2\n" in page
    )
    assert "Ask first." in page
    assert "mhe board check toy" in page


def test_hostile_texts_break_neither_table_nor_page(bench):
    edit = {"model.name": HOSTILE, "warnings": [HOSTILE], "backend.version": HOSTILE, "efficiency.device": HOSTILE,
            "code.commit": "a`|b<i>"}  # fmt: skip
    board = bench.new(title=HOSTILE, summary=HOSTILE)
    board = bench.add(board, bench.make(edit=edit), entrant="row", summary=HOSTILE)
    rendered = render_board(board, read_entries(board), bench.shelf)
    page = rendered["README.md"]
    rows = table_rows(page)
    assert len({len(row) for row in rows}) == 1
    assert len(rows) == 3
    assert "<script>" not in page
    assert not {"\x00", "\u202e", "\u2028"} & set(page)
    (title,) = [line for line in page.splitlines() if line.startswith("# ")]
    assert title.startswith("# x \\| y \\# head &lt;script")
    ET.fromstring(rendered["pareto-toy-vqa.svg"])


def test_other_scripts_stay_readable(bench):
    board = bench.new(title="放射線 – Röntgenbilder", summary="أشعة")
    page = page_of(bench, board)
    assert "# 放射線 – Röntgenbilder" in page
    assert "أشعة" in page


def test_the_drawing_is_well_formed_and_has_words(bench):
    board = bench.add(bench.new(), bench.make("alpha"), bench.make("beta", right=0.4))
    svg = render_board(board, read_entries(board), bench.shelf)["pareto-toy-vqa.svg"]
    root = ET.fromstring(svg)
    names = {child.tag.rpartition("}")[2] for child in root}
    assert {"title", "desc"} <= names
    assert "nan" not in svg
    assert len(root.findall(".//{*}circle")) == 6


# ------------------------------------------------------------ text


def test_pieces_of_text():
    assert escaped("a|b\n<c>") == "a\\|b &lt;c&gt;"
    assert code("a`|b") == "`a'¦b`"
    assert code("\n") == "–"
    assert plain_line("x" * 500).endswith("…")
    assert fixed(-0.0001) == "0.000"
    assert fixed(-1.5) == "-1.500"
    assert [short_number(v, "bytes") for v in (0, 999, 1500, 7_063_427_072)] == ["0 B", "999 B", "1.50 kB", "7.06 GB"]
    assert [short_number(v, "latency p50") for v in (0.0371, 2.5)] == ["37.1 ms", "2.50 s"]
    assert short_number(None, "bytes") == "–"
