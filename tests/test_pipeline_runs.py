"""Pipelines: steps in order, shared, resumed, overridden, and every mistake found before the first step."""

from __future__ import annotations

import json

import pytest
import yaml

import tune_cases
from command import mhe
from copy_recipe import CatalogWith, CopyRecipe
from mhe.catalog import open_catalog
from mhe.checkpoints import list_checkpoints, read_checkpoint
from mhe.documents.pipeline import PipelineSpec, TrainingChoice
from mhe.errors import DocumentError, UnknownNameError, UserError
from mhe.pipeline_runs import find_pipeline, run_pipeline, with_data, with_settings


@pytest.fixture(scope="module")
def catalog():
    return CatalogWith(open_catalog())


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def fresh_recipe():
    CopyRecipe.calls, CopyRecipe.fault, CopyRecipe.version = [], None, "1"


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def pipeline(base, name="chain", steps=("first", "second", "third"), **changes):
    made = [
        {"name": step, "recipe": "copy", "options": {"strength": n + 1.0}} if isinstance(step, str) else step
        for n, step in enumerate(steps)
    ]
    data = {"name": name, "base": str(base), "data": [{"task": "vqa-rad"}], "steps": made, **changes}
    return PipelineSpec.from_data(data, "test")


def strengths(folder):
    """What each step left, for every step copies its base and writes one file."""
    return json.loads((folder / "model" / "made.json").read_text())


def test_each_step_starts_from_the_one_before_and_the_last_has_the_pipelines_name(catalog, base, place):
    results = run_pipeline(catalog, pipeline(base), place)
    assert list_checkpoints(place.directory) == ["chain@0", "chain.first@0", "chain.second@0"]
    assert [r.outcome.checkpoint.parent for r in results] == ["base", "chain.first@0", "chain.second@0"]
    last = results[-1].outcome.checkpoint
    assert [step.parent for step in last.lineage] == ["chain.second@0", "chain.first@0", "base"]
    assert strengths(results[-1].outcome.folder) == [3.0, 0]


def test_a_second_run_trains_nothing(catalog, base, place):
    run_pipeline(catalog, pipeline(base), place)
    again = run_pipeline(catalog, pipeline(base), place)
    assert len(CopyRecipe.calls) == 3
    assert [r.outcome.status for r in again] == ["reused"] * 3


def test_two_pipelines_share_their_equal_steps(catalog, base, place):
    run_pipeline(catalog, pipeline(base, "short", ("kd", "tuned")), place)
    longer = run_pipeline(catalog, pipeline(base, "long", ("kd", "tuned", "pruned")), place)
    assert [r.outcome.status for r in longer] == ["linked", "linked", "trained"]
    assert len(CopyRecipe.calls) == 3


def test_an_interrupted_pipeline_goes_on_at_the_step(catalog, base, place):
    def stop_at_second(step):
        from mhe.pipelines import run_step

        CopyRecipe.fault = KeyboardInterrupt() if step.name.endswith("second") else None
        return run_step(catalog, step, place)

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(catalog, pipeline(base), place, run=stop_at_second)
    assert list_checkpoints(place.directory) == ["chain.first@0"]
    CopyRecipe.fault = None
    results = run_pipeline(catalog, pipeline(base), place)
    assert [r.outcome.status for r in results] == ["reused", "trained", "trained"]


def test_a_seed_goes_through_the_whole_chain(catalog, base, place):
    results = run_pipeline(catalog, pipeline(base), place, seed=2)
    assert [r.outcome.checkpoint.seed for r in results] == [2, 2, 2]
    assert results[-1].outcome.checkpoint.parent == "chain.second@2"


def test_until_runs_only_what_that_step_needs(catalog, base, place):
    steps = [
        {"name": "teacher", "recipe": "copy", "options": {"strength": 9.0}},
        {"name": "aside", "recipe": "copy", "from_step": "base", "options": {"strength": 5.0}},
        {"name": "student", "recipe": "copy", "from_step": "base", "inputs": {"teacher": "teacher"}},
        {"name": "last", "recipe": "copy"},
    ]
    spec = pipeline(base, steps=steps)
    results = run_pipeline(catalog, spec, place, until="student")
    assert [r.step.name for r in results] == ["teacher", "student"]
    with pytest.raises(UnknownNameError, match="student"):
        run_pipeline(catalog, spec, place, until="studnet")


