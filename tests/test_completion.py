"""Shell completion as a shell asks for it: names of tasks and models, without anything heavy."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from mhe import open_catalog

CODE = "import sys; from mhe.cli.main import cli; cli.main(prog_name='mhe')"


def complete(words, cwd, shell="bash", **environment):
    """What `mhe <words><TAB>` offers."""
    line = f"mhe {words}"
    parts = line.split()
    number = len(parts) if line.endswith(" ") else len(parts) - 1
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        cwd=cwd,
        env={
            **os.environ,
            "_MHE_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": line,
            "COMP_CWORD": str(number),
            **environment,
        },
    )
    assert done.stderr == ""
    return {value.partition(",")[2] or value for value in done.stdout.split()}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("eval --task phantom-v", {"phantom-vqa", "phantom-vqa-source", "phantom-vqa-target"}),
        ("eval --task slake-", {"slake-zh"}),
        ("eval --model majo", {"majority"}),
        ("eval --backend scr", {"scripted"}),
        ("eval --profile str", {"strict"}),
        ("check-backends majo", {"majority"}),
        ("check-backends majority --backends hf:1,scr", {"hf:1,scripted"}),
        ("tune --recipe fu", {"full"}),
        ("show tas", {"tasks"}),
        ("show metrics exa", {"exact-match"}),
        ("show plugins me", {"metrics"}),
        ("data info vqa", {"vqa-rad"}),
        ("eval --task nothing-like-it", set()),
    ],
)
def test_names_are_offered(words, wanted, tmp_path):
    assert complete(words, tmp_path) == wanted


def test_every_command_and_task_is_offered(tmp_path):
    assert {"eval", "score", "tune", "board", "data", "show", "doctor"} <= complete("", tmp_path)
    assert complete("eval --task ", tmp_path) == set(open_catalog().task_folders)


def test_checkpoints_are_offered_as_models(tmp_path):
    folder = tmp_path / "checkpoints" / "my-model" / "0"
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text("{}")
    assert complete("eval --model my", tmp_path) == {"my-model@0"}


def test_help_does_not_even_import_pydantic(tmp_path):
    for name in ("torch", "transformers", "numpy", "PIL", "rich", "pydantic", "yaml"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "mhe.cli.main", "--help"], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "doctor" in done.stdout


def test_completion_imports_nothing_heavy_and_is_quick(tmp_path):
    # A heavy package that were imported would end the process.
    for name in ("torch", "transformers", "numpy", "PIL", "rich"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    start = time.perf_counter()
    assert complete("eval --task roco", tmp_path, PYTHONPATH=str(tmp_path)) == {"roco", "roco-327"}
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_each_shell(shell, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "_MHE_COMPLETE": f"{shell}_source"},
    )
    assert "_MHE_COMPLETE" in done.stdout
    assert "mhe" in done.stdout


def test_a_broken_plugin_costs_only_its_own_names(tmp_path):
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mhe]\nstranger = stranger_plugin\n")
    (tmp_path / "stranger_plugin.py").write_text("print('on stdout')\nraise RuntimeError('boom')\n")
    found = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(tmp_path),
            "_MHE_COMPLETE": "bash_complete",
            "COMP_WORDS": "mhe eval --task vqa",
            "COMP_CWORD": "3",
        },
    )
    assert found.stdout.split() == ["plain,vqa-rad"]
