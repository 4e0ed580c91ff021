"""Plugins that do everything wrong: each costs itself, is named with its distribution, and the others still work.

There is one test for each hook, `test_<hook>`; `test_every_hook_has_its_test` holds this file to it.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from fake_plugins import FakeEntryPoint, good, nothing, plugin, provider, raising
from mhe import Architecture, ModelSpec, hookimpl, hookspecs, open_catalog
from mhe.plugins import call_each, create_manager, hook_names

DOCS = Path(__file__).parents[1] / "docs"


def problem_of(catalog, name="strange"):
    (problem,) = [p for p in catalog.check_all() if p.plugin == name]
    assert problem.distribution in str(problem)
    assert name in str(problem)
    return problem


def assert_good_works(catalog):
    assert catalog.metric("good-metric") == "loaded"
    assert [p for p in catalog.problems if p.plugin == "good"] == []


# ---------------------------------------------------------------- loading


@pytest.mark.parametrize(
    "error",
    [ImportError("no such thing"), RuntimeError("broken"), SystemExit(3), SyntaxError("bad"), AttributeError("gone")],
    ids=lambda error: type(error).__name__,
)
def test_a_plugin_that_does_not_import_costs_itself(error):
    broken = FakeEntryPoint("strange", raising(error))
    catalog = open_catalog([broken, good()])
    problem = problem_of(catalog)
    assert problem.distribution == "stranger"
    assert "does not import" in problem.message
    assert type(error).__name__ in problem.message
    assert "pip uninstall stranger" in problem.hint
    assert "Traceback" in problem.details
    assert_good_works(catalog)
    states = {info.name: info.is_working for info in catalog.plugins}
    assert states == {"good": True, "strange": False}


def test_an_interruption_goes_through():
    with pytest.raises(KeyboardInterrupt):
        create_manager([FakeEntryPoint("strange", raising(KeyboardInterrupt()))])
    catalog = open_catalog([plugin(register_metrics=raising(KeyboardInterrupt()))])
    with pytest.raises(KeyboardInterrupt):
        len(catalog.metrics)
    catalog = open_catalog([plugin(register_metrics=lambda: [provider(load=raising(KeyboardInterrupt()))])])
    with pytest.raises(KeyboardInterrupt):
        catalog.metric("thing")
    catalog = open_catalog([plugin(run_finished=raising(KeyboardInterrupt()))])
    with pytest.raises(KeyboardInterrupt):
        catalog.run_finished(None, Path())


def test_what_a_plugin_prints_stays_off_stdout(capsys):
    def load():
        print("hello from the import")
        return SimpleNamespace(register_metrics=hookimpl(listed))

    def listed():
        print("hello from the hook")
        return [provider(load=lambda: print("hello from load") or "loaded")]

    catalog = open_catalog([FakeEntryPoint("strange", load)])
    assert catalog.metric("thing") == "loaded"
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("hello") == 3


def test_a_misnamed_hook_gets_a_suggestion():
    catalog = open_catalog([plugin(register_metric=nothing), good()])
    problem = problem_of(catalog)
    assert "register_metric is marked as a hook, and there is no such hook" in problem.message
    assert problem.hint == "Did you mean register_metrics?"
    assert_good_works(catalog)


def test_a_hook_unlike_any_gets_the_list():
    problem = problem_of(open_catalog([plugin(quite_another=nothing)]))
    assert all(name in problem.hint for name in hook_names())


def test_a_hook_of_another_version_may_be_optional():
    thing = SimpleNamespace(register_wishes=hookimpl(optionalhook=True)(nothing))
    catalog = open_catalog([FakeEntryPoint("strange", lambda: thing)])
    assert catalog.check_all() == []


def test_a_hook_with_arguments_that_it_is_not_given():
    catalog = open_catalog([plugin(register_metrics=lambda config: [provider()]), good()])
    problem = problem_of(catalog)
    assert "config" in problem.message
    assert "docs/hooks.md" in problem.hint
    assert "thing" not in catalog.metrics
    assert_good_works(catalog)


def test_a_hook_may_leave_arguments_out():
    seen = []
    catalog = open_catalog([plugin(run_finished=lambda folder: seen.append(folder))])
    assert catalog.run_finished(None, Path("here")) == []
    assert seen == [Path("here")]


def test_an_object_whose_attributes_raise():
    class Awkward:
        @property
        def surprise(self):
            raise RuntimeError("do not look")

    catalog = open_catalog([FakeEntryPoint("strange", Awkward), good()])
    assert "do not look" in problem_of(catalog).message
    assert_good_works(catalog)


def test_a_plugin_without_hooks_is_no_problem():
    catalog = open_catalog([FakeEntryPoint("strange", lambda: SimpleNamespace(a=1))])
    assert catalog.check_all() == []
    assert catalog.plugins[0].hooks == ()


def test_one_object_announced_under_two_names():
    thing = SimpleNamespace(register_metrics=hookimpl(lambda: [provider()]))
    points = [FakeEntryPoint(name, lambda: thing, value=name) for name in ("first", "second")]
    catalog = open_catalog(points)
    assert catalog.metric("thing") == "loaded"
    assert problem_of(catalog, "second").distribution == "stranger"


def test_two_distributions_with_one_entry_point_name():
    points = [plugin("twin", name, register_metrics=lambda name=name: [provider(f"{name}-m")]) for name in ("zz", "aa")]
    catalog = open_catalog([*points, good()])
    problem = problem_of(catalog, "twin")
    assert problem.distribution == "zz", "the first by name keeps it, whatever the order of the file system"
    assert "taken by aa" in problem.message
    assert "pip uninstall zz" in problem.hint
    assert list(catalog.metrics) == ["aa-m", "good-metric"]


def test_a_distribution_seen_twice_is_no_clash():
    point = plugin("strange", "stranger", register_metrics=lambda: [provider()])
    catalog = open_catalog([point, point])
    assert catalog.check_all() == []
    assert len(catalog.plugins) == 1


def test_no_distribution_at_all():
    catalog = open_catalog([plugin(distribution="", register_metrics=raising(ValueError("x")))])
    assert problem_of(catalog).distribution == "unknown distribution"


def test_ours_come_first():
    names = ["zeta", "alpha", "mhe", "Beta"]
    catalog = open_catalog([plugin(f"p-{name.lower()}", name) for name in names])
    assert [info.distribution for info in catalog.plugins] == ["mhe", "alpha", "Beta", "zeta"]


DISTRIBUTIONS = """
import sys
from mhe import open_catalog
catalog = open_catalog()
for problem in catalog.check_all():
    print(problem.plugin, "|", problem.distribution, "|", problem.message, "|", problem.hint)
