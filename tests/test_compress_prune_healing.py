"""What comes after pruning, and what comes between: adapters and training on the result, kill -9, a restart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prune_cases as cases
import tune_cases
from mhe import UserError
from mhe.digests import file_digest
from mhe.documents.pipeline import TrainingChoice
from mhe.pipelines import Step, plan_step, run_step

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=4)


def tune(catalog, base, recipe, folder, release, **settings):
    quick = {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-2, **settings}
    step = Step(
        name=f"after-{recipe}", recipe=recipe, base=base, settings=quick, data=(TrainingChoice(task="vqa-rad"),)
    )
    return run_step(catalog, step, tune_cases.place_at(folder, release))


PRUNED = {
    "plain": ("tiny-llava", {}),
    "a class of ours": ("tiny-qwen2-vl", {"vision_heads": 0.3}),
    "fused GPT-2": ("tiny-visiongpt2", {}),
}


@pytest.mark.parametrize("kind", PRUNED)
def test_lora_heals_on_top_of_it(kind, catalog, random_twins, release, tmp_path):
    twin, settings = PRUNED[kind]
    pruned = run_step(catalog, cases.step_on(random_twins(twin), **settings), cases.place_at(tmp_path))
    healed = tune(catalog, pruned.model, "lora", tmp_path, release, rank=2, vision="frozen", fusion="frozen")
    assert healed.checkpoint.needs_class == pruned.checkpoint.needs_class
    if kind != "plain":
        assert healed.checkpoint.loads_in == ()
    assert [entry.recipe for entry in healed.checkpoint.lineage] == ["lora", "prune"]
    before, processor = cases.loaded(pruned.model)
    after, own = cases.loaded(healed.model)
    moved = cases.logits(after, own) - cases.logits(before, processor)
    assert float(moved.abs().max()) > 1e-4, "the adapter is there and does something"


def test_full_training_keeps_the_class(catalog, random_twins, release, tmp_path):
    pruned = run_step(catalog, cases.step_on(random_twins("tiny-qwen2-vl")), cases.place_at(tmp_path))
    trained = tune(catalog, pruned.model, "full", tmp_path, release, vision="frozen")
    assert trained.checkpoint.needs_class == "mhe_compress.PrunedQwen2VLForConditionalGeneration"
    assert trained.checkpoint.loads_in == ()
    assert trained.checkpoint.parameters == pruned.checkpoint.parameters
    model, _ = cases.loaded(trained.model)
    assert type(model).__name__ == "PrunedQwen2VLForConditionalGeneration"


def test_an_adapter_is_refused_with_what_to_do(catalog, random_twins, release, tmp_path):
    base = cases.spec_at(random_twins("tiny-llava"))
    adapted = tune(catalog, base, "lora", tmp_path, release, rank=2, vision="frozen", fusion="frozen")
    with pytest.raises(UserError, match=r"an adapter on .*put the two together first,\s+mhe tune .*--recipe merge"):
        run_step(catalog, cases.step_on(adapted.model), cases.place_at(tmp_path))


# ---------------------------------------------------------------- accidents


def files_of(folder: Path) -> dict[str, str]:
    found = {path.name: file_digest(path) for path in sorted(folder.iterdir())}
    assert "model.safetensors" in found
    return found


def command(base: Path, checkpoints: Path) -> list[str]:
    return [
        sys.executable, "-m", "mhe.cli.main", "tune", "--model", str(base), "--recipe", "prune", "--name", "pruned",
        "--checkpoints-dir", str(checkpoints), "--set", "device=cpu", "--offline",
    ]  # fmt: skip


def test_killed_while_it_writes_and_run_again_it_makes_the_same_bytes(catalog, random_twins, tmp_path):
    base = random_twins("tiny-qwen2-vl")
    undisturbed = run_step(catalog, cases.step_on(base), cases.place_at(tmp_path / "whole"))
    place = tmp_path / "killed"
    environment = {**os.environ, "MHE_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command(base, place), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until = time.monotonic() + 120
        while process.poll() is None and not list(place.glob(".work/*/job/pruning.json")):
            assert time.monotonic() < until
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert not (place / "pruned" / "0" / "checkpoint.json").exists(), "it was killed before the end"
    left = list(place.glob(".work/*/job"))
    assert left
    # The worst that a kill can leave: half a file under the name of a whole one.
    (left[0] / "model").mkdir(exist_ok=True)
    (left[0] / "model" / "model.safetensors").write_bytes(b"half")
    (left[0] / "model" / "model-00001-of-00002.safetensors").write_bytes(b"half")
    again = subprocess.run(command(base, place), env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert files_of(place / "pruned" / "0" / "model") == files_of(undisturbed.folder / "model")
    assert not list(place.glob(".work/*/job"))


def test_the_same_call_is_not_run_again_and_another_is_another_step(catalog, random_twins, tmp_path):
    base = random_twins("tiny-llava")
    place = cases.place_at(tmp_path)
    first = run_step(catalog, cases.step_on(base), place)
    assert run_step(catalog, cases.step_on(base), place).status == "reused"
    preset = plan_step(catalog, cases.step_on(base, preset="neto2025-prune"), place)
    assert preset.digest == first.checkpoint.step_digest, "the preset's values are the defaults, written out"
    assert plan_step(catalog, cases.step_on(base, heads=0.25), place).digest != preset.digest
