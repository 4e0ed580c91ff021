"""`mhe board` as it is typed."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import click
import pytest

from mhe.boards.folders import locate_board, open_board
from mhe.boards.publishing import board_locked
from mhe.cli.board import board as board_command
from mhe.errors import BusyError, DocumentError, UnknownNameError, UserError


@pytest.fixture
def call(bench, fake_catalog, capsys):
    """Run `mhe board …`; returns exit code, parsed stdout (or text) and stderr."""

    def run(*arguments, as_json: bool = True):
        words = [*map(str, arguments), "--leaderboards-dir", str(bench.root), *(["--json"] if as_json else [])]
        try:
            code = board_command.main(words, standalone_mode=False, obj=fake_catalog())
        except click.exceptions.Exit as done:
            code = done.exit_code
        out, err = capsys.readouterr()
        return code or 0, json.loads(out) if as_json else out, err

    return run


def test_from_a_run_to_a_checked_board(bench, call):
    first, second = bench.make("alpha"), bench.make("beta", right=0.4)
    code, made, _ = call("new", "mine", "--from-run", first, "--seeds", 2, "--title", "Größe | 板")
    assert (code, made["board"]) == (0, "mine@v1")
    assert made["spec"]["tasks"][0]["data_digest"] == "e" * 64
    code, added, err = call("add", "mine", first, second, "--date", "2025-05-06", "--summary", "tiny")
    assert code == 0
    assert [c["entrant"] for c in added["changes"]] == ["alpha", "beta"]
    assert "added alpha on toy-vqa@1, seed 0" in err
    code, built, _ = call("build", "mine")
    page = Path(built["files"][0]).read_text()
    assert "# Größe \\| 板" in page
    assert "2025-05-06: added alpha" in page
    code, checked, _ = call("check")
    assert (code, checked["ok"]) == (0, True)
    assert checked["boards"][0] == {"board": "mine@v1", "entries": 2, "problems": []}
    assert call("check", "mine@v1", as_json=False)[1].startswith("mine@v1: 2 entries, right\n")


def test_the_task_s_settings_that_differ_are_in_how_to_enter(bench, call):
    code, made, _ = call("new", "mine", "--from-run", bench.make(), "--metrics", "toy.closed")
    task = made["spec"]["tasks"][0]
    assert code == 0
    assert (task["metrics"], task["primary"]) == (["toy.closed"], "toy.closed")
    assert task["settings"][:4] == ["--metrics", "toy-accuracy", "--set", "generation.max_new_tokens=16"]


def test_check_leaves_with_2_and_says_what_is_wrong(bench, call):
    run = bench.make("alpha")
    call("new", "mine", "--from-run", run)
    call("add", "mine", run)
    code, checked, _ = call("check", "mine")
    assert (code, checked["ok"]) == (2, False)
    assert "README.md: not there: mhe board build mine@v1" in checked["boards"][0]["problems"]


def test_a_new_version_freezes_the_old_one(bench, call):
    run = bench.make("alpha")
    call("new", "mine", "--from-run", run, "--title", "One", "--costs", "bytes, latency p50", "--relative-to", "alpha")
    call("add", "mine", run)
    with pytest.raises(UserError, match="--new-version"):
        call("new", "mine", "--from-run", run)
    code, made, _ = call("new", "mine", "--from-run", run, "--new-version", "--seeds", 3)
    assert (code, made["board"], made["spec"]["title"], made["spec"]["seeds"]) == (0, "mine@v2", "One", [0, 1, 2])
    assert made["spec"]["costs"] == ["bytes", "latency p50"]
    assert made["spec"]["relative_to"] == {"alpha": []}
    with pytest.raises(UserError, match="frozen"):
        call("add", "mine@v1", bench.make("beta"))
    assert call("add", "mine", run)[1]["board"] == "mine@v2"


def test_mistakes_say_what_to_type(bench, call, tmp_path):
    with pytest.raises(UserError, match="--task TASK or --from-run"):
        call("new", "mine")
    with pytest.raises(UserError, match=r"holds no run\.json"):
        call("new", "mine", "--from-run", tmp_path)
    with pytest.raises(DocumentError, match="name"):
        call("new", "Not A Name", "--from-run", bench.make())
    with pytest.raises(DocumentError, match="'price'"):
        call("new", "mine", "--from-run", bench.make(), "--costs", "bytes,price")
    with pytest.raises(UserError, match="not scored under profile 'loose'"):
        call("new", "mine", "--from-run", bench.make(), "--profile", "loose")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'toy\.closed'"):
        call("new", "mine", "--from-run", bench.make(), "--metrics", "toy.close")
    bench.new()
    with pytest.raises(UnknownNameError, match="Did you mean 'toy'"):
        call("build", "toi")
    with pytest.raises(UnknownNameError, match="toy@v1"):
        call("build", "toy@v7")
    with pytest.raises(UserError, match="YYYY-MM-DD"):
        call("add", "toy", bench.make(), "--date", "yesterday")
    with pytest.raises(UserError, match="--new-version: there is no board"):
        call("new", "fresh", "--from-run", bench.make(), "--new-version")


def test_a_board_is_found_by_name_version_and_folder(bench):
    one = bench.new()
    two = bench.new(version=2)
    assert locate_board("toy", bench.root).resolve() == two.path
    assert locate_board("toy@v1", bench.root).resolve() == one.path
    assert locate_board(str(one.path), Path("elsewhere")) == one.path
    assert locate_board(str(one.path / "board.yaml"), Path("elsewhere")) == one.path
    assert locate_board(str(one.path.parent), Path("elsewhere")) == two.path
    for hostile in ["../toy", "", "toy@", "toy@v0", "/etc"]:
        if hostile != "toy@":
            with pytest.raises(UnknownNameError):
                locate_board(hostile, bench.root)


def _hold(path, held, done) -> None:
    with board_locked(path):
        held.set()
        done.wait(20)


def test_two_processes_do_not_change_one_board_at_once(bench):
    board = bench.new()
    context = multiprocessing.get_context("fork")
    held, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(board.path, held, done))
    other.start()
    try:
        assert held.wait(20)
        with pytest.raises(BusyError, match="changing board"):
            bench.add(board, bench.make())
    finally:
        done.set()
        other.join(20)
    bench.add(board, bench.make())
    assert open_board(board.path).spec.entrants