print("working:", *sorted(info.name for info in catalog.plugins if info.is_working))
"""


def install(folder: Path, distribution: str, entry_points: str, **modules: str) -> None:
    """What pip leaves: a dist-info folder, and modules beside it."""
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(text))


def test_real_distributions_on_the_path(tmp_path):
    hook = "import mhe\n@mhe.hookimpl\ndef register_metrics():\n    return [mhe.Provider('{0}', 'x', lambda: 1)]\n"
    install(tmp_path / "a", "alpha", "[mhe]\nshared = alpha_module\n", alpha_module=hook.format("alpha-metric"))
    install(tmp_path / "b", "beta", "[mhe]\nshared = beta_module\n", beta_module=hook.format("beta-metric"))
    install(tmp_path / "b", "gamma", "[mhe]\ngamma = no_such_module\n")
    install(tmp_path / "b", "delta", "[mhe]\ndelta = delta_module\n", delta_module="import sys\nsys.exit('bye')\n")
    install(tmp_path / "b", "epsilon", "[mhe]\nepsilon = epsilon_module:missing\n", epsilon_module="present = 1\n")
    done = subprocess.run(
        [sys.executable, "-c", DISTRIBUTIONS],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{tmp_path / 'b'}:{tmp_path / 'a'}", "PATH": ""},
        check=True,
    )
    *lines, working = done.stdout.splitlines()
    problems = {line.split(" | ")[1]: line for line in lines}
    assert set(problems) == {"beta", "gamma", "delta", "epsilon"}
    assert "taken by alpha" in problems["beta"]
    assert "no_such_module" in problems["gamma"]
    assert "SystemExit: bye" in problems["delta"]
    assert "missing" in problems["epsilon"]
    assert {"shared", "hf", "metrics", "tasks", "testing"} <= set(working.split())
    assert not {"gamma", "delta", "epsilon"} & set(working.split())


@pytest.mark.parametrize("text", ["[mhe\nbroken", "[mhe]\nbroken =\n", "[mhe]\n= x\n", "\xff\xfe"], ids=repr)
def test_a_damaged_entry_points_file_costs_its_distribution(tmp_path, text):
    install(tmp_path, "damaged", text)
    done = subprocess.run(
        [sys.executable, "-c", DISTRIBUTIONS],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert {"hf", "metrics", "tasks", "testing"} <= set(done.stdout.splitlines()[-1].split())


# ---------------------------------------------------------------- what hooks return


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (None, "returned NoneType, where a list of Provider belongs"),
        ("metrics", "returned str, where"),
        (b"metrics", "returned bytes, where"),
        ({"a": 1}, "returned dict, where"),
        (iter([1]), "returned list_iterator, where"),
        (42, "returned int, where"),
        (["bleu"], "returned str 'bleu' in its list"),
        ([print], "returned builtin_function_or_method"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)
def test_a_hook_that_returns_something_else(returned, told):
    catalog = open_catalog([plugin(register_metrics=lambda: returned), good()])
    problem = problem_of(catalog)
    assert told in problem.message
    assert "register_metrics" in problem.message
    assert_good_works(catalog)


def test_the_good_items_of_a_half_bad_list_are_kept():
    catalog = open_catalog([plugin(register_metrics=lambda: [provider("fine"), 3])])
    assert "fine" in catalog.metrics
    assert "returned int 3" in problem_of(catalog).message


def test_an_item_whose_repr_raises_and_one_that_is_long():
    class Mute:
        __repr__ = raising(RuntimeError("no words"))

    catalog = open_catalog([plugin(register_metrics=lambda: [Mute()])])
    assert "returned Mute" in problem_of(catalog).message
    catalog = open_catalog([plugin(register_metrics=lambda: ["x" * 10_000])])
    assert len(problem_of(catalog).message) < 250


@pytest.mark.parametrize("error", [RuntimeError("x"), SystemExit(0), GeneratorExit()], ids=lambda e: type(e).__name__)
def test_a_hook_that_raises(error):
    catalog = open_catalog([plugin(register_metrics=raising(error)), good()])
    problem = problem_of(catalog)
    assert f"register_metrics raised {type(error).__name__}" in problem.message
    assert "Traceback" in problem.details
    assert_good_works(catalog)


def test_a_hook_is_not_called_before_its_names_are_asked_for():
    called = []
    hooks = {
        name: (lambda name=name: called.append(name) or []) for name in hook_names() if name.startswith("register")
    }
    catalog = open_catalog([plugin(**hooks)])
    assert called == []
    len(catalog.readers)
    assert called == ["register_readers"]
    len(catalog.readers)
    catalog.check_all()
    assert sorted(called) == sorted(hooks), "each once"


def test_a_name_already_taken_is_refused_and_both_are_named():
    points = [plugin(name, name, register_metrics=lambda: [provider("same")]) for name in ("aaa", "bbb")]
    catalog = open_catalog(points)
    problem = problem_of(catalog, "bbb")
    assert "'same' is already registered by plugin aaa (aaa)" in problem.message
    assert "pip uninstall bbb" in problem.hint
    assert catalog.owner_of("metric", "same").name == "aaa"


def test_nobody_takes_a_name_of_ours():
    from mhe.plugins import PluginSet, installed_entry_points

    empty = PluginSet(create_manager([]).manager, [], {})
    catalog = open_catalog([*installed_entry_points(empty), plugin(register_metrics=lambda: [provider("bleu")])])
    assert "already registered by plugin metrics (mhe)" in problem_of(catalog).message
    assert catalog.owner_of("metric", "bleu").distribution == "mhe"


def test_a_name_given_twice_by_one_plugin():
    catalog = open_catalog([plugin(register_metrics=lambda: [provider("same"), provider("same")])])
    assert "registered twice by this plugin" in problem_of(catalog).message


@pytest.mark.parametrize("name", ["", "Upper", "with blank", "-dash", "ümlaut", "a/b", "a\n", None, 3], ids=repr)
def test_a_name_that_cannot_be_typed(name):
    catalog = open_catalog([plugin(register_metrics=lambda: [provider(name)]), good()])
    assert problem_of(catalog)
    assert list(catalog.metrics) == ["good-metric"]


@pytest.mark.parametrize("field", [{"summary": None}, {"load": "module:thing"}, {"extra": 3}], ids=repr)
def test_a_provider_with_a_wrong_field(field):
    catalog = open_catalog([plugin(register_metrics=lambda: [provider(**field)]), good()])
    assert next(iter(field)) in problem_of(catalog).message
    assert_good_works(catalog)


def test_call_each_names_hooks_that_nobody_implements():
    assert call_each(create_manager([]), "register_metrics", str) == []


# ---------------------------------------------------------------- one test for each hook


def check_providers_of(hook, mapping, method):
    """What every hook with providers has in common: listed without loading, loaded when asked for."""
    loaded = []
    thing = SimpleNamespace(name="thing")

    def load():
        loaded.append(1)
        return thing

    catalog = open_catalog([plugin(**{hook: lambda: [provider(load=load)]})])
    assert list(getattr(catalog, mapping)) == ["thing"]
    assert loaded == []
    assert getattr(catalog, method)("thing") is thing
    assert catalog.check_all() == []
    assert catalog.plugins[0].hooks == (hook,)


def test_register_backends():
    check_providers_of("register_backends", "backends", "backend")


def test_register_readers():
    check_providers_of("register_readers", "readers", "reader")


def test_register_metrics():
    check_providers_of("register_metrics", "metrics", "metric")


def test_register_profiles():
    check_providers_of("register_profiles", "profiles", "profile")


def test_register_taggers():
    check_providers_of("register_taggers", "taggers", "tagger")


def test_register_recipes():
    check_providers_of("register_recipes", "recipes", "recipe")


def test_register_model_classes():
    check_providers_of("register_model_classes", "model_classes", "model_class")
    named = provider("PrunedStrangeModel")
    catalog = open_catalog([plugin(register_model_classes=lambda: [named])])
    assert catalog.model_classes["PrunedStrangeModel"] is named, "classes are named as Python has them"


def test_register_engines():
    check_providers_of("register_engines", "engines", "engine")


def test_register_commands():
    check_providers_of("register_commands", "commands", "command")


def test_register_models():
    spec = ModelSpec(name="strange-model", backend="hf", location="org/name", revision="abc")
    catalog = open_catalog([plugin(register_models=lambda: [spec])])
    assert catalog.models["strange-model"] is spec
    catalog = open_catalog([plugin(register_models=lambda: [{"name": "x"}])])
    assert "where a list of ModelSpec belongs" in problem_of(catalog).message


def test_register_architectures():
    item = Architecture("Strange_Type", ("vision",), ("projector",), ("language",))
    catalog = open_catalog([plugin(register_architectures=lambda: [item])])
    assert catalog.architectures["Strange_Type"] is item, "model types are named by others"
    catalog = open_catalog([plugin(register_architectures=lambda: ["llava"])])
    assert "where a list of Architecture belongs" in problem_of(catalog).message


def test_register_task_folders(tmp_path):
    folder = tmp_path / "my_task"
    folder.mkdir()
    catalog = open_catalog([plugin(register_task_folders=lambda: [folder])])
    assert list(catalog.task_folders) == ["my-task"]
    catalog = open_catalog([plugin(register_task_folders=lambda: [str(folder)])])
    assert "returned str" in problem_of(catalog).message


def test_register_pipelines(tmp_path):
    file = tmp_path / "kd-then-lora.yaml"
    file.write_text("x")
    catalog = open_catalog([plugin(register_pipelines=lambda: [file])])
    assert catalog.pipelines["kd-then-lora"] == file
    catalog = open_catalog([plugin(register_pipelines=lambda: file)])
    assert problem_of(catalog)


def test_run_finished():
    told = []
    points = [
        plugin("first", "aaa", run_finished=raising(RuntimeError("tracker is down"))),
        plugin("second", "bbb", run_finished=raising(SystemExit(1))),
        plugin("third", "ccc", run_finished=lambda record, folder: told.append((record, folder))),
    ]
    warnings = open_catalog(points).run_finished("record", Path("folder"))
    assert told == [("record", Path("folder"))]
    assert len(warnings) == 2
    assert "plugin first (aaa): run_finished raised RuntimeError: tracker is down" in warnings[0]
    assert "Traceback" in warnings[0]
    assert "plugin second (bbb)" in warnings[1]


def test_every_hook_has_its_test():
    names = hook_names()
    assert len(names) == 14
    missing = [name for name in names if f"test_{name}" not in globals()]
    assert not missing


def test_every_hook_is_documented_with_its_arguments():
    text = (DOCS / "hooks.md").read_text(encoding="utf-8")
    for name in hook_names():
        function = getattr(hookspecs, name)
        assert inspect.getdoc(function), f"{name} has no docstring"
        section = re.search(rf"^## `{name}`\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
        assert section, f"docs/hooks.md has no section on {name}: make docs"
        for argument in inspect.signature(function).parameters:
            assert f"{argument}:" in section[1], f"docs/hooks.md: {name} without its argument {argument}"
