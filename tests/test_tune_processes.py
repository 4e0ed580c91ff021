"""Several processes train together: torchrun and accelerate start them, and one of them writes and speaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import tune_cases
from mhe.catalog import open_catalog
from mhe.documents.pipeline import TrainingChoice
from mhe.errors import FirstProcessGoneError, UserError
from mhe.model_names import resolve_model
from mhe.pipelines import run_step
from mhe.processes import Processes, first_process_speaks, launched_processes, wait_for_first
from mhe.protocols import BackendContext
from mhe.training_data import load_training_set
from mhe.validation_scores import TaskScorer
from mhe_tiny import MODELS

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

QUICK = {
    "batch_size": 4, "max_steps": 4, "keep": "last", "learning_rate": 1e-3, "warmup": 0, "save_every": 2,
    "evaluate_every": 4, "dropout": 0.0,
}  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# Without a GPU this is how accelerate starts two processes; what it calls the hardware does not reach the training.
ACCELERATE = [
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
    "--mixed_precision", "no", "--dynamo_backend", "no",
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from mhe_tiny.build import build_folder

    folder = tmp_path_factory.mktemp("twin") / "tiny-llava"
    build_folder("tiny-llava", folder)
    return folder


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=9, repeat=False)


def command(launcher, base, release, checkpoints, *more, **settings):
    chosen = [f"--set={key}={value}" for key, value in {**QUICK, **settings}.items()]
    return [
        *launcher, "-m", "mhe.cli.main", "tune", "--model", str(base), "--recipe", "lora", "--task", "vqa-rad",
        "--name", "two", "--data-dir", str(release), "--checkpoints-dir", str(checkpoints), "--offline", *chosen, *more,
    ]  # fmt: skip


def environment():
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    return {**clean, "OMP_NUM_THREADS": "1"}


def launch(words):
    return subprocess.run(words, capture_output=True, text=True, timeout=240, env=environment(), check=False)


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "language" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def together(base, release, tmp_path_factory):
    """A training by two processes: accelerate starts it, the first process is killed, torchrun brings it to its end."""
    root = tmp_path_factory.mktemp("together")
    words = command(ACCELERATE, base, release, root, save_every=1)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()) as started:
        deadline = time.monotonic() + 200
        while not (marks := list(root.glob(".work/*/job/checkpoint-*/mhe_saved.json"))):
            assert started.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, "it never came to a save"
            time.sleep(0.005)
        (lock,) = root.glob(".work/two@0/lock")
        os.kill(int(lock.read_text().split()[1]), signal.SIGKILL)
        assert started.wait(timeout=60) != 0, "the others end with the first process"
    assert not (root / "two" / "0").exists()
    assert {path.name for path in marks[0].parent.glob("rng_state_*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    return root, launch(command(TORCHRUN, base, release, root, "--json", save_every=1))


def test_two_processes_equal_one_at_the_same_batch(together, base, release, tmp_path):
    root, done = together
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = json.loads(done.stdout)["checkpoints"]
    assert "trained by 2 processes together" in made["notes"]
    step = replace(tune_cases.step_on(base), recipe="lora", settings={**QUICK, "batch_size": 8})
    place = tune_cases.place_at(tmp_path, release)
    alone = run_step(open_catalog(), step, place)
    assert alone.checkpoint.step_digest != made["step_digest"]
    half = run_step(open_catalog(), replace(step, name="half", settings=QUICK), place)
    ours, theirs, other = (adapter(f) for f in (root / "two" / "0", alone.folder, half.folder))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[key], theirs[key], atol=2e-5) for key in ours)
    # One process that saw half as many examples ended elsewhere, so there were two.
    assert max(float((ours[key] - other[key]).abs().max()) for key in ours) > 1e-3
    losses = [[e["loss"] for e in history if "loss" in e] for history in (made["history"], alone.checkpoint.history)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_one_process_speaks_and_nothing_is_left_behind(together):
    root, done = together
    assert done.stderr.count("training on 16 pairs") == 1
    assert done.stderr.count("continuing the interrupted training") == 1
    assert done.stderr.count("together: ") == 1
    assert not list((root / ".work").iterdir())
    assert sorted(path.name for path in (root / "two" / "0").iterdir()) == [
        "README.md", "checkpoint.json", "curve.svg", "history.json", "model",
    ]  # fmt: skip


# A high rate, so that the metric moves; five samples, so that one process answers more of them than the other.
CHOSEN = {
    "batch_size": 2, "max_steps": 8, "learning_rate": 2e-3, "scheduler": "constant", "save_every": 1,
    "evaluate_every": 1, "keep": "best", "patience": 2, "best_by": "token-f1", "best_by_samples": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Six images, of twelve questions, are validated on."""
    return tune_cases.write_release(tmp_path_factory.mktemp("many") / "vqa_rad", images=120)