def test_settings_replace_base_options_inputs_and_recipe(base):
    spec = pipeline(base)
    changed = with_settings(
        spec,
        {"base": "tiny-llava", "second.strength": 7.0, "third.inputs.teacher": "first", "first.recipe": "full"},
    )
    assert changed.base == "tiny-llava"
    assert changed.steps[1].options == {"strength": 7.0}
    assert changed.steps[2].inputs == {"teacher": "first"}
    assert changed.steps[0].recipe == "full"
    assert spec.steps[1].options == {"strength": 2.0}


def test_settings_that_name_nothing_are_all_told(base):
    with pytest.raises(DocumentError) as found:
        with_settings(pipeline(base), {"secnd.strength": 1, "rate": 2})
    assert "did you mean second?" in str(found.value)
    assert "rate: no such step" in str(found.value)
    assert "first, second, third" in str(found.value)


def test_data_in_the_place_of_a_pipelines_own(base):
    steps = [{"name": "a", "recipe": "copy", "data": [{"task": "slake"}]}, {"name": "b", "recipe": "copy", "data": []}]
    spec = with_data(pipeline(base, steps=steps, data=[{"task": "roco"}]), [TrainingChoice(task="vqa-rad")])
    assert [choice.task for choice in spec.data] == ["vqa-rad"]
    assert spec.steps[0].data is None
    assert spec.steps[1].data == (), "a step without data stays one"


def test_every_mistake_is_told_before_the_first_step(catalog, base, place):
    steps = [
        {"name": "a", "recipe": "copy"},
        {"name": "b", "recipe": "copi"},
        {"name": "c", "recipe": "copy", "options": {"strenght": 2}},
        {"name": "d", "recipe": "copy", "from_step": "nowhere"},
        {"name": "e", "recipe": "copy", "data": [{"task": "vqa-red"}]},
    ]
    spec = pipeline(base, steps=steps)
    with pytest.raises(DocumentError) as found:
        run_pipeline(catalog, spec, place)
    text = str(found.value)
    for part in ("step b", "copi", "Did you mean strength", "'nowhere'", "'vqa-red'"):
        assert part in text
    assert CopyRecipe.calls == []


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([{"name": "a", "recipe": "copy", "from_step": "b"}, {"name": "b", "recipe": "copy"}], "comes later"),
        ([{"name": "a", "recipe": "copy"}, {"name": "a", "recipe": "copy"}], "named twice"),
        ([{"name": "a", "recipe": "copy", "inputs": {"teacher": "a"}}], "comes later"),
        ([], "at least 1"),
    ],
)
def test_cycles_and_doubles_are_refused(base, steps, problem):
    with pytest.raises(DocumentError, match=problem):
        pipeline(base, steps=steps)


def test_a_pipeline_is_found_by_file(catalog, base, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(json.loads(pipeline(base).model_dump_json())))
    assert find_pipeline(str(file), catalog) == pipeline(base)
    with pytest.raises(UserError, match="no such file"):
        find_pipeline(str(tmp_path / "other.yaml"), catalog)
    with pytest.raises(UnknownNameError, match="pipeline"):
        find_pipeline("chian", catalog)


def test_the_command_runs_a_pipeline_file(tmp_path, release):
    model = tune_cases.write_model(tmp_path / "llava")
    options = dict(tune_cases.SETTINGS, max_steps=2)
    spec = {
        "schema_version": 1, "name": "two-steps", "base": str(model), "data": [{"task": "vqa-rad"}],
        "steps": [{"name": "one", "recipe": "full", "options": options}, {"name": "two", "recipe": "full"}],
    }  # fmt: skip
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(spec))
    done = mhe(
        "tune", str(file), "--set", "two.max_steps=3", "--set", "two.batch_size=4", "--data-dir", str(release),
        "--checkpoints-dir", str(tmp_path / "c"), "--offline", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "step 2 of 2" in done.err
    assert "two-steps@0: trained" in done.out
    found = read_checkpoint(tmp_path / "c" / "two-steps" / "0")
    assert found.recipe_options["max_steps"] == 3
    assert found.lineage[0].parent == "two-steps.one@0"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tune"], "--model, --recipe, --name missing"),
        (["tune", "x.yaml"], "no such file"),
        (["tune", "x.yaml", "--recipe", "full"], "leave out --recipe"),
        (["tune", "x.yaml", "--model", "tiny-llava"], "--set base=tiny-llava"),
        (["tune", "--model", "a", "--recipe", "full", "--name", "n", "--until", "s"], "--until is for pipelines"),
    ],
)
def test_calls_that_do_not_fit_are_refused(arguments, told, tmp_path):
    done = mhe(*arguments, cwd=tmp_path)
    assert done.code == 2
    assert told in done.err
