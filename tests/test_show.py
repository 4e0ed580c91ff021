"""`mhe show`: lists, details, runs; as text for people and files, as one JSON document for programs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from mhe import Part, open_catalog
from mhe.cli.main import main
from mhe.cli.option_fields import field_texts, option_fields, type_text

CATALOG = open_catalog()
LISTS = {
    "tasks": CATALOG.task_folders,
    "models": CATALOG.models,
    "backends": CATALOG.backends,
    "metrics": CATALOG.metrics,
    "profiles": CATALOG.profiles,
    "recipes": CATALOG.recipes,
    "readers": CATALOG.readers,
    "engines": CATALOG.engines,
    "pipelines": CATALOG.pipelines,
    "plugins": {plugin.name: plugin for plugin in CATALOG.plugins},
}


@pytest.fixture
def mhe(capsys, tmp_path, monkeypatch):
    """Run `mhe` in this process: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments):
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return done.value.code, captured.out, captured.err

    return run


# ---------------------------------------------------------------- lists and details


@pytest.mark.parametrize("kind", LISTS)
def test_each_list_has_every_name_as_text_and_as_json(mhe, kind):
    names = set(LISTS[kind])
    assert names or kind == "pipelines"
    code, out, err = mhe("show", kind)
    assert code == 0, err
    assert "\x1b" not in out, "no escape codes where stdout is no terminal"
    first_words = {line.split()[0] for line in out.splitlines()[2:]}
    assert first_words == names
    code, out, _ = mhe("show", kind, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema_version"] == 1
    assert {row["name"] for row in document[kind]} == names
    assert document["problems"] == []


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in LISTS.items() for name in sorted(names)], ids=str
)
def test_everything_has_a_detail_view(mhe, kind, name):
    singular = kind.removesuffix("s")
    code, out, err = mhe("show", kind, name, "--json")
    assert code == 0, err
    details = json.loads(out)[singular]
    assert details["name"] == name
    code, out, err = mhe("show", kind, name)
    assert code == 0, err
    assert out.startswith(f"name: {name}\n")
    assert "\x1b" not in out
    options = details.get("options")
    if kind in ("backends", "readers", "metrics", "recipes"):
        assert isinstance(options, list)
        assert all(option["type"] and option["default"] for option in options)
        texts = sum(bool(option["summary"]) for option in options)
        assert texts >= len(options) / 2, f"{texts} of {len(options)} options say what they are for"


def test_a_task_shows_prompt_source_and_readme(mhe):
    _, out, _ = mhe("show", "tasks", "vqa-rad")
    assert "{question}" in out
    assert "licence: CC0 1.0" in out
    assert "homepage: https://osf.io/89kps/" in out
    readme = next(line for line in out.splitlines() if line.startswith("readme: "))
    assert Path(readme.removeprefix("readme: ")).is_file()
    assert "plugin: tasks (mhe" in out


def test_a_task_by_its_path(mhe, tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(Path(str(CATALOG.task_folders["phantom-vqa"])), folder)
    code, out, _ = mhe("show", "tasks", folder)
    assert code == 0
    assert f"file: {folder}/task.yaml" in out


def test_a_metric_shows_range_and_direction(mhe):
    _, out, _ = mhe("show", "metrics", "bleu")
    row = next(line for line in out.splitlines() if line.startswith("bleu-4"))
    assert "0 to 1" in row
    assert "higher is better" in row
    assert "Papineni" in out, "the module's docstring explains the metric"


def test_a_backend_shows_its_options(mhe):
    _, out, _ = mhe("show", "backends", "scripted", "--json")
    options = {option["name"]: option for option in json.loads(out)["backend"]["options"]}
    assert options["batch_size"] == {
        "name": "batch_size",
        "type": "integer >= 1",
        "default": "8",
        "summary": options["batch_size"]["summary"],
        "answer_neutral": True,
    }
    assert options["answer"]["answer_neutral"] is False
    assert options["fail_on"]["type"] == 'text to "data" | "model" | "system"'


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (("show", "taks"), "Did you mean 'tasks'?"),
        (("show", "tasks", "vqarad"), "Did you mean 'vqa-rad'?"),
        (("show", "models", "tiny-lava"), "Did you mean 'tiny-llava'?"),
        (("show", "metrics", "blue"), "Did you mean 'bleu'?"),
        (("show", "plugins", "metric"), "Did you mean 'metrics'?"),
        (("show", "pipelines", "nothing"), "no pipeline named 'nothing'"),
        (("show", "profiles", "strickt", "--json"), "Did you mean 'strict'?"),
    ],
)
def test_unknown_names_get_a_suggestion_and_the_list(mhe, arguments, suggestion):
    code, out, err = mhe(*arguments)
    assert code == 2
    assert suggestion in err
    assert "Known" in err
    if "--json" in arguments:
        assert suggestion in json.loads(out)["error"]["message"]
    else:
        assert out == ""


