"""Steps: run once, shared, resumed, locked, and never written over by accident."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest

import tune_cases
from copy_recipe import CatalogWith, CopyRecipe
from mhe.catalog import open_catalog
from mhe.checkpoints import find_checkpoint, read_checkpoint
from mhe.documents.pipeline import TrainingChoice
from mhe.errors import BusyError, DocumentError, StorageError, UserError
from mhe.pipelines import Step, plan_step, preview_step, run_plan, run_step
from mhe.protocols import RecipeResult


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
    CopyRecipe.calls = []
    CopyRecipe.fault = None
    CopyRecipe.version = "1"


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release, command="mhe tune …")


def step(base, name="copied", **changes):
    made = Step(name=name, recipe="copy", base=tune_cases.model_at(base), data=(TrainingChoice(task="vqa-rad"),))
    return replace(made, **changes)


def test_a_step_leaves_a_checkpoint_with_its_provenance(catalog, base, place):
    done = run_step(catalog, step(base), place)
    found = read_checkpoint(done.folder)
    assert done.status == "trained"
    assert found == done.checkpoint
    assert found.files.keys() == {"model.safetensors", "config.json", "made.json"}
    assert found.parent == "base"
    assert found.lineage[0].recipe == "copy"
    assert found.data.dropped_pairs == 1
    assert found.data.train.samples == 21
    assert found.data.validation.samples == 2
    assert found.history == ({"step": 1.0, "loss": 2.0},)
    assert {p.name for p in done.folder.iterdir()} == {
        "checkpoint.json", "README.md", "history.json", "curve.svg", "model",
    }  # fmt: skip
    card = (done.folder / "README.md").read_text()
    assert "copy of `base` on vqa-rad@1 train" in card
    assert not list((place.directory / ".work").iterdir())


def test_an_equal_step_is_not_run_again(catalog, base, place):
    run_step(catalog, step(base), place)
    again = run_step(catalog, step(base), place)
    assert again.status == "reused"
    assert len(CopyRecipe.calls) == 1


def test_an_equal_step_is_shared_under_another_name(catalog, base, place):
    first = run_step(catalog, step(base), place)
    second = run_step(catalog, step(base, "other"), place)
    assert second.status == "linked"
    assert len(CopyRecipe.calls) == 1
    assert second.checkpoint.fingerprint == first.checkpoint.fingerprint
    shutil.rmtree(first.folder)
    assert (second.folder / "model" / "made.json").read_text() == "[1.0, 0]"
    assert read_checkpoint(second.folder).name == "other"


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {"strength": 2.0}},
        {"seed": 1},
        {"data": (TrainingChoice(task="vqa-rad", limit=10),)},
        {"data": ()},
    ],
)
def test_what_can_change_the_result_changes_the_digest(catalog, base, place, changes):
    assert plan_step(catalog, step(base), place).digest != plan_step(catalog, step(base, **changes), place).digest


def test_version_base_and_teacher_change_the_digest(catalog, base, place, tmp_path):
    digest = plan_step(catalog, step(base), place).digest
    CopyRecipe.version = "2"
    assert plan_step(catalog, step(base), place).digest != digest
    CopyRecipe.version = "1"
    other = shutil.copytree(base, tmp_path / "other")
    assert plan_step(catalog, step(other), place).digest == digest, "the same content at another path"
    (other / "model.safetensors").write_bytes(b"retrained")
    assert plan_step(catalog, step(other), place).digest != digest
    taught = step(base, inputs={"teacher": tune_cases.model_at(other)})
    assert plan_step(catalog, taught, place).digest != digest


def test_neutral_options_and_names_do_not_change_the_digest(catalog, base, place):
    digest = plan_step(catalog, step(base), place).digest
    assert plan_step(catalog, step(base, "else", settings={"chatty": True}), place).digest == digest


def test_another_step_does_not_replace_a_checkpoint(catalog, base, place):
    run_step(catalog, step(base), place)
    other = step(base, settings={"strength": 3.0})
    with pytest.raises(UserError, match="--replace"):
        run_step(catalog, other, place)
    assert len(CopyRecipe.calls) == 1
    replaced = run_step(catalog, other, replace(place, replace=True))
    assert (replaced.folder / "model" / "made.json").read_text() == "[3.0, 0]"
    assert [p.name for p in replaced.folder.parent.iterdir()] == ["0"]


def test_edited_weights_are_noticed(catalog, base, place):
    done = run_step(catalog, step(base), place)
    (done.folder / "model" / "model.safetensors").write_bytes(b"edited by hand")
    with pytest.raises(UserError, match=r"model\.safetensors changed"):
        run_step(catalog, step(base), place)
    other = run_step(catalog, step(base, "twin"), place)
    assert other.status == "trained", "changed files are not handed on"


def test_a_step_starts_from_the_one_before(catalog, base, place):
    first = run_step(catalog, step(base), place)
    second = run_step(catalog, replace(step(base, "second"), base=first.model), place)
    assert [entry.parent for entry in second.checkpoint.lineage] == ["copied@0", "base"]
    assert second.checkpoint.parent_fingerprint == first.checkpoint.fingerprint
    assert find_checkpoint("second", place.directory).lineage == second.checkpoint.lineage


def test_interrupted_work_is_kept_and_continued(catalog, base, place):
    said = []
    CopyRecipe.fault = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_step(catalog, step(base), place)
    assert not (place.directory / "copied").exists()
    CopyRecipe.fault = None
    run_step(catalog, step(base), replace(place, say=said.append))
    assert CopyRecipe.calls[0] == CopyRecipe.calls[1]
    assert any("continuing the interrupted training" in line for line in said)


def test_abandoned_attempts_at_a_name_are_removed(catalog, base, place):
    CopyRecipe.fault = RuntimeError("power cut")
    with pytest.raises(RuntimeError):
        run_step(catalog, step(base, settings={"strength": 9.0}), place)
    assert list((place.directory / ".work").glob("*/job/half.txt"))
    CopyRecipe.fault = None
    run_step(catalog, step(base), place)
    assert not list((place.directory / ".work").iterdir())


def test_a_full_disk_is_said_and_nothing_is_lost(catalog, base, place):
    CopyRecipe.fault = OSError(28, "No space left on device")
    with pytest.raises(StorageError, match="make room"):
        run_step(catalog, step(base), place)
    assert list((place.directory / ".work").glob("*/job/half.txt"))


def test_a_dry_run_writes_nothing(catalog, base, place):
    plan = plan_step(catalog, step(base), place)
    assert preview_step(catalog, plan, place).trainable_parameters == 5
    assert not place.directory.exists()


def test_all_bad_options_at_once_with_suggestions(catalog, base, place):
    with pytest.raises(DocumentError) as caught:
        plan_step(catalog, step(base, settings={"strenght": 1, "strength": -1}), place)
    assert "strenght: no such key. Did you mean strength?" in str(caught.value)
    assert "strength: Input should be greater than 0 (found -1)" in str(caught.value)


def test_a_result_outside_the_job_is_a_defect(catalog, base, place, monkeypatch):
    monkeypatch.setattr(CopyRecipe, "run", lambda self, job: RecipeResult(base, 1, 1))
    with pytest.raises(RuntimeError, match="no folder of its job"):
        run_step(catalog, step(base), place)
    assert base.is_dir()


def test_two_processes_do_not_train_one_step(catalog, base, place):
    plan = plan_step(catalog, step(base), place)
    work = place.directory / ".work" / plan.digest[:16]
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(f"""
            from pathlib import Path
            from mhe.run_folder import locked
            with locked(Path({str(work)!r}), "training"):
                print("held", flush=True)
                input()
        """)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=f"process {holder.pid}"):
            run_plan(catalog, plan, place)
        assert CopyRecipe.calls == []
    finally:
        holder.kill()
        holder.communicate()
    assert run_plan(catalog, plan, place).status == "trained", "a killed holder holds nothing"
