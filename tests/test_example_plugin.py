"""A stranger's distribution, installed into a fresh environment beside mhe: found, shown, evaluated, trained with."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import textwrap
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

import mhe
import mhe_hf

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "tests" / "example_plugin"
TUTORIAL = ROOT / "docs" / "writing-a-plugin.md"
TUNING = ROOT / "docs" / "tuning.md"
SOURCES = sorted((EXAMPLE / "src" / "mhe_example").glob("*.py"))


@dataclass(frozen=True)
class Place:
    """The fresh environment, with a working folder."""

    folder: Path

    def run(self, *command: str, expected: int | None = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        cleaned = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MHE_", "VIRTUAL_ENV"))}
        done = subprocess.run(
            [str(self.folder / "venv" / "bin" / command[0]), *command[1:]],
            cwd=self.folder,
            env={**cleaned, "MHE_CACHE_DIR": str(self.folder / "cache"), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert expected in (None, done.returncode), f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *command: str, **environment: str) -> dict:
        return json.loads(self.run("mhe", *command, "--json", **environment).stdout)


def copied(source: Path, goal: Path) -> Path:
    """A copy to build from: a build leaves files in its source tree, and this one is not ours to change."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "runs", "checkpoints", "tests", "*.egg-info")
    return Path(shutil.copytree(source, goal, ignore=ignored))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stranger")
    venv.create(folder / "venv", with_pip=True)
    found = Place(folder)
    own = Path(found.run("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    # What mhe needs is taken from the running environment, so that nothing is downloaded. The two packages under
    # test come from the new one: its own folder stands first, and an editable install's hook does not run from here.
    (own / "running-environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    sources = [copied(ROOT, folder / "mhe-source"), copied(EXAMPLE, folder / "example-source")]
    for source in sources:
        found.run(
            "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
            "--ignore-installed", str(source),
        )  # fmt: skip
    return found


def test_both_packages_come_from_the_fresh_environment(place):
    code = "import mhe, mhe_tasks, mhe_example; print(mhe.__file__, mhe_tasks.__file__, mhe_example.__file__)"
    for path in place.run("python", "-c", code).stdout.split():
        assert Path(path).is_relative_to(place.folder / "venv"), path
    version = place.run("python", "-c", "import importlib.metadata as m; print(m.version('mhe-example'))")
    assert version.stdout.strip() == "1.2.3"


def test_the_plugin_is_found_without_a_problem(place):
    shown = place.json("show", "plugins")
    ours = [row for row in shown["plugins"] if row["name"] == "example"]
    assert [(row["distribution"], row["version"], row["state"]) for row in ours] == [("mhe-example", "1.2.3", "ok")]
    names = [row["name"] for row in shown["plugins"]]
    assert len(names) == len(set(names)), "nothing is found twice, though the running environment has mhe as well"
    checks = json.loads(place.run("mhe", "doctor", "--json", expected=None).stdout)["checks"]
    assert {check["name"]: check["state"] for check in checks}["plugin example"] == "ok"


def test_the_task_is_shown(place):
    names = [row["name"] for row in place.json("show", "tasks")["tasks"]]
    assert "example-vqa" in names
    assert "phantom-vqa" in names


def test_an_evaluation_goes_through_every_part_of_it(place):
    log = place.folder / "log.jsonl"
    arguments = ("eval", "--model", "example", "--task", "example-vqa")
    (run,) = place.json(*arguments, MHE_EXAMPLE_LOG=str(log))["runs"]
    assert run["status"] == "complete"
    assert run["backend"]["name"] == "example"
    (metric,) = run["metrics"]
    assert (metric["metric"], metric["profile"]) == ("example-first-word", "example-lenient")
    (value,) = metric["values"]
    assert 0.5 < value["value"] < 1, "its weight is 128, and squares are bright from 100 on"
    (line,) = [json.loads(text) for text in log.read_text().splitlines()]
    assert line["task"] == "example-vqa"
    assert (place.folder / line["folder"] / "run.json").is_file()
    (again,) = place.json(*arguments, MHE_EXAMPLE_LOG=str(log))["runs"]
    assert again["was_done"]
    assert len(log.read_text().splitlines()) == 1, "trackers are told of a run once"
    (other,) = place.json(*arguments, "--set", "backend.bright=no", "--set", "backend.dark=yes")["runs"]
    assert other["run_key"] != run["run_key"]
    assert other["metrics"][0]["values"][0]["value"] == pytest.approx(1 - value["value"])


def test_training_with_its_recipe_makes_a_better_model(place):
    place.json("tune", "--model", "example", "--recipe", "example-fit", "--task", "example-vqa", "--name", "better")
    before, after = (
        place.json("eval", "--model", name, "--task", "example-vqa")["runs"][0] for name in ("example", "better")
    )
    old, new = (run["metrics"][0]["values"][0]["value"] for run in (before, after))
    assert new > old
    assert new > 0.9
    assert after["model"]["lineage"][0]["recipe"] == "example-fit"
    assert after["model"]["fingerprint"] != before["model"]["fingerprint"]
    shown = place.run("mhe", "example-threshold", "checkpoints/better/0/model").stdout
    assert 70 <= float(shown) <= 110


def test_training_with_its_recipe_for_transformers_models_moves_normalisations_alone(place):
    """The recipe that docs/tuning.md shows, through the command, as its readers would run it."""
    shown = place.json("show", "recipes", "example-norms")
    assert "example-quick" in json.dumps(shown)
    command = (
        "tune", "--model", "tiny-llava", "--recipe", "example-norms", "--task", "example-vqa", "--name", "norms",
        "--set", "preset=example-quick", "--set", "modules=[vision, language]",
    )  # fmt: skip
    planned = place.json(*command, "--dry-run")["steps"][0]["modules"]
    assert planned["fusion"]["trainable"] == 0 < planned["vision"]["trainable"] < planned["vision"]["total"]
    (made,) = place.json(*command)["checkpoints"]
    assert made["status"] == "trained"
    assert {m["name"]: m["trainable"] for m in made["modules"]} == {n: m["trainable"] for n, m in planned.items()}
    code = (
        "import json, mhe_tiny; from pathlib import Path; from safetensors.torch import load_file\n"
        "before = load_file(mhe_tiny.MODELS / 'tiny-llava' / 'model.safetensors')\n"
        "after = load_file('checkpoints/norms/0/model/model.safetensors')\n"
        "assert before.keys() == after.keys()\n"
        "print(json.dumps([n for n in before if not before[n].equal(after[n])]))"
    )
    moved = json.loads(place.run("python", "-c", code).stdout)
    assert moved
    assert all("norm" in name for name in moved)
    assert not [name for name in moved if "projector" in name]
    losses = [entry["loss"] for entry in made["history"] if "loss" in entry]
    assert losses[-1] < losses[0]
    (run,) = place.json("eval", "--model", "norms", "--task", "example-vqa", "--limit", "4")["runs"]
    assert run["status"] == "complete"
    assert run["model"]["lineage"][0]["recipe"] == "example-norms"
    wrong = place.run("mhe", *command[:-1], "modules=[fusion]", "--dry-run", expected=2)
    assert "no layer normalisation in modules=fusion" in wrong.stderr


def test_its_own_tests_pass(place):
    shutil.copy(EXAMPLE / "test_contracts.py", place.folder)
    done = place.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_contracts.py")
    assert "7 passed" in done.stdout


def test_its_command_is_listed_and_its_options_are_checked(place):
    assert "example-threshold" in place.run("mhe", "--help").stdout
    wrong = place.run(
        "mhe", "eval", "--model", "example", "--task", "example-vqa", "--set", "backend.brigt=x", expected=2
    )
    assert "brigt: no such key" in wrong.stderr
    missing = place.run("mhe", "example-threshold", "nowhere", expected=2)
    assert "nowhere" in missing.stderr


def blocks_of(language):
    """The fenced blocks of the tutorial in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_code_of_the_tutorial_is_the_code_of_the_example():
    files = [path for path in EXAMPLE.rglob("*") if path.suffix in (".py", ".toml", ".yaml")]
    texts = [path.read_text(encoding="utf-8") for path in files]
    blocks = [block for language in ("python", "toml", "yaml") for block in blocks_of(language)]
    assert len(blocks) >= 13
    for block in blocks:
        # A method stands on the page without its class.
        forms = (block, textwrap.indent(block, "    "))
        assert any(form in text for form in forms for text in texts), f"not in tests/example_plugin:\n{block}"
    fences = re.findall(r"^```(\w*)$", TUTORIAL.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences) == {"python", "toml", "yaml", "sh", ""}, "no block escapes the tests"


def test_the_page_on_tuning_shows_the_recipe_as_it_is():
    recipe, hooks = (
        (EXAMPLE / "src" / "mhe_example" / name).read_text(encoding="utf-8") for name in ("norms.py", "__init__.py")
    )
    page = TUNING.read_text(encoding="utf-8").partition("## A recipe of your own")[2]
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert blocks[0] == recipe
    assert len(blocks) == 2
    assert blocks[1] in hooks
    assert "def register_recipes" in blocks[1]


def test_the_commands_of_the_tutorial_work(place):
    commands = [line for block in blocks_of("sh") for line in block.splitlines()]
    assert len(commands) >= 9
    for command in commands:
        assert place.run(*shlex.split(command)).stdout


def test_uninstalled_it_leaves_no_trace(place):
    place.run("python", "-m", "pip", "uninstall", "--quiet", "--yes", "mhe-example")
    shown = place.json("show", "plugins")
    assert "mhe-example" not in json.dumps(shown)
    done = place.run("mhe", "eval", "--model", "example", "--task", "example-vqa", expected=2)
    assert "example" in done.stderr


def test_it_uses_public_names_only():
    assert len(SOURCES) == 9
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mhe":
                assert node.module == "mhe", f"{path.name} imports {node.module}"
                assert {alias.name for alias in node.names} <= set(mhe.__all__), path.name
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mhe_hf":
                assert node.module == "mhe_hf" or str(node.module).startswith("mhe_hf.training."), path.name
                assert not [alias.name for alias in node.names if alias.name.startswith("_")], path.name
                if node.module == "mhe_hf":
                    assert {alias.name for alias in node.names} <= set(mhe_hf.__all__), path.name
            elif isinstance(node, ast.Import):
                assert not [alias for alias in node.names if alias.name.split(".")[0] == "mhe"], path.name


def test_it_is_typed(tmp_path):
    # The libraries below are looked at where mhe itself is checked: here they would cost a minute.
    heavy = "torch.*,transformers.*,peft.*,safetensors.*"
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nfollow_imports = silent\n[mypy-{heavy}]\nfollow_imports = skip\n", encoding="utf-8"
    )
    words = ["--strict", "--no-incremental", "--config-file", str(tmp_path / "mypy.ini")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, str(EXAMPLE / "src" / "mhe_example")],
        env={**os.environ, "MYPYPATH": f"{ROOT / 'harness'}:{ROOT / 'plugins'}:{EXAMPLE / 'src'}"},
        cwd=EXAMPLE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