# ---------------------------------------------------------------- options


class Sample(Part):
    """Options of every kind."""

    count: Annotated[int, Field(ge=1, lt=9)] = 3
    """How many.

    Over two lines.
    """
    mode: Literal["a", "b"] = "a"
    ratio: float | None = None
    """A share."""
    names: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    needed: str
    described: bool = Field(default=True, description="said in the field")


class Derived(Sample):
    """One more option."""

    more: int = 0
    """Added."""


def test_option_fields_say_type_default_and_text():
    found = {field.name: field for field in option_fields(Derived)}
    assert found["count"].type == "integer >= 1 < 9"
    assert found["count"].summary == "How many. Over two lines."
    assert found["mode"].type == '"a" | "b"'
    assert found["mode"].summary == ""
    assert (found["ratio"].type, found["ratio"].default) == ("number | nothing", "null")
    assert found["names"].type == "list of text"
    assert found["pair"].type == "[integer, number]"
    assert found["weights"].type == "text to number"
    assert found["needed"].default == "required"
    assert found["described"].summary == "said in the field"
    assert found["more"].summary == "Added."


def test_option_texts_of_a_class_without_source():
    made = type("Made", (Part,), {"__annotations__": {"x": int}, "x": 1})
    assert field_texts(made) == {}
    assert type_text(Path) == "path"


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A complete run, a partial one, an unfinished one and a damaged one."""
    folder = tmp_path_factory.mktemp("runs")
    environment = {**os.environ, "MHE_CACHE_DIR": str(folder / "cache")}
    common = [
        "--model",
        "scripted",
        "--task",
        "phantom-vqa",
        "--limit",
        "12",
        "--runs-dir",
        str(folder / "runs"),
        "--json",
    ]

    def evaluate(*settings):
        arguments = [part for setting in settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "mhe.cli.main", "eval", *common, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        (run,) = json.loads(done.stdout)["runs"]
        return Path(run["folder"])

    places = {"complete": evaluate("backend.answer=no"), "partial": evaluate("backend.raise_after=5")}
    unfinished = places["complete"].with_name("unfinished00")
    shutil.copytree(places["complete"], unfinished)
    (unfinished / "run.json").unlink()
    damaged = places["complete"].with_name("damaged00000")
    shutil.copytree(places["complete"], damaged)
    (damaged / "run.json").write_text("{")
    return {**places, "unfinished": unfinished, "damaged": damaged, "runs": folder / "runs"}


def test_runs_are_listed_with_intervals_and_states(mhe, runs):
    code, out, err = mhe("show", "runs", "--runs-dir", runs["runs"])
    assert code == 0
    rows = {Path(line.split()[-1]).name: line for line in out.splitlines()[2:]}
    assert set(rows) == {runs[name].name for name in ("complete", "partial", "unfinished")}
    assert "12 of 12" in rows[runs["complete"].name]
    assert " to " in rows[runs["complete"].name]
    assert "partial, provisional" in rows[runs["partial"].name]
    assert "5 of 12" in rows[runs["partial"].name]
    assert "unfinished" in rows[runs["unfinished"].name]
    assert f"{runs['damaged']}/run.json" in err, "what cannot be read is said, and hides nothing else"


def test_runs_as_json_have_numbers(mhe, runs):
    _, out, _ = mhe("show", "runs", "--runs-dir", runs["runs"], "--json")
    document = json.loads(out)
    rows = {Path(row["folder"]).name: row for row in document["runs"]}
    complete = rows[runs["complete"].name]
    assert complete["low"] <= complete["value"] <= complete["high"]
    assert complete["provisional"] is False
    assert rows[runs["partial"].name]["provisional"] is True
    assert rows[runs["unfinished"].name]["answered"] == 12
    assert len(document["problems"]) == 1
    _, out, _ = mhe("show", "runs", "--runs-dir", runs["runs"], "--task", "slake", "--json")
    assert json.loads(out)["runs"] == []


def test_no_runs_is_said(mhe, tmp_path):
    code, out, err = mhe("show", "runs")
    assert (code, out) == (0, "")
    assert "there are no runs in runs" in err


def test_one_run_in_full(mhe, runs):
    code, out, _ = mhe("show", "run", runs["complete"])
    assert code == 0
    assert "accuracy.closed" in out
    assert "say nothing of medicine" in out
    _, same, _ = mhe("show", "run", runs["complete"] / "run.json")
    assert same == out
    _, out, _ = mhe("show", "run", runs["partial"])
    assert "PARTIAL" in out
    assert "provisional" in out
    _, out, _ = mhe("show", "run", runs["partial"], "--json")
    run = json.loads(out)["run"]
    assert run["status"] == "partial"
    assert run["folder"] == str(runs["partial"])


@pytest.mark.parametrize(
    ("place", "words"),
    [("unfinished", "interrupted before its end"), ("damaged", "cannot be read as JSON"), ("runs", "no run's folder")],
)
def test_folders_that_are_no_finished_run(mhe, runs, place, words):
    code, out, err = mhe("show", "run", runs[place])
    assert (code, out) == (2, "")
    assert words in err


def test_a_folder_that_is_not_there(mhe):
    code, _, err = mhe("show", "run", "nowhere")
    assert code == 2
    assert "nowhere: no such folder" in err


# ---------------------------------------------------------------- broken plugins and tasks


def announce(folder, distribution, points, **modules):
    """A distribution as pip leaves it: metadata and modules in a folder of the path."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {place}" for name, place in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mhe]", *lines]) + "\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def show_beside(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "mhe.cli.main", "show", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)


