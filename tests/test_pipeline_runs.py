"""Pipelines: steps in order, shared, resumed, overridden, and every mistake found before the first step."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import tune_cases
from command import mhe
from copy_recipe import CatalogWith, CopyRecipe
from mhe.catalog import open_catalog
from mhe.checkpoints import list_checkpoints, read_checkpoint
from mhe.cli.pipeline_tree import runs_by_fingerprint, tree_rows, tree_text
from mhe.documents.pipeline import PipelineSpec, TrainingChoice
from mhe.documents.run import RunRecord
from mhe.errors import DocumentError, ModelUnusableError, UnknownNameError, UserError
from mhe.model_names import resolve_model
from mhe.pipeline_runs import check_pipeline, find_pipeline, run_pipeline, with_data, with_settings
from mhe.pipelines import StepPlace, _remove_stale_work, run_step
from mhe.previews import announced_examples, preview_pipeline


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


# ---------------------------------------------------------------- variants


def write_yaml(path, **content):
    path.write_text(yaml.safe_dump({"schema_version": 1, "name": path.stem, **content}))
    return path


def test_a_variant_is_another_pipeline_on_another_base(catalog, base, tmp_path):
    spec = json.loads(pipeline(base, "large", ("kd", "tuned")).model_dump_json())
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(spec))
    write_yaml(
        tmp_path / "middle.yaml", extends="large", base="tiny-llava", summary="smaller",
        data=[{"task": "slake", "limit": 4}], settings={"kd.strength": 9.0, "kd.inputs.teacher": "tiny-llava-base"},
    )  # fmt: skip
    write_yaml(tmp_path / "small.yaml", extends="middle", settings={"tuned.recipe": "full"})
    found = find_pipeline(str(tmp_path / "small.yaml"), catalog)
    assert (found.name, found.base, found.summary) == ("small", "tiny-llava", "smaller")
    assert [(step.name, step.recipe) for step in found.steps] == [("kd", "copy"), ("tuned", "full")]
    assert found.steps[0].options == {"strength": 9.0}
    assert found.steps[0].inputs == {"teacher": "tiny-llava-base"}
    assert [(choice.task, choice.limit) for choice in found.data] == [("slake", 4)]
    assert find_pipeline(str(tmp_path / "large.yaml"), catalog).base == str(base), "the other is as it was"


@pytest.mark.parametrize(
    ("content", "kind", "told"),
    [
        ({"extends": "nowhere"}, UnknownNameError, "nowhere"),
        ({"extends": "round"}, DocumentError, "a circle"),
        ({"extends": "other"}, DocumentError, "round extends other extends round: a circle"),
        ({"extends": "large", "settings": {"kdd.strength": 1.0}}, DocumentError, "did you mean kd?"),
        ({"extends": "large", "steps": []}, DocumentError, "steps: no such key"),
    ],
)
def test_variants_of_nothing_or_of_themselves_are_refused(catalog, base, tmp_path, content, kind, told):
    spec = json.loads(pipeline(base, "large", ("kd", "tuned")).model_dump_json())
    (tmp_path / "large.yaml").write_text(yaml.safe_dump(spec))
    write_yaml(tmp_path / "other.yaml", extends="round")
    with pytest.raises(kind, match=told):
        find_pipeline(str(write_yaml(tmp_path / "round.yaml", **content)), catalog)


# ---------------------------------------------------------------- dry runs


def chain(base, **changes):
    """Two real trainings and a merge."""
    options = {"max_steps": 2, "batch_size": 4}
    steps = [
        {"name": "full", "recipe": "full", "options": options},
        {"name": "lora", "recipe": "lora", "options": options},
        {"name": "merged", "recipe": "merge", "data": []},
    ]
    return PipelineSpec.from_data(
        {"name": "chain", "base": str(base), "data": [{"task": "vqa-rad"}], "steps": steps, **changes}, "test"
    )


def test_a_plan_of_steps_that_are_not_made_yet(catalog, place, random_twins, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (base / file).write_bytes((random_twins("tiny-llava") / file).read_bytes())
    previews = list(preview_pipeline(catalog, chain(base), place))
    parameters = [found.result.parameters for found in previews]
    assert parameters[0] == parameters[2] == parameters[1] - previews[1].result.trainable_parameters
    assert [found.result.needed_bytes > 0 for found in previews] == [True, True, True]
    assert "not on this machine: planned from its configuration" in " ".join(previews[0].remarks)
    assert [found.digest for found in previews] == [None, None, None]
    assert not (place.directory).exists()
    assert not any(Path(found.model.location).exists() for found in previews), "nothing is left behind"


def test_a_plan_goes_on_from_what_is_finished(catalog, base, place):
    first = run_pipeline(catalog, pipeline(base), place, until="first")
    found = next(preview_pipeline(catalog, pipeline(base), place))
    assert found.finished[1].step_digest == first[0].outcome.checkpoint.step_digest == found.digest
    assert found.result is None
    changed = next(preview_pipeline(catalog, with_settings(pipeline(base), {"first.strength": 5.0}), place))
    assert changed.finished is None
    assert "holds the result of another step" in " ".join(changed.remarks)


def test_a_recipe_that_writes_no_shape_ends_the_plan_in_words(catalog, base, place):
    previews = preview_pipeline(catalog, pipeline(base), place)
    assert next(previews).result.parameters == 10
    with pytest.raises(UserError, match=r"its recipe 'copy' does not write the shape.*mhe tune chain --until first"):
        next(previews)


def test_data_that_is_not_here_is_counted_as_announced(catalog, random_twins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MHE_DATA_DIR", raising=False)
    nowhere = StepPlace(directory=tmp_path / "checkpoints", offline=True)
    assert announced_examples(catalog, [TrainingChoice(task="roco")]) == 59958
    assert announced_examples(catalog, [TrainingChoice(task="roco", limit=100, fraction=0.5)]) == 50
    assert announced_examples(catalog, [TrainingChoice(task="roco"), TrainingChoice(task="phantom-vqa")]) == 0
    spec = chain(random_twins("tiny-llava"), data=[{"task": "roco"}])
    del spec.steps[0].options["max_steps"]
    found = next(preview_pipeline(catalog, spec, nowhere))
    assert f"{3 * 14990:,} steps over 59,958 rows" in " ".join(found.result.notes)
    assert "59,958 pairs, as announced" in " ".join(found.remarks)


def test_a_base_that_is_nowhere_is_an_error(catalog, place):
    with pytest.raises(ModelUnusableError, match="no such folder"):
        next(preview_pipeline(catalog, chain("./nowhere"), place))


def test_the_command_prints_the_whole_plan(tmp_path, release, random_twins):
    file = tmp_path / "chain.yaml"
    file.write_text(yaml.safe_dump(json.loads(chain(random_twins("tiny-llava")).model_dump_json())))
    call = ["tune", str(file), "--dry-run", "--data-dir", str(release), "--offline"]
    done = mhe(*call, cwd=tmp_path)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].startswith("chain@0, from ")
    assert [line.split()[0] for line in lines[4:7]] == ["full", "lora", "merged"]
    assert "MiB" in lines[4]
    told = json.loads(mhe(*call, "--json", "--until", "lora", cwd=tmp_path).out)
    assert [step["step"] for step in told["steps"]] == ["full", "lora"]
    assert [step["status"] for step in told["steps"]] == ["planned", "planned"]
    assert told["steps"][0]["needed_bytes"] == 16 * told["steps"][0]["parameters"]
    assert told["steps"][0]["steps"] == 2
    assert not (tmp_path / "checkpoints").exists()


# ---------------------------------------------------------------- the tree


def write_run(runs, model, fingerprint, *, finished, value=0.5, status="complete", samples_per_second=8.0):
    kept = Path(__file__).parent / "data" / "documents" / "RunRecord-2.json"
    record = RunRecord.from_json(kept)
    primary = record.task.primary
    metrics = []
    for metric in record.metrics:
        values = tuple(v.model_copy(update={"value": value}) if v.name == primary else v for v in metric.values)
        metrics.append(metric.model_copy(update={"values": values}))
    changed = record.model_copy(
        update={
            "status": status, "finished": finished, "metrics": tuple(metrics),
            "model": record.model.model_copy(update={"name": model, "fingerprint": fingerprint}),
            "efficiency": record.efficiency.model_copy(update={"samples_per_second": samples_per_second}),
        }
    )  # fmt: skip
    folder = runs / record.task.name / model / finished.replace(":", "")
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(changed.to_json())
    return record.task.name


def test_the_tree_tells_quality_and_speed_where_runs_do(catalog, base, place, tmp_path):
    steps = [
        {"name": "a", "recipe": "copy"},
        {"name": "b", "recipe": "copy", "options": {"strength": 2.0}},
        {"name": "c", "recipe": "copy", "from_step": "a", "options": {"strength": 3.0}},
    ]
    results = run_pipeline(catalog, pipeline(base, steps=steps), place)
    runs = tmp_path / "runs"
    last = results[-1].outcome.checkpoint.fingerprint
    task = write_run(runs, "older", last, finished="2026-01-01T00:00:00+00:00", value=0.1)
    write_run(runs, "renamed", last, finished="2026-01-02T00:00:00+00:00", value=0.25)
    write_run(runs, "partial", last, finished="2026-01-03T00:00:00+00:00", value=0.9, status="partial")
    write_run(runs, "another", "f" * 64, finished="2026-01-03T00:00:00+00:00", value=0.7)
    damaged = runs / task / "broken" / "x"
    damaged.mkdir(parents=True)
    (damaged / "run.json").write_text("{")
    assert [run.model.name for run in runs_by_fingerprint(runs)[last]] == ["renamed"]
    rows = tree_rows(catalog, pipeline(base, steps=steps), results, place, runs)
    assert [(row.name, row.depth) for row in rows] == [
        (str(base), 0),
        ("chain.a@0", 1),
        ("chain.b@0", 2),
        ("chain@0", 2),
    ]
    assert all(row.bytes_on_disk > 0 for row in rows)
    text = tree_text(rows, ["vqa-rad"])
    (line,) = (line for line in text.splitlines() if line.startswith("└─── chain@0"))
    assert "0.25" in line
    assert "8.0 samples/s" in line
    assert "mhe eval --model chain.b@0 --task vqa-rad" in text
    assert "mhe eval --model chain@0 " not in text


# ---------------------------------------------------------------- killed

DRIVER = """
import json, os, signal, sys
from pathlib import Path
from mhe.catalog import open_catalog
from mhe.documents.pipeline import PipelineSpec
from mhe.pipeline_runs import run_pipeline
from mhe.pipelines import StepPlace, run_step
from dataclasses import replace

