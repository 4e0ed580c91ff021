"""`make boards`: which runs it makes, that what it publishes is what stands there, and the whole chain on slices."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from mhe.boards.folders import all_boards, open_board
from mhe.pipeline_runs import find_pipeline

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "leaderboards" / "make.sh"
PUBLISHED = ROOT / "leaderboards"
DATA = os.environ.get("MHE_TEST_DATA")
STUB = """#!/bin/sh
printf '%s\\n' "$*" >>"$LOG"
case "$1" in eval) echo "Run: runs/some" ;; esac
"""


def make(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    chosen = {"BUILD": str(folder / "build"), "LEADERBOARDS": str(folder / "boards"), **environment}
    return subprocess.run(
        ["sh", str(SCRIPT)], cwd=ROOT, env={**os.environ, **chosen}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def calls(tmp_path):
    """Run make.sh with an `mhe` that notes how it was called: the lines of its calls."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "mhe").write_text(STUB)
    (binaries / "mhe").chmod(0o755)

    def run(*, code: int = 0, **environment: str) -> list[str]:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        done = make(tmp_path, PATH=path, LOG=str(log), **{"MHE_TEST_DATA": "/data", **environment})
        assert done.returncode == code, done.stderr
        return log.read_text().splitlines() if log.exists() else []

    return run


def entered(lines: list[str]) -> dict[tuple[str, str], tuple[str, str]]:
    """(board, entrant) to (kind, summary): each add follows the eval of its model, which may have a seed."""
    found = {}
    for before, line in pairwise(lines):
        if line.startswith("board add"):
            model = before.split()[before.split().index("--model") + 1]
            told = re.search(r"--kind (\S+) --summary (.*)$", line)
            found[(line.split()[2], model.partition("@")[0])] = (told[1], told[2])
    return found


def test_every_row_of_mile_s_tables_is_trained_with_its_preset_and_one_budget(calls):
    from mhe_tune.mile_shares import ROWS

    lines = [line for line in calls(BOARD="peft-medvqa-tiny") if line.startswith("tune --model")]
    trained = {}
    for line in lines:
        words = shlex.split(line)
        settings = dict(word.split("=", 1) for flag, word in pairwise(words) if flag == "--set")
        trained[settings.pop("preset", None)] = (words[words.index("--recipe") + 1], settings)
    assert trained.keys() - {None} == {row.preset for row in ROWS}
    assert all(trained[row.preset][0] == row.recipe for row in ROWS)
    assert len(ROWS) == 22
    budgets = [{k: v for k, v in settings.items() if k != "learning_rate"} for _, settings in trained.values()]
    assert all(budget == budgets[0] for budget in budgets)
    assert all(float(settings["learning_rate"]) > 0 for _, settings in trained.values())


def test_both_rows_of_table_5_are_pipelines_with_the_same_budget(calls):
    lines = [line for line in calls(BOARD="peft-medvqa-tiny") if re.match(r"tune mile-", line)]
    assert [line.split()[1] for line in lines] == ["mile-instruction", "mile-two-stage"]
    for line in lines:
        assert "base=tiny-blip-vqa" in line
        rates = re.findall(r"(\w+)\.learning_rate=(\S+)", line)
        assert len({rate for _, rate in rates}) == 1
    assert re.findall(r"(\w+)\.epochs", lines[1]) == ["original", "instruction"]


def test_whoever_stands_on_a_board_is_made_by_the_script(calls):
    made = entered(calls())
    checked = 0
    for path in all_boards(PUBLISHED):
        for entrant in open_board(path).spec.entrants:
            name = path.parent.name
            assert (name, entrant.name) in made, f"{name}: {entrant.name} is made by no line of make.sh"
            assert made[(name, entrant.name)][0] == entrant.kind
            checked += 1
    assert checked >= 30


