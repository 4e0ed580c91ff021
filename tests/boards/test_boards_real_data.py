"""A real baseline on real questions, from `mhe eval` to a checked board."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click
import pytest

from mhe.boards.folders import open_board
from mhe.cli.main import cli

DATA = os.environ.get("MHE_TEST_DATA")


@pytest.mark.skipif(not DATA, reason="MHE_TEST_DATA is not set: the real VQA-RAD is not at hand")
def test_majority_on_vqa_rad_stands_on_a_board(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = ["--data-dir", str(Path(str(DATA)).resolve() / "vqa_rad")]

    def call(*words: str):
        try:
            code = cli.main([*words, "--json"], standalone_mode=False) or 0
        except click.exceptions.Exit as done:
            code = done.exit_code
        return code, json.loads(capsys.readouterr().out)

    assert call("eval", "--model", "majority", "--task", "vqa-rad", *data, "--runs-dir", "runs")[0] == 0
    assert (
        call("board", "new", "rad", "--task", "vqa-rad", "--metrics", "accuracy,accuracy.closed,token-f1", *data)[0]
        == 0
    )
    runs = [str(path.parent) for path in Path("runs").glob("vqa-rad/majority/*/run.json")]
    assert call("board", "add", "rad", *runs, "--kind", "baseline")[0] == 0
    assert call("board", "build", "rad")[0] == 0
    code, checked = call("board", "check")
    assert (code, checked["ok"]) == (0, True), checked
    board = open_board(Path("leaderboards/rad/v1"))
    page = (board.path / "README.md").read_text(encoding="utf-8")
    assert "share images" in page, "the official splits of VQA-RAD share images, and the board says so"
    published = b"".join(path.read_bytes() for path in board.path.rglob("*") if path.is_file())
    assert str(tmp_path).encode() not in published
    assert str(DATA).encode() not in published
