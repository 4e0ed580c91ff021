"""Tampering with anything that was published is found, and said where."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess

import pytest

from mhe import UserError
from mhe.boards.checking import build_board, check_board, check_root
from mhe.boards.entries import compressed, parse_scores, read_content, scores_content
from mhe.boards.verification import MetricShelf
from mhe.errors import DocumentError


@pytest.fixture
def built(bench):
    """A built board with two entrants, and its folder."""
    board = bench.add(bench.new(), bench.make("alpha"), bench.make("alpha", seed=1), bench.make("beta", right=0.4))
    build_board(board.path, bench.shelf)
    return bench, board


def problems(bench) -> list[str]:
    return [problem for check in check_root(bench.root, bench.shelf) for problem in check.problems]


def edit_scores(path, change) -> None:
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]
    change(lines)
    path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


def test_a_built_board_is_right(built):
    bench, _ = built
    assert problems(bench) == []
    assert sum(check.entries for check in check_root(bench.root, bench.shelf)) == 3


def test_an_edited_value_is_found_twice(built):
    bench, board = built
    path = board.entry_path("beta", "toy-vqa", 0) / "run.json"
    record = json.loads(path.read_text())
    record["metrics"][0]["values"][0]["value"] += 1e-6
    path.write_text(json.dumps(record, indent=2) + "\n")
    found = "\n".join(problems(bench))
    assert "entries/beta/toy-vqa/0: was changed after it was entered" in found
    assert "toy.overall: the value is" in found


def test_an_edited_statistic_is_found(built):
    bench, board = built

    def flip(lines):
        lines[-1][0] = 1 - lines[-1][0]

    edit_scores(board.entry_path("alpha", "toy-vqa", 1) / "scores.jsonl.gz", flip)
    found = "\n".join(problems(bench))
    assert "entries/alpha/toy-vqa/1: was changed" in found
    assert "the statistics give" in found


def test_compressing_again_changes_nothing(built):
    bench, board = built
    path = board.entry_path("alpha", "toy-vqa", 0) / "scores.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1))
    assert problems(bench) == []


@pytest.mark.parametrize("name", ["README.md", "pareto-toy-vqa.svg"])
def test_an_edited_page_is_found_with_its_line(built, name):
    bench, board = built
    path = board.path / name
    path.write_text(path.read_text().replace("alpha", "omega", 1))
    (found,) = problems(bench)
    assert found.startswith(f"{name}: is not what the entries make (line ")
    assert "mhe board build toy@v1" in found
    path.unlink()
    assert problems(bench) == [f"{name}: not there: mhe board build toy@v1"]


def test_an_edited_index_and_a_left_over_drawing_are_found(built):
    bench, board = built
    (board.path / "pareto-old.svg").write_text("<svg/>")
    assert "pareto-old.svg: not part of the page" in problems(bench)[0]
    build_board(board.path, bench.shelf)
    assert not (board.path / "pareto-old.svg").exists()
    (bench.root / "README.md").write_text("mine")
    assert "README.md: is not what the entries make" in problems(bench)[0]


def test_a_vanished_entry_is_found_without_git(built):
    bench, board = built
    shutil.rmtree(board.entry_path("beta", "toy-vqa", 0))
    assert problems(bench) == ["entries/beta/toy-vqa/0: published on 2025-02-03, and vanished"]
    with pytest.raises(DocumentError, match="vanished"):
        build_board(board.path, bench.shelf)


def test_entries_that_nobody_added_are_found(built):
    bench, board = built
    shutil.copytree(board.path / "entries" / "beta", board.path / "entries" / "copy")
    (board.path / "entries" / "note.txt").write_text("hello")
    (board.entry_path("beta", "toy-vqa", 0) / "samples.jsonl").write_text('{"text": "Yes"}')
    found = "\n".join(problems(bench))
    assert "entries/copy: not in board.yaml" in found
    assert "entries/note.txt: not in board.yaml" in found
    assert "samples.jsonl: not part of an entry" in found


def test_a_pin_changed_later_no_longer_fits_the_entries(built):
    bench, board = built
    path = board.path / "board.yaml"
    path.write_text(path.read_text().replace("max_new_tokens: 16", "max_new_tokens: 32"))
    assert "generation.max_new_tokens: the board pins 32, the run has 16" in "\n".join(problems(bench))


def test_a_malformed_board_yaml_has_lines(built):
    bench, board = built
    path = board.path / "board.yaml"
    text = path.read_text().replace("title: Toy board", "titel: Toy board")
    path.write_text(text.replace("\nversion: 1", "\nversion: 0"))
    check = check_board(board.path, bench.shelf)
    assert len(check.problems) >= 2
    assert all(problem.startswith("line ") for problem in check.problems)


def test_a_folder_that_does_not_bear_the_boards_name(built):
    bench, board = built
    board.path.rename(board.path.with_name("v2"))
    assert "version is 1, but the folder is 'v2'" in problems(bench)[0]


def test_an_absent_metric_is_a_problem_not_a_pass(built, fake_catalog):
    bench, _ = built
    check = check_root(bench.root, MetricShelf(fake_catalog(empty=True)))[0]
    assert len(check.problems) == 3
    assert all("there is no metric named 'toy-accuracy'" in problem for problem in check.problems)


def test_only_named_boards_are_checked(built):
    bench, board = built
    other = bench.new(name="other", title="Other")
    assert any(check.problems for check in check_root(bench.root, bench.shelf))
    assert not any(c.problems for c in check_root(bench.root, bench.shelf, [board.path])[:1])
    assert check_board(other.path, bench.shelf).problems == ("README.md: not there: mhe board build other@v1",)


# ------------------------------------------------------------ git


def git(root, *arguments: str) -> None:
    settings = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *settings, *arguments], check=True, capture_output=True)


@pytest.fixture
def committed(built):
    bench, board = built
    git(bench.root.parent, "init", "-q")
    git(bench.root.parent, "add", "leaderboards")
    git(bench.root.parent, "commit", "-q", "-m", "boards")
    assert problems(bench) == []
    return bench, board


def test_an_entry_taken_out_of_board_yaml_as_well_is_found_by_git(committed):
    bench, board = committed
    path = board.path / "board.yaml"
    spec = json.loads(board.spec.model_dump_json())
    spec["changes"] = [change for change in spec["changes"] if change["entrant"] != "beta"]
    spec["entrants"] = [entrant for entrant in spec["entrants"] if entrant["name"] != "beta"]
    path.write_text(json.dumps(spec))
    shutil.rmtree(board.path / "entries" / "beta")
    build_board(board.path, bench.shelf)
    found = "\n".join(problems(bench))
    assert "toy/v1/entries/beta/toy-vqa/0: published in the last commit, and vanished" in found
    assert "lines of `changes` in the last commit were edited or removed" in found
    assert "entrant beta was removed" in found


def test_a_whole_board_that_vanished_is_found_by_git(committed):
    bench, _ = committed
    shutil.rmtree(bench.root / "toy")
    found = "\n".join(problems(bench))
    assert "toy/v1: published in the last commit, and vanished" in found


def test_a_committed_board_that_is_no_yaml_is_told(committed):
    bench, board = committed
    path = board.path / "board.yaml"
    sound = path.read_text()
    path.write_text("{")
    git(bench.root.parent, "commit", "-q", "-a", "-m", "broken")
    path.write_text(sound)
    with pytest.raises(UserError, match=r"toy/v1/board\.yaml in the last commit is no YAML"):
        problems(bench)


def test_a_rule_changed_in_place_is_found_by_git(committed):
    bench, board = committed
    path = board.path / "board.yaml"
    path.write_text(path.read_text().replace("seeds:\n- 0\n- 1\n", "seeds:\n- 0\n- 1\n- 2\n"))
    build_board(board.path, bench.shelf)
    assert "seeds were changed: a changed rule is a new version" in "\n".join(problems(bench))


def test_a_new_version_leaves_the_old_one_right(committed):
    bench, _ = committed
    newer = bench.new(version=2, title="Toy board, second")
    build_board(newer.path, bench.shelf)
    assert problems(bench) == []
    assert "[v1](../v1/README.md)" in (newer.path / "README.md").read_text()
    assert "Toy board, second" in (bench.root / "README.md").read_text()
    assert "[v1](toy/v1/README.md)" in (bench.root / "README.md").read_text()


def test_a_replaced_entry_with_its_line_is_right(committed):
    bench, board = committed
    board = bench.add(board, bench.make("beta", right=0.6), replace=True)
    build_board(board.path, bench.shelf)
    assert problems(bench) == []
    assert "replaced beta on toy-vqa@1, seed 0" in (board.path / "README.md").read_text()


# ------------------------------------------------------------ scores.jsonl.gz


def test_statistics_are_numbers_ids_and_short_names_only(built):
    _, board = built
    path = board.entry_path("alpha", "toy-vqa", 0) / "scores.jsonl.gz"
    content = read_content(path)
    scores = parse_scores(content, "test")
    assert scores_content(scores) == content
    assert compressed(content) == path.read_bytes()
    assert path.read_bytes()[3:9] == b"\0" * 5 + b"\x02", "no name, no time"
    assert len(scores.samples.ids) == 60
    assert scores.samples.groups["modality"][:2] == ("MRI", "CT")
    assert scores.metrics[0].array().shape == (60, 4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: lines[0].update(version=2), "expected mhe-scores 1"),
        (lambda lines: lines[0].update(samples=10**9), "expected a line with"),
        (lambda lines: lines[0].update(samples=True), "number of samples"),
        (lambda lines: lines[3].update(id="What is\nshown?"), "line 4: id and unit must be names"),
        (lambda lines: lines[3].update(text="leak"), "line 4: expected a line with"),
        (lambda lines: lines[3].update(id=lines[2]["id"]), "more than once"),
        (lambda lines: lines[3].update(groups=[7]), "no label number 7"),
        (lambda lines: lines[-1].append(1), "expected 4 numbers"),
        (lambda lines: lines[-1].__setitem__(0, float("nan")), "not a finite number"),
        (lambda lines: lines[-1].__setitem__(0, "text"), "not a finite number"),
        (lambda lines: lines.pop(), "expected 4 numbers"),
        (lambda lines: lines.append([1]), "expected a line with columns"),
    ],
)
def test_damaged_statistics_are_refused_with_the_line(built, change, reason):
    _, board = built
    path = board.entry_path("alpha", "toy-vqa", 0) / "scores.jsonl.gz"
    edit_scores(path, change)
    with pytest.raises(DocumentError, match=reason):
        parse_scores(read_content(path), str(path))


def test_what_is_no_gzip_is_said(built):
    bench, board = built
    path = board.entry_path("alpha", "toy-vqa", 0) / "scores.jsonl.gz"
    for damage in [b"", b"plain", path.read_bytes()[:-20]]:
        path.write_bytes(damage)
        assert "entries/alpha/toy-vqa/0: scores.jsonl.gz: " in "\n".join(problems(bench))
    (path.parent / "run.json").write_text("{")
    assert "entries/alpha/toy-vqa/0: run.json: cannot be read as JSON" in "\n".join(problems(bench))