def test_every_recipe_is_tried_on_every_base_that_has_it(calls):
    lines = calls(BOARD="phantom-tuning", BASES="tiny-qwen2-vl tiny-visiongpt2")
    pairs = {tuple(re.search(r"--model (\S+) --recipe (\S+)", line).groups()) for line in lines if "--recipe" in line}
    recipes = {"full", "lora", "qlora", "dora", "ia3", "prefix", "ptuning-v2", "bitfit", "staged", "instruction"}
    assert {recipe for base, recipe in pairs if base == "tiny-qwen2-vl"} == recipes
    assert {recipe for base, recipe in pairs if base == "tiny-visiongpt2"} == recipes - {"instruction"}
    captions = [line for line in lines if "visiongpt2" in line and "--task" in line]
    assert captions
    assert all("--task phantom-caption-target" in line for line in captions)


NETO = [f"tiny-{family}" for family in ("qwen-qlora", "llama-qlora", "llava-kd", "llava-kd-qlora")]
PRUNED = ["tiny-qwen-qlora-pruned", "tiny-llama-qlora-pruned", "tiny-llava-kd-pruned"]
BESIDE = {"tiny-qwen2-vl", "tiny-mllama", "tiny-llava", "majority"}


def test_the_rows_of_neto_s_table_are_trained_three_times_with_one_budget(calls, catalog):
    """Seven pipelines, which with two of the bases are nine rows; every step that reads data has the budget."""
    lines = calls(BOARD="efficient-vqa-rad-tiny")
    made = entered(lines)
    assert {name for _, name in made} == {*NETO, *PRUNED, *BESIDE}
    trained = [shlex.split(line) for line in lines if line.startswith("tune")]
    assert sorted((words[1], words[words.index("--seed") + 1]) for words in trained) == sorted(
        (name, seed) for name in (*NETO, *PRUNED) for seed in "012"
    )
    for words in trained:
        budgets: dict[str, dict[str, str]] = {}
        for flag, word in pairwise(words):
            if flag == "--set":
                step, setting = word.split(".", 1)
                budgets.setdefault(step, {}).update([setting.split("=")])
        steps = [step.name for step in find_pipeline(words[1], catalog).steps if step.data is None]
        assert list(budgets) == steps, words[1]
        assert all(budget == {"batch_size": "16", "epochs": "3", "evaluate_every": "54", "patience": "3",
                              "keep": "best"} for budget in budgets.values())  # fmt: skip
    evaluated = {line.split()[2] for line in lines if line.startswith("eval")}
    assert evaluated == {*BESIDE, *(f"{name}@{seed}" for name in (*NETO, *PRUNED) for seed in "012")}
    board = open_board(PUBLISHED / "efficient-vqa-rad-tiny/v1").spec
    assert board.seeds == (0, 1, 2)
    beside = {other: base for base, others in board.relative_to.items() for other in others}
    assert beside == {name: find_pipeline(name, catalog).base for name in (*NETO, *PRUNED)}


def test_seeds_that_do_not_stand_there_are_made_alone(calls, tmp_path):
    for seed in "02":
        (tmp_path / f"boards/efficient-vqa-rad-tiny/v1/entries/tiny-qwen-qlora/vqa-rad/{seed}").mkdir(parents=True)
    lines = calls(BOARD="efficient-vqa-rad-tiny", ONLY="tiny-qwen-qlora", MISSING="yes")
    assert [line.split()[:3] for line in lines][:2] == [
        ["tune", "tiny-qwen-qlora", "--task"], ["eval", "--model", "tiny-qwen-qlora@1"]]  # fmt: skip
    assert [line.split()[1] for line in lines[2:]] == ["add", "build"]
    lines = calls(BOARD="efficient-vqa-rad-tiny", ONLY="tiny-qwen-qlora")
    assert len([line for line in lines if line.startswith("tune")]) == 3
    assert len([line for line in lines if line.startswith("board add")]) == 1


def test_one_board_or_some_entrants_can_be_made_alone(calls):
    lines = calls(BOARD="phantoms", ONLY="tiny-* nothing")
    assert {line.split()[2] for line in lines if line.startswith("eval")} == {"tiny-llava"}
    assert [line.split()[:3] for line in lines if line.startswith("board build")] == [["board", "build", "phantoms"]]
    assert not calls(BOARD="phantom", code=2)
    assert not calls(BOARD="vqa-rad-tiny", MHE_TEST_DATA="", code=2)


