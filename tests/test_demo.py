"""`make demo`: its calls are real ones, everything that it makes is evaluated and published, and its extra suffices."""

from __future__ import annotations

import os
import subprocess
import tomllib
from itertools import pairwise
from pathlib import Path

import click
import pytest

from mhe.cli.main import cli

ROOT = Path(__file__).parents[1]
STUB = """#!/bin/sh
printf '%s\\037' "$@" >>"$LOG"
printf '\\036' >>"$LOG"
[ "$1 $2" = "board build" ] || exit 0
mkdir -p "$OUT/leaderboards/$3/v1"
echo "# A page" >"$OUT/leaderboards/$3/v1/README.md"
"""


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """The words of each call of `mhe` in the demo."""
    root = tmp_path_factory.mktemp("demo")
    (root / "mhe").write_text(STUB)
    (root / "mhe").chmod(0o755)
    found = {"LOG": str(root / "log"), "OUT": str(root / "out"), "PATH": f"{root}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["sh", str(ROOT / "tests/demo.sh"), found["OUT"]],
        env={**os.environ, **found}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "# A page" in done.stdout
    return [call.split("\037")[:-1] for call in (root / "log").read_text().split("\036") if call]


def values(words, flag):
    return [value for name, value in pairwise(words) if name == flag]


def test_every_call_parses(calls):
    assert len(calls) > 15
    for words in calls:
        command: click.Command = cli
        rest = words
        context = click.Context(cli, info_name="mhe")
        while isinstance(command, click.Group):
            command, rest = command.get_command(context, rest[0]), rest[1:]
        command.make_context("mhe", [*rest], parent=context, resilient_parsing=False)


def test_whatever_is_trained_is_evaluated_and_published(calls, catalog):
    trained = [words for words in calls if words[0] == "tune"]
    named = {*(name for words in trained for name in values(words, "--name"))}
    pipelines = [words[1] for words in trained if words[1] in catalog.pipelines]
    assert pipelines == ["tiny-llava-kd-qlora", "tiny-llava-kd-pruned"]
    evaluated = {name for words in calls if words[0] == "eval" for name in values(words, "--model")}
    bases = {"tiny-llava-base", "majority"}
    assert evaluated == named | bases | set(pipelines) | {"tiny-llava-kd-qlora.kd"}
    published = [name for words in calls if words[:2] == ["board", "add"] for name in values(words, "--entrant")]
    assert len(published) == len(evaluated)
    assert set(published) == evaluated - {"tiny-llava-kd-qlora.kd"} | {"tiny-llava-kd"}


def test_both_pipelines_have_equal_settings_so_that_steps_are_shared(calls):
    short, long = (words[2:] for words in calls if words[0] == "tune" and words[1] != "--model")
    assert short == long


def test_the_board_asks_for_what_was_evaluated(calls):
    [new] = [words for words in calls if words[:2] == ["board", "new"]]
    asked = [words for words in calls if words[0] == "eval"]
    assert all(values(words, "--limit") == values(new, "--limit") for words in asked)
    assert all(values(words, "--task") == values(new, "--task") for words in asked)
    assert values(new, "--relative-to") == ["tiny-llava-base"]


def test_the_extra_has_what_the_demo_s_recipes_need(calls, catalog):
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    [demo] = extras["demo"]
    brought = set(demo.removeprefix("mhe[").removesuffix("]").split(","))
    assert {"hf", "tune", "quant", "metrics"} <= brought
