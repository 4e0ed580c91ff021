"""The command line as a whole: exit codes, mistyped names, plugins' commands, and a stdout that goes away."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mhe.cli import main as cli_main
from mhe.errors import StorageError

PLUGIN = """
import click
import mhe

@click.command("greet")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
def greet(name, as_json):
    "Greet somebody."
    if name == "nobody":
        raise mhe.UserError("nobody is there. Greet somebody else.")
    if name == "server":
        raise BrokenPipeError(32, "Broken pipe")
    if name == "ctrl-c":
        raise KeyboardInterrupt
    click.echo(f"hello {name}")

@click.command("explode")
def explode():
    raise ValueError("inside the command")

def broken():
    raise ImportError("no greetings today")

@mhe.hookimpl
def register_commands():
    return [
        mhe.Provider("greet", "Greet somebody.", lambda: greet),
        mhe.Provider("explode", "Explode.", lambda: explode),
        mhe.Provider("eval", "Not the one you know.", lambda: greet),
        mhe.Provider("broken", "Broken.", broken),
        mhe.Provider("nothing", "No command.", lambda: 42),
    ]
"""


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """A folder that makes a plugin with commands visible."""
    folder = tmp_path_factory.mktemp("stranger")
    info = folder / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mhe]\nstranger = stranger_plugin\n")
    (folder / "stranger_plugin.py").write_text(PLUGIN)
    return folder


@pytest.fixture
def mhe(stranger, tmp_path):
    """Run `mhe` with the stranger's plugin."""

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, "-m", "mhe.cli.main", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(stranger), "MHE_CACHE_DIR": str(tmp_path / "cache"), **environment},
            check=False,
        )

    return run


def test_help_lists_our_commands_and_the_plugins(mhe):
    done = mhe("--help")
    assert done.returncode == 0
    ours, theirs = done.stdout.split("Commands of plugins:")
    for name in cli_main.COMMANDS:
        assert f"  {name} " in ours
    assert "greet" in theirs
    assert "Greet somebody." in theirs
    assert "Not the one you know." not in done.stdout, "nobody takes the name of a command of ours"
    assert mhe("-h").stdout == done.stdout


@pytest.mark.parametrize("name", cli_main.COMMANDS)
def test_every_command_has_help(mhe, name):
    done = mhe(name, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: mhe {name}")


def test_version(mhe):
    import mhe as package

    assert mhe("--version").stdout == f"mhe {package.__version__}\n"


def test_the_command_of_a_plugin_runs(mhe):
    done = mhe("greet", "you")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello you\n", "")


def test_a_name_of_ours_stays_ours(mhe):
    assert "Greet" not in mhe("eval", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evla"], "there is no command named 'evla'. Did you mean 'eval'?"),
        (["grete", "you"], "Did you mean 'greet'?"),
        (["eval"], "Missing option '--model'"),
        (["eval", "--modle", "x"], "No such option '--modle'"),
        (["greet"], "Missing argument 'NAME'"),
        (["greet", "nobody"], "nobody is there"),
        (["broken"], "the command 'broken' of plugin stranger (stranger 1.0) cannot be loaded"),
        (["nothing"], "the command 'nothing' of plugin stranger is a int, and must be a click.Command"),
        (["eval", "--model", "scripted", "--task", "phantom-vqs"], "Did you mean 'phantom-vqa'?"),
    ],
    ids=" ".join,
)
def test_a_mistake_of_the_user_is_2_without_a_traceback(mhe, arguments, told):
    done = mhe(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    with_json = mhe(*arguments, "--json")
    assert with_json.returncode == 2
    document = json.loads(with_json.stdout)
    assert document["error"]["exit_code"] == 2
    assert told in document["error"]["message"] or "--json" in document["error"]["message"]


def test_our_own_fault_is_1_with_a_traceback(mhe):
    done = mhe("explode")
    assert done.returncode == 1
    assert "ValueError: inside the command" in done.stderr


def test_a_pipe_that_breaks_inside_is_a_fault_and_not_a_reader_gone(mhe):
    done = mhe("greet", "server")
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr
    assert "not our output" in done.stderr


def test_an_interruption_is_130_and_says_that_nothing_is_lost(mhe):
    done = mhe("greet", "ctrl-c")
    assert done.returncode == 130
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_ended_before_another_model_failed_is_shown(mhe, tmp_path):
    (tmp_path / "empty").mkdir()
    asked = ["eval", "--model", "scripted", "--model", str(tmp_path / "empty"), "--task", "phantom-vqa", "--limit", "5"]
    done = mhe(*asked)
    assert done.returncode == 2
    assert "scripted on phantom-vqa" in done.stdout
    assert "accuracy" in done.stdout
    assert "empty" in done.stderr
    with_json = mhe(*asked, "--json")
    assert json.loads(with_json.stdout)["error"]["exit_code"] == 2


@pytest.mark.parametrize("call", [["eval", "--model", "scripted", "--batch-size", "2"], ["bench-model", "scripted"]])
def test_one_setting_given_in_two_ways_is_a_mistake(mhe, call):
    done = mhe(*call, "--task", "phantom-vqa", "--set", "backend.batch_size=4")
    assert done.returncode == 2
    assert "give --batch-size alone" in done.stderr


def test_a_partial_run_is_3(mhe):
    done = mhe("eval", "--model", "scripted", "--task", "phantom-vqa", "--limit", "5", "--set", "backend.raise_after=2")
    assert done.returncode == 3, done.stderr


# ---------------------------------------------------------------- a stdout that goes away


def shell(command, stranger, tmp_path):
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(stranger),
            "MHE_CACHE_DIR": str(tmp_path / "cache"),
            "MHE": f"{sys.executable} -m mhe.cli.main",
        },
        check=False,
    )


