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
from mhe.errors import FirstProcessGoneError, UserError
from mhe.pipelines import run_step
from mhe.processes import Processes, first_process_speaks, launched_processes, wait_for_first

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
