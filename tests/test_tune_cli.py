"""`mhe tune` as a person types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import tune_cases
from mhe.cli.main import main
from mhe.cli.tune import parse_options
from mhe.documents.pipeline import TrainingChoice
from mhe.errors import UserError
from mhe.training_data import load_training_set

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tune_cases.write_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def call(base, release, tmp_path, capfd):
    """Run `mhe tune` with the usual arguments and more; returns exit code, stdout, stderr."""

    def run(*more: str, task: str = "vqa-rad", name: str = "mine", recipe: str = "full"):
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main(arguments(base, release, tmp_path, *more, task=task, name=name, recipe=recipe))
        out, err = capfd.readouterr()
        return done.value.code, out, err

    return run


def arguments(base, release, root, *more, task="vqa-rad", name="mine", recipe="full"):
    return [
        "tune", "--model", str(base), "--recipe", recipe, "--task", task, "--name", name, "--data-dir", str(release),
        "--checkpoints-dir", str(root / "checkpoints"), "--offline", "--set", "batch_size=4", "--set",
        "learning_rate=1e-3", *more,
    ]  # fmt: skip


def test_three_seeds_as_one_json_document_and_nothing_again(call, tmp_path):
    code, out, err = call("--seeds", "3", "--set", "max_steps=2", "--json")
    found = json.loads(out)["checkpoints"]
    assert code == 0
    assert [(c["name"], c["seed"], c["status"]) for c in found] == [("mine", seed, "trained") for seed in range(3)]
    assert len({c["fingerprint"] for c in found}) == 3
    assert "1 training pair(s) dropped" in err
    assert "3 image(s) of the training data are in the evaluated split" in err
    assert "language: " in err
    code, out, err = call("--seed", "1", "--set", "max_steps=2")
    assert code == 0
    assert "mine@1: reused" in out
    assert "mhe eval --model mine@1" in err
    code, out, err = call("--seed", "1", "--set", "max_steps=3")
    assert code == 2
    assert "--replace" in err


def test_a_dry_run_tells_and_writes_nothing(call, tmp_path):
    code, out, _ = call("--dry-run", "--set", "vision=frozen", "--json")
    plan = json.loads(out)["steps"][0]
    assert code == 0
    assert plan["modules"]["vision"]["trainable"] == 0 < plan["modules"]["language"]["trainable"]
    assert plan["dropped_pairs"] == 1
    assert any("steps" in note for note in plan["notes"])
    assert not (tmp_path / "checkpoints").exists()


def test_all_bad_settings_at_once(call):
    code, _, err = call("--set", "epoch=3", "--set", "vision=half", "--set", "warmup=2")
    assert code == 2
    assert "3 problems" in err
    assert "Did you mean epochs?" in err
    assert "vision: Input should be 'frozen' or 'full'" in err


@pytest.mark.parametrize(
    ("more", "names", "message"),
    [
        ((), {"recipe": "ful"}, "Did you mean 'full'?"),
        ((), {"task": "vqa-rat"}, "Did you mean 'vqa-rad'?"),
        ((), {"name": "Mine!"}, "--name 'Mine!'"),
        ((), {"name": "mine@1"}, "--seed"),
        (("--split", "test"), {}, "what boards evaluate"),
        (("--split", "tset"), {}, "Did you mean 'test'?"),
        (("--limit", "0"), {}, "--limit 0"),
        (("--fraction", "0"), {}, "--fraction 0: give more than 0 and at most 1"),
        (("--fraction", "1.5"), {}, "--fraction 1.5: give more than 0 and at most 1"),
        (("--fraction", "nan"), {}, "--fraction nan: give more than 0 and at most 1"),
        (("--weight", "2"), {}, "--weight 2: write TASK=NUMBER, such as vqa-rad=2"),
        (("--weight", "vqa-rat=2"), {}, "no --task 'vqa-rat' is learnt. Did you mean 'vqa-rad'?"),
        (("--weight", "vqa-rad=0"), {}, "--weight vqa-rad=0: give a number above 0"),
        (("--weight", "vqa-rad=inf"), {}, "--weight vqa-rad=inf: give a number above 0"),
        (("--weight", "vqa-rad=twice"), {}, "--weight vqa-rad=twice: give a number above 0"),
        (("--weight", "vqa-rad=2", "--weight", "vqa-rad=3"), {}, "the weight of vqa-rad is given twice"),
        (("--seeds", "0", "--seed", "-1"), {}, "--seed -1"),
        (("--set", "max_steps"), {}, "write KEY=VALUE"),
    ],
)
def test_mistakes_leave_with_2_and_what_to_type(call, more, names, message):
    code, out, err = call(*more, **names)
    assert code == 2
    assert message in err
    assert out == ""


@pytest.mark.parametrize(
    "of_data", [("--limit", "10"), ("--split", "train"), ("--fraction", "0.1"), ("--weight", "slake=2")], ids=" ".join
)
def test_what_says_how_much_data_needs_a_task(of_data, capfd):
    with pytest.raises(SystemExit) as done:
        main(["tune", "mile-two-stage", *of_data, "--dry-run"])
    assert done.value.code == 2
    assert "--task" in capfd.readouterr().err


def test_all_that_is_wrong_with_the_data_is_told_at_once(call):
    code, _, err = call("--limit", "-1", "--fraction", "2", "--weight", "slake=1", "--weight", "vqa-rad=-1")
    assert code == 2
    for wrong in ("--limit -1", "--fraction 2", "--weight slake=1", "--weight vqa-rad=-1"):
        assert wrong in err


def test_a_fraction_and_weights_are_those_of_the_training_data(call, catalog, release, tmp_path):
    """As a pipeline would have them; `tests/test_tune_data.py` says what they do."""
    content = catalog.task("vqa-rad").model_dump(mode="json")
    # Each task's test is the other's too, so its images are declared by neither: evaluated on images of its own.
    data = tmp_path / "apart"
    shutil.copytree(release, data)
    rows = json.loads((data / "VQA_RAD Dataset Public.json").read_text())
    for row in rows:
        if row["phrase_type"] == "test_freeform":
            picture = (data / "images" / row["image_name"]).read_bytes() + row["qid"].encode()
            row["image_name"] = f"test{row['qid']}.png"
            (data / "images" / row["image_name"]).write_bytes(picture)
    (data / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    # The sign between task and number is in the path as well.
    task = tmp_path / "twin=2" / "task.yaml"
    task.parent.mkdir()
    task.write_text(yaml.safe_dump({**content, "name": "twin"}), encoding="utf-8")
    mixed = ["--task", str(task), "--fraction", "0.5", "--weight", f"{task}=0.5", "--weight", "vqa-rad=2.5"]
    code, out, err = call(*mixed, "--data-dir", str(data), "--seed", "3", "--dry-run", "--json")
    assert code == 0, err
    choices = [
        TrainingChoice(task="vqa-rad", fraction=0.5, weight=2.5),
        TrainingChoice(task=str(task), fraction=0.5, weight=0.5),
    ]
    wanted = load_training_set(catalog, choices, seed=3, data_dir=data, offline=True)
    (plan,) = json.loads(out)["steps"]
    assert (plan["train"], plan["validation"]) == (len(wanted.train), len(wanted.validation))
    for plain in (["--task", str(task)], mixed[:4], [*mixed[:2], *mixed[4:]], [*mixed[:4], *mixed[6:]]):
        code, out, err = call(*plain, "--data-dir", str(data), "--seed", "3", "--dry-run", "--json")
        assert code == 0, err
        assert json.loads(out)["steps"][0]["train"] != plan["train"], "each option counts"


def test_progress_tells_losses_rate_speed_time_left_and_memory(call, monkeypatch):
    monkeypatch.setattr("mhe.cli.progress.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("mhe_hf.training.watching.SECONDS_BETWEEN_REPORTS", 0.0)
    code, _, err = call("--set", "max_steps=3", "--set", "evaluate_every=1", "--set", "best_by=accuracy", name="told")
    assert code == 0
    told = r"loss [\d.]+, validation [\d.]+, validation accuracy [\d.]+, rate \S+, [\d.]+ samples/s, at most [\d.]+ \S+"
    lines = [line for line in err.splitlines() if line.startswith("told@0: train")]
    assert re.search(told + r" 3/3, [\d.]+/s, 0 s left", lines[-1]), lines


def test_trackers_are_told_through_the_trainers_own_report_to(call, tmp_path, monkeypatch):
    from transformers import TrainerCallback
    from transformers.integrations import integration_utils

    logged = []

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **more):
            logged.append((state.global_step, dict(logs)))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    monkeypatch.setattr(integration_utils, "get_available_reporting_integrations", lambda: ["tensorboard"])
    code, _, _ = call("--set", "max_steps=2", "--set", "trackers=[tensorboard]", name="tracked")
    assert code == 0
    assert [step for step, logs in logged if "loss" in logs] == [1, 2]
    assert any("eval_loss" in logs for _, logs in logged)
    code, _, err = call("--set", "max_steps=2", "--set", "trackers=[wandb]", name="tracked")
    assert code == 0
    assert "finished already" in err, "a tracker does not change the result"
    code, _, err = call("--set", "max_steps=1", "--set", "trackers=[wandb]", name="untracked")
    assert code == 2
    assert "pip install wandb" in err
    code, _, err = call("--set", "max_steps=1", "--set", "trackers=[tensorbord]", name="untracked")
    assert code == 2
    assert "Did you mean 'tensorboard'?" in err


def test_settings_are_read_as_values():
    assert parse_options(["a=1e-4", "b=true", "c=[x, y]", "d=cosine", "e=null"]) == {
        "a": 1e-4, "b": True, "c": ["x", "y"], "d": "cosine", "e": None,
    }  # fmt: skip
    with pytest.raises(UserError, match="given twice"):
        parse_options(["a=1", "a=2"])
    with pytest.raises(UserError, match="not a YAML value"):
        parse_options(["a=[1"])


def test_ctrl_c_is_clean_and_resumable(base, release, tmp_path, call):
    more = ["--set", "max_steps=400", "--set", "save_every=2", "--set", "evaluate_every=100"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "mhe.cli.main", *arguments(base, release, tmp_path, *more)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list((tmp_path / "checkpoints").glob(".work/*/job/checkpoint-4/mhe_saved.json")):
        assert worker.poll() is None, worker.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.send_signal(signal.SIGINT)
    out, err = worker.communicate(timeout=60)
    assert worker.returncode == 130
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert out == ""
    assert list(Path(tmp_path / "checkpoints").glob(".work/*/job/checkpoint-*"))