spec = PipelineSpec.from_data(json.loads(Path(sys.argv[1]).read_text()), "spec")
place = StepPlace(directory=Path(sys.argv[2]), data_dir=Path(sys.argv[3]), offline=True)
victim = sys.argv[4]

def run(step):
    name = spec.steps[-1].name if step.name == spec.name else step.name.rpartition(".")[2]
    def report(phase, numbers):
        if name == victim and numbers.get("step", 0) >= 1 and phase != "plan":
            os.kill(os.getpid(), signal.SIGKILL)
    return run_step(catalog, step, replace(place, report=report))

catalog = open_catalog()
results = run_pipeline(catalog, spec, place, run=run)
print(json.dumps([[r.outcome.status, r.outcome.checkpoint.fingerprint] for r in results]))
"""


def test_killed_in_each_step_it_goes_on_to_the_same_weights(catalog, place, release, random_twins, tmp_path):
    options = {"max_steps": 2, "save_every": 1, "evaluate_every": 2, "batch_size": 4, "learning_rate": 1e-2}
    spec = chain(random_twins("tiny-llava"))
    for step in spec.steps[:2]:
        step.options.update(options)
    (tmp_path / "spec.json").write_text(spec.to_json())
    script = tmp_path / "drive.py"
    script.write_text(DRIVER)

    def drive(victim):
        arguments = [str(tmp_path / "spec.json"), str(place.directory), str(release), victim]
        return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=False)

    made = []
    for victim in ("full", "lora", "merged"):
        assert drive(victim).returncode == -signal.SIGKILL
        made.append(list_checkpoints(place.directory))
    assert made == [[], ["chain.full@0"], ["chain.full@0", "chain.lora@0"]]
    done = drive("nobody")
    assert done.returncode == 0, done.stderr[-2000:]
    killed = json.loads(done.stdout.splitlines()[-1])
    assert [status for status, _ in killed] == ["reused", "reused", "trained"]
    undisturbed = run_pipeline(catalog, spec, tune_cases.place_at(tmp_path / "undisturbed", release))
    # An adapter's folder says where its base lies, which differs here.
    for step in (0, 2):
        assert killed[step][1] == undisturbed[step].outcome.checkpoint.fingerprint
    assert not list((place.directory / ".work").iterdir()), "no work folder is left"


# ---------------------------------------------------------------- names and inputs


def test_a_pipeline_that_was_not_run_is_named_with_its_command(catalog, tmp_path):
    for name, command in (
        ("visiongpt2-staged", "mhe tune visiongpt2-staged$"),
        ("visiongpt2-staged@2", "mhe tune visiongpt2-staged --seed 2$"),
        ("mile-two-stage.original", "mhe tune mile-two-stage --until original$"),
        ("mile-two-stage.original@1", "mhe tune mile-two-stage --until original --seed 1$"),
    ):
        with pytest.raises(UserError, match=command):
            resolve_model(name, catalog, checkpoints_dir=tmp_path)
    with pytest.raises(UnknownNameError):
        resolve_model("mile-two-stages", catalog, checkpoints_dir=tmp_path)


def test_an_input_that_is_neither_step_nor_model_stops_before_training(catalog, base, place):
    steps = [{"name": "a", "recipe": "copy", "inputs": {"teacher": "no-such-model"}}]
    with pytest.raises(DocumentError, match=r"step a: input teacher: .*no-such-model"):
        run_pipeline(catalog, pipeline(base, steps=steps), place)
    late = [{"name": "a", "recipe": "copy"}, {"name": "b", "recipe": "copy", "inputs": {"teacher": "no-such-model"}}]
    with pytest.raises(DocumentError, match=r"step b: .*no-such-model"):
        check_pipeline(catalog, pipeline(base, steps=late), checkpoints_dir=place.directory)
    with pytest.raises(DocumentError, match=r"step b: .*no-such-model"):
        run_pipeline(catalog, pipeline(base, steps=late), place)
    assert CopyRecipe.calls == [], "found before the first step is run"


# ---------------------------------------------------------------- the command


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


def test_work_that_another_process_removes_meanwhile_is_passed_over(tmp_path, monkeypatch):
    gone, stale = (tmp_path / ".work" / name / "step.json" for name in ("abc", "old"))
    stale.parent.mkdir(parents=True)
    stale.write_text(json.dumps({"name": "mine", "seed": 0}), encoding="utf-8")
    monkeypatch.setattr(Path, "glob", lambda *_: iter([gone, stale]))
    plan = SimpleNamespace(step=SimpleNamespace(name="mine", seed=0))
    _remove_stale_work(plan, StepPlace(directory=tmp_path))
    assert not stale.parent.exists(), "the one after it is still removed"
    assert not gone.parent.exists()