@pytest.fixture(scope="module")
def chosen(many, tmp_path_factory):
    """The best of a training by two processes, which share the samples that weights are chosen by."""
    root = tmp_path_factory.mktemp("chosen")
    done = launch(command(TORCHRUN, MODELS / "tiny-llava", many, root, "--json", **CHOSEN))
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = json.loads(done.stdout)["checkpoints"]
    return root, made


def metric_of(history):
    return {int(entry["step"]): entry["eval_token-f1"] for entry in history if "eval_token-f1" in entry}


def test_two_processes_choose_the_best_by_a_metric_and_stop_together(chosen):
    _, made = chosen
    assert "trained by 2 processes together" in made["notes"]
    found = metric_of(made["history"])
    assert len(set(found.values())) > 1, "a metric that never moves proves nothing"
    last = max(found)
    assert sorted(found) == list(range(1, last + 1))
    best = max(found, key=lambda step: (found[step], step))
    note = f"weights of step {best} of {last}, with the highest token-f1 of answers to 5 validation samples, "
    assert f"{note}{found[best]:.4f}" in made["notes"]
    first = min(step for step in found if found[step] == found[best])
    assert last == 8 or last - first >= CHOSEN["patience"], "patience was at its end, for both"


def test_the_answers_of_both_processes_are_in_the_metric(chosen, many, tmp_path):
    """A backend that answers all five from the written files finds the value that the weights were kept for."""
    from mhe_hf import HfBackend, HfOptions

    root, made = chosen
    catalog = open_catalog()
    data = load_training_set(catalog, (TrainingChoice(task="vqa-rad"),), seed=0, data_dir=many, offline=True)
    scorer = TaskScorer(catalog, data.tasks, data.validation, 0)
    requests = scorer.requests(5)
    context = BackendContext(offline=True, cache_dir=tmp_path, training_samples=list)
    backend = HfBackend(resolve_model("two", catalog, checkpoints_dir=root), HfOptions(device="cpu"), context)
    backend.load()
    responses = {r.sample_id: r for r in backend.generate(requests, {r.sample_id for r in requests})}
    backend.close()
    assert len(responses) == 5
    value = scorer.score("token-f1", list(responses.values()))
    assert value == pytest.approx(max(metric_of(made["history"]).values()), abs=1e-9)
    # Of either process alone it would be another number.
    halves = [scorer.score("token-f1", [responses[r.sample_id] for r in requests[n::2]]) for n in range(2)]
    assert all(abs(half - value) > 1e-6 for half in halves)


def test_accelerate_on_a_cpu_is_not_taken_at_its_word(base, release, tmp_path):
    """`--num_processes 2 --cpu` starts one."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = launch(command(launcher, base, release, tmp_path))
    assert done.returncode != 0
    assert "started only this one" in done.stderr
    assert "torchrun --nproc_per_node 2" in done.stderr
    assert not list(tmp_path.iterdir())


def test_who_this_process_is():
    assert launched_processes({}) == Processes(0, 1)
    assert launched_processes({"WORLD_SIZE": "1"}) == Processes(0, 1)
    assert launched_processes({"RANK": "1", "WORLD_SIZE": "2"}) == Processes(1, 2)
    # One process through accelerate is one process.
    assert launched_processes({"ACCELERATE_MIXED_PRECISION": "no"}) == Processes(0, 1)
    for wrong in ({"RANK": "2", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}):
        with pytest.raises(UserError, match="name no process of a group"):
            launched_processes(wrong)


def test_only_the_first_speaks(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with first_process_speaks():
            print(f"process {rank}")
            print(f"process {rank}", file=sys.stderr)
    told = capsys.readouterr()
    assert told.out == told.err == "process 0\n"


def test_waiting_ends_with_the_first_process(monkeypatch):
    monkeypatch.setattr("mhe.processes.GRACE_SECONDS", 0.05)
    answers = iter([None, None, "made"])
    assert wait_for_first(lambda: next(answers), lambda: True, pause=0) == "made"
    with pytest.raises(FirstProcessGoneError, match="ended without a checkpoint"):
        wait_for_first(lambda: None, lambda: False, pause=0.01)


def test_a_recipe_for_one_process_is_refused_in_several(base, release, tmp_path, monkeypatch):
    from mhe_hf.training.options import TrainingOptions

    monkeypatch.setattr(TrainingOptions, "may_share", False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="works in one process, and 2 were started"):
        run_step(open_catalog(), tune_cases.step_on(base), tune_cases.place_at(tmp_path, release))