def test_an_entry_that_stands_there_is_not_entered_again(calls, tmp_path):
    (tmp_path / "boards/phantoms/v1/entries/majority/phantom-vqa").mkdir(parents=True)
    added = [line for line in calls(BOARD="phantoms") if line.startswith("board add")]
    assert len(added) == 3
    evaluated = [line for line in calls(BOARD="phantoms", MISSING="yes") if line.startswith("eval")]
    assert len(evaluated) == 3
    assert "eval --model majority --task phantom-vqa" not in evaluated


def sliced_board(name: str, folder: Path) -> Path:
    """The board without its entries, over the first samples alone."""
    data = yaml.safe_load((PUBLISHED / name / "v1/board.yaml").read_text(encoding="utf-8"))
    for task in data["tasks"]:
        task.update(limit=6, data_digest=None)
    data.update(entrants=[], changes=[])
    place = folder / name / "v1" / "board.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return place


with_data = pytest.mark.skipif(DATA is None, reason="MHE_TEST_DATA is not set")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        pytest.param("peft-medvqa-tiny", "mile-lora-aaa-r4", marks=with_data),
        ("phantom-tuning", "tiny-llava-base-lora"),
    ],
)
def test_the_chain_on_slices(tmp_path, name, row):
    """A row from its training to a checked page; a second time nothing is done, and bytes are equal."""
    pytest.importorskip("peft")
    boards = tmp_path / "boards"
    board = sliced_board(name, boards).parent
    slices = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MHE_CACHE_DIR": str(tmp_path / "cache"),
        "BOARD": name,
        "BASES": "tiny-llava-base",
        "TUNE_OPTIONS": "--limit 6",
        "EVAL_OPTIONS": "--limit 6",
        "ONLY": row,
    }
    done = make(tmp_path, **slices)
    assert done.returncode == 0, done.stderr
    checked = subprocess.run(
        [sys.executable, "-m", "mhe.cli.main", "board", "check", "--leaderboards-dir", str(boards)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
    checkpoint = json.loads((tmp_path / "build/checkpoints" / row / "0/checkpoint.json").read_text())
    share = f"{100 * checkpoint['trainable_parameters'] / checkpoint['parameters']:.3f} %"
    page = (board / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"^\| \d \| \*\*{row}\*\*.*\| {re.escape(share)} \|", page, re.MULTILINE)
    [scores] = board.glob(f"entries/{row}/*/0/scores.jsonl.gz")
    assert len(gzip.decompress(scores.read_bytes()).splitlines()) > 6
    kept = [file for file in tmp_path.rglob("*") if file.is_file() and "cache" not in file.parts]
    before = {file: file.read_bytes() for file in kept if file.name != "lock"}
    again = make(tmp_path, **slices)
    assert again.returncode == 0, again.stderr
    changed = {file.name for file, content in before.items() if file.read_bytes() != content}
    assert changed <= {"last-run.txt"}, changed


@with_data
def test_one_seed_of_a_pipeline_on_a_slice(tmp_path):
    """From its training to a page that shows it with its seed, and waits for the base that it is to stand beside."""
    pytest.importorskip("bitsandbytes")
    boards = tmp_path / "boards"
    board = sliced_board("efficient-vqa-rad-tiny", boards).parent
    done = make(
        tmp_path,
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        MHE_CACHE_DIR=str(tmp_path / "cache"),
        BOARD="efficient-vqa-rad-tiny",
        EFFICIENT_SEEDS="1",
        TUNE_OPTIONS="--limit 6",
        EVAL_OPTIONS="--limit 6",
        ONLY="tiny-llava-kd",
    )
    assert done.returncode == 0, done.stderr
    page = (board / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^\| \d \| \*\*tiny-llava-kd\*\*: .* \| 1 of 3 \|", page, re.MULTILINE)
    assert "### Relative to tiny-llava\n\n`tiny-llava` has no entry here yet." in page
    record = json.loads((board / "entries/tiny-llava-kd/vqa-rad/1/run.json").read_text())
    assert (record["model"]["name"], record["model"]["seed"]) == ("tiny-llava-kd", 1)