@pytest.mark.parametrize("arguments", ["show tasks", "--help", "show tasks --json", "greet you"])
def test_a_reader_that_goes_away_is_no_fault(arguments, stranger, tmp_path):
    # The reader is gone before mhe writes anything.
    done = shell(f"{{ sleep 0.2; $MHE {arguments}; echo code $? >&2; }} | true", stranger, tmp_path)
    assert "code 0" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_mistake_is_told_though_nobody_reads_stdout(stranger, tmp_path):
    done = shell("{ sleep 0.2; $MHE evla --json; echo code $? >&2; } | true", stranger, tmp_path)
    assert "code 2" in done.stderr
    assert "Did you mean 'eval'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_stdout_is_no_fault(stranger, tmp_path):
    done = shell("$MHE --version >&-", stranger, tmp_path)
    assert done.returncode == 0, done.stderr
    done = shell("$MHE evla --json >&-", stranger, tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(
    ("arguments", "code"), [("show tasks", 3), ("--help", 3), ("greet you", 3), ("evla --json", 2)]
)
def test_a_full_disk_under_stdout_is_told(arguments, code, stranger, tmp_path):
    done = shell(f"$MHE {arguments} > /dev/full", stranger, tmp_path)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert ("disk is full" in done.stderr) == (code == 3)


# ---------------------------------------------------------------- completion beside plugins


def complete(line, stranger, tmp_path):
    words = len(line.split()) - (not line.endswith(" "))
    found = shell(f"_MHE_COMPLETE=bash_complete COMP_WORDS='{line}' COMP_CWORD={words} $MHE", stranger, tmp_path)
    assert found.stderr == ""
    return {value.partition(",")[2] for value in found.stdout.split()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_disk_that_takes_no_more_is_told(number):
    code = (
        "from mhe.cli import main as module\n"
        f"def refuse(**_): raise OSError({number}, 'no room')\n"
        "module.cli.main = refuse\n"
        "module.main([])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == StorageError.exit_code
    assert "disk is full" in done.stderr
    assert "Traceback" not in done.stderr


def test_completion_offers_the_commands_of_plugins_without_loading_them(stranger, tmp_path):
    ours = {*cli_main.COMMANDS, "scan-layers"}
    assert complete("mhe ", stranger, tmp_path) == {*ours, "greet", "explode", "broken", "nothing"}
    assert complete("mhe gr", stranger, tmp_path) == {"greet"}
    assert complete("mhe --ver", stranger, tmp_path) == {"--version"}


@pytest.mark.parametrize("name", ["nosuch", "broken", "nothing"])
def test_completion_after_a_command_that_cannot_be_had_offers_the_others_quietly(name, stranger, tmp_path):
    assert complete(f"mhe {name} ", stranger, tmp_path) == complete("mhe ", stranger, tmp_path)


def test_completion_of_a_task(stranger, tmp_path):
    assert complete("mhe eval --task vq", stranger, tmp_path) == {"vqa-rad"}
