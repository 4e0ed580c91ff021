"""Names to things: found, suggested, loaded late; what fails names the plugin and what to type."""

from __future__ import annotations

import importlib

import pytest

from fake_plugins import FakeEntryPoint, plugin, provider, raising
from mhe import MissingExtraError, TaskSpec, UserError, open_catalog
from mhe.errors import DocumentError, UnknownNameError
from mhe.testing import toy_task

KINDS = {
    "backend": "register_backends",
    "reader": "register_readers",
    "metric": "register_metrics",
    "profile": "register_profiles",
    "recipe": "register_recipes",
    "engine": "register_engines",
    "command": "register_commands",
}


@pytest.fixture(scope="module")
def installed():
    return open_catalog()


def test_what_comes_with_mhe_has_no_problem(installed):
    assert installed.check_all() == []
    counts = {name: len(getattr(installed, name)) for name in ("backends", "metrics", "profiles", "readers", "recipes")}
    assert counts["backends"] >= 3
    assert counts["metrics"] >= 6
    assert counts["profiles"] >= 3
    assert counts["readers"] >= 5
    assert counts["recipes"] >= 1
    assert {"local"} <= set(installed.engines)


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_name_gets_a_suggestion_and_the_list(kind):
    catalog = open_catalog([plugin(**{KINDS[kind]: lambda: [provider("wonderful"), provider("other")]})])
    with pytest.raises(UnknownNameError) as caught:
        getattr(catalog, kind)("wonderfull")
    text = str(caught.value)
    assert f"no {kind} named 'wonderfull'" in text
    assert "Did you mean 'wonderful'?" in text
    assert f"Known {kind}s: other, wonderful." in text
    assert caught.value.exit_code == 2


def test_an_unknown_name_beside_broken_plugins_points_to_them():
    broken = FakeEntryPoint("shattered", raising(ImportError("x")))
    catalog = open_catalog([broken])
    with pytest.raises(UnknownNameError, match=r"Plugins with problems, see `mhe doctor`: shattered\."):
        catalog.metric("anything")


def test_a_missing_package_of_an_extra_gives_the_pip_line():
    def load():
        importlib.import_module("no_such_package_anywhere.inside")

    catalog = open_catalog([plugin(register_metrics=lambda: [provider("thing", load, extra="metrics")])])
    with pytest.raises(MissingExtraError) as caught:
        catalog.metric("thing")
    text = str(caught.value)
    assert "pip install 'mhe[metrics]'" in text
    assert "the metric 'thing'" in text
    assert "no_such_package_anywhere" in text


def test_a_missing_package_without_an_extra_names_the_plugin():
    def load():
        importlib.import_module("no_such_package_anywhere")

    catalog = open_catalog([plugin(register_metrics=lambda: [provider("thing", load)])])
    with pytest.raises(UserError) as caught:
        catalog.metric("thing")
    text = str(caught.value)
    assert "plugin strange (stranger 9.9)" in text
    assert "no_such_package_anywhere" in text
    assert "mhe doctor" in text


def test_a_package_that_is_there_and_fails_is_not_called_missing():
    def load():
        from json import no_such_name  # noqa: F401

    catalog = open_catalog([plugin(register_metrics=lambda: [provider("thing", load, extra="metrics")])])
    with pytest.raises(UserError) as caught:
        catalog.metric("thing")
    assert not isinstance(caught.value, MissingExtraError)
    assert "no_such_name" in str(caught.value)


@pytest.mark.parametrize(
    "error", [RuntimeError("x"), SystemExit(4), OSError("libcuda")], ids=lambda e: type(e).__name__
)
def test_a_load_that_raises_names_the_plugin(error):
    catalog = open_catalog([plugin(register_backends=lambda: [provider("thing", raising(error))])])
    with pytest.raises(UserError) as caught:
        catalog.backend("thing")
    assert f"the backend 'thing' of plugin strange (stranger 9.9) cannot be loaded: {type(error).__name__}" in str(
        caught.value
    )
    assert caught.value.__cause__ is error


def test_an_engine_is_fresh_each_time(installed):
    assert installed.engine("local") is not installed.engine("local")


def test_owner_of(installed):
    assert installed.owner_of("metric", "bleu").name != ""
    assert installed.owner_of("metric", "no-such") is None


# ---------------------------------------------------------------- tasks


def write_task(folder, **changes):
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    task = toy_task(**changes).model_dump(mode="json", exclude_none=True)
    (folder / "task.yaml").write_text(yaml.safe_dump(task))
    return folder


def test_a_task_by_name_folder_and_file(tmp_path, installed):
    folder = write_task(tmp_path / "anywhere", name="mine")
    registered = write_task(tmp_path / "my_own", name="my-own")
    catalog = open_catalog([plugin(register_task_folders=lambda: [registered])])
    assert catalog.task("my-own").name == "my-own"
    assert catalog.task(str(folder)).name == "mine"
    found = catalog.task(str(folder / "task.yaml"))
    assert isinstance(found, TaskSpec)
    with pytest.raises(UnknownNameError, match=r"path of a task\.yaml can be given as well"):
        catalog.task("my-onw")
    assert installed.task("phantom-vqa").phantom


def test_a_task_whose_folder_has_another_name(tmp_path):
    folder = write_task(tmp_path / "this_name", name="that-name")
    catalog = open_catalog([plugin(register_task_folders=lambda: [folder])])
    with pytest.raises(UserError, match="holds a task named 'that-name'"):
        catalog.task("this-name")


def test_a_malformed_task_tells_all_problems_with_their_lines(tmp_path):
    folder = write_task(tmp_path / "bad_task", name="bad-task")
    file = folder / "task.yaml"
    text = (
        file.read_text().replace("kind: vqa", "kind: riddle").replace("\nversion: 1\n", "\nversion: none\nsurplus: 1\n")
    )
    file.write_text(text)
    catalog = open_catalog([plugin(register_task_folders=lambda: [folder])])
    with pytest.raises(DocumentError) as caught:
        catalog.task("bad-task")
    assert len(caught.value.problems) >= 2
    assert all(problem.startswith("line ") for problem in caught.value.problems)
    assert str(file.name) in str(caught.value) or str(folder) in str(caught.value)


def test_a_registered_folder_without_a_task_file(tmp_path):
    (tmp_path / "hollow").mkdir()
    catalog = open_catalog([plugin(register_task_folders=lambda: [tmp_path / "hollow"])])
    with pytest.raises(UserError) as caught:
        catalog.task("hollow")
    assert "hollow" in str(caught.value)


def test_every_registered_task_parses(installed):
    assert len(installed.task_folders) >= 7
    for name in installed.task_folders:
        assert installed.task(name).name == name