def test_broken_plugins_are_named_and_hide_nothing(tmp_path):
    announce(tmp_path, "stranger-a", {"broken": "broken_plugin"}, broken_plugin="import not_there_at_all\n")
    announce(
        tmp_path, "stranger-b", {"leaver": "leaving_plugin"}, leaving_plugin="import sys\nprint('hi')\nsys.exit(0)\n"
    )
    done = show_beside(tmp_path, "tasks", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {row["name"] for row in document["tasks"]} == set(LISTS["tasks"])
    done = show_beside(tmp_path, "tasks")
    assert "plugins with problems: broken, leaver" in done.stderr
    done = show_beside(tmp_path, "plugins")
    assert "not_there_at_all" in done.stderr
    assert "SystemExit" in done.stderr
    assert "stranger-a" in done.stderr
    assert done.stdout.count("PROBLEM") == 2
    done = show_beside(tmp_path, "plugins", "broken")
    assert "Traceback" in done.stdout, "the details have the traceback of the plugin"
    assert "working: no" in done.stdout


def test_a_broken_task_hides_no_other(tmp_path):
    folder = tmp_path / "bad_task"
    folder.mkdir()
    (folder / "task.yaml").write_text("name: bad-task\nversion: zero\n")
    code = (
        "import pathlib, mhe\n@mhe.hookimpl\n"
        "def register_task_folders():\n    return [pathlib.Path(__file__).parent / 'bad_task']\n"
    )
    announce(tmp_path, "stranger-c", {"bad": "bad_plugin"}, bad_plugin=code)
    done = show_beside(tmp_path, "tasks")
    assert done.returncode == 0
    assert "vqa-rad" in done.stdout
    assert "bad-task" in done.stdout
    assert "line 2: version" in done.stderr
    assert show_beside(tmp_path, "tasks", "bad-task").returncode == 2
