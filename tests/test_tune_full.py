"""Recipe `full`: learns, freezes to the bit, repeats itself to the byte, survives kills, NaN and full memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tune_cases
from mhe.checkpoints import find_checkpoint
from mhe.errors import UserError
from mhe.pipelines import plan_step, preview_step, run_plan, run_step

torch = pytest.importorskip("torch")

WEIGHTS = "model/model.safetensors"


pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tune_cases.write_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


@pytest.fixture(scope="module")
def tuned(catalog, base, release, tmp_path_factory):
    """A finished training, shared by the tests that only look at it."""
    reports = []
    where = tune_cases.place_at(
        tmp_path_factory.mktemp("tuned"), release, report=lambda phase, numbers: reports.append((phase, dict(numbers)))
    )
    return run_step(catalog, tune_cases.step_on(base), where), where, reports


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def module_of(name: str) -> str:
    return "vision" if "vision_tower" in name else "fusion" if "multi_modal_projector" in name else "language"


def same_names(found: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("vision_tower.vision_model.", "vision_tower."): value for name, value in found.items()}


def test_loss_falls_and_the_curve_is_recorded(tuned):
    outcome, _, reports = tuned
    history = json.loads((outcome.folder / "history.json").read_text())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 8
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert [entry["step"] for entry in history if "eval_loss" in entry] == [4.0, 8.0]
    assert (outcome.folder / "curve.svg").read_text().startswith("<svg")
    assert reports[0][0] == "plan"
    assert reports[0][1]["trainable"] == outcome.checkpoint.trainable_parameters
    last = reports[-1][1]
    assert last["step"] == last["steps"] == 8
    assert {"loss", "learning_rate", "samples_per_second", "seconds_left"} <= last.keys()


def test_cost_and_shares_are_recorded(tuned, base):
    made = tuned[0].checkpoint
    assert made.parameters == made.trainable_parameters == sum(t.numel() for t in tensors(base).values())
    assert [share.name for share in made.modules] == ["vision", "fusion", "language"]
    assert made.cost.seconds > 0
    assert made.cost.peak_host_bytes > 1 << 20
    assert made.cost.device == "cpu"
    assert "computed in fp32" in made.notes


def test_published_key_names(tuned):
    names = tensors(tuned[0].folder / "model")
    vision = [name for name in names if name.startswith("vision_tower.")]
    assert vision
    assert all(name.startswith("vision_tower.vision_model.") for name in vision)


def test_loads_in_plain_transformers_in_a_fresh_process(tuned):
    code = (
        "import sys; from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "m, i = AutoModelForImageTextToText.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "AutoProcessor.from_pretrained(sys.argv[1])\n"
        "assert not i['missing_keys'] and not i['unexpected_keys'], i\n"
        "assert not any(n.split('.')[0].startswith('mhe') for n in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tuned[0].model.location], capture_output=True, text=True, timeout=120,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_its_own_checkpoint_can_be_trained_further(tuned, catalog, release, tmp_path):
    outcome, where, _ = tuned
    parent = find_checkpoint("tuned", where.directory)
    step = replace(tune_cases.step_on(Path(parent.location), "further", max_steps=2), base=parent)
    done = run_step(catalog, step, tune_cases.place_at(tmp_path, release))
    assert [entry.parent for entry in done.checkpoint.lineage] == ["tuned@0", "base"]
    assert done.checkpoint.parent_fingerprint == outcome.checkpoint.fingerprint


@pytest.mark.parametrize("trained", [("fusion",), ("language",), ("vision", "fusion")])
def test_frozen_modules_keep_every_bit(catalog, base, place, trained):
    choices = {m: "full" if m in trained else "frozen" for m in ("vision", "fusion", "language")}
    done = run_step(catalog, tune_cases.step_on(base, max_steps=2, **choices), place)
    before, after = same_names(tensors(base)), same_names(tensors(done.folder / "model"))
    assert before.keys() == after.keys()
    changed = {module_of(name) for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(trained)
    shares = {share.name: share for share in done.checkpoint.modules}
    assert {name for name, share in shares.items() if share.trainable} == set(trained)


def test_nothing_to_train_is_an_error(catalog, base, place):
    step = tune_cases.step_on(base, vision="frozen", fusion="frozen", language="frozen")
    with pytest.raises(UserError, match="nothing would be trained"):
        preview_step(catalog, plan_step(catalog, step, place), place)


def test_unknown_parameters_list_the_modules(base):
    from transformers import AutoModelForImageTextToText

    from mhe import Architecture
    from mhe_hf.training.modules import set_trainable

    model = AutoModelForImageTextToText.from_pretrained(base)
    table = {"llava": Architecture("llava", ("model.vision_tower",), (), ("lm_head",))}
    with pytest.raises(UserError, match=r"Modules found: model, model\.vision_tower"):
        set_trainable(model, {"vision": "full"}, table)


def test_same_seed_same_bytes_and_another_seed_others(tuned, catalog, base, release, tmp_path):
    first = (tuned[0].folder / WEIGHTS).read_bytes()
    again = run_step(catalog, tune_cases.step_on(base), tune_cases.place_at(tmp_path / "again", release))
    other = run_step(catalog, tune_cases.step_on(base, seed=1), tune_cases.place_at(tmp_path / "other", release))
    assert (again.folder / WEIGHTS).read_bytes() == first
    assert (other.folder / WEIGHTS).read_bytes() != first


@pytest.mark.parametrize("when", ["checkpoint-2/mhe_saved.json", "best.json", "checkpoint-8/trainer_state.json"])
def test_killed_and_continued_ends_in_the_same_bytes(tuned, catalog, base, release, tmp_path, when):
    root = tmp_path / "checkpoints"
    script = (
        "import sys, torch; torch.set_num_threads(2); sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; import tune_cases\n"
        "from mhe.catalog import open_catalog; from mhe.pipelines import run_step\n"
        "run_step(open_catalog(), tune_cases.step_on(Path(sys.argv[2])), "
        "tune_cases.place_at(Path(sys.argv[3]), Path(sys.argv[4])))\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(base), str(root), str(release)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(root.glob(f".work/*/job/{when}")) and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert worker.returncode == -signal.SIGKILL, "it was killed while it worked"
    assert not (root / "tuned" / "0").exists()
    said = []
    done = run_step(catalog, tune_cases.step_on(base), tune_cases.place_at(root, release, say=said.append))
    assert any("continuing" in line for line in said)
    assert (done.folder / WEIGHTS).read_bytes() == (tuned[0].folder / WEIGHTS).read_bytes()
    ours, theirs = (json.loads((f / "history.json").read_text()) for f in (done.folder, tuned[0].folder))
    assert [e["step"] for e in ours] == [e["step"] for e in theirs]


def test_the_best_weights_are_the_result(catalog, base, place):
    step = tune_cases.step_on(base, learning_rate=0.3, evaluate_every=1, max_steps=6, scheduler="constant", warmup=0)
    done = run_step(catalog, step, place)
    losses = {e["step"]: e["eval_loss"] for e in done.checkpoint.history if "eval_loss" in e}
    best = min(losses, key=losses.get)
    assert any(f"weights of step {best:.0f} of 6" in note for note in done.checkpoint.notes)
    last = run_step(catalog, replace(step, name="last", settings={**step.settings, "keep": "last"}), place)
    same = (last.folder / WEIGHTS).read_bytes() == (done.folder / WEIGHTS).read_bytes()
    assert same == (best == 6)


def test_patience_ends_a_training_that_does_not_improve(catalog, base, place):
    step = tune_cases.step_on(
        base, learning_rate=1.0, evaluate_every=1, max_steps=30, patience=2, scheduler="constant", warmup=0
    )
    done = run_step(catalog, step, place)
    steps = [e["step"] for e in done.checkpoint.history if "eval_loss" in e]
    assert len(steps) < 30
    losses = [e["eval_loss"] for e in done.checkpoint.history if "eval_loss" in e]
    assert len(losses) - 1 - losses.index(min(losses)) == 2


def test_a_loss_that_is_no_number_stops_and_names_step_and_samples(catalog, base, place, monkeypatch):
    from mhe_hf.training import watching

    original = watching.Trainer.compute_loss

    def broken(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = original(self, model, inputs, return_outputs, num_items_in_batch)
        return found * float("nan") if model.training and self.state.global_step == 5 else found

    monkeypatch.setattr(watching.Trainer, "compute_loss", broken)
    with pytest.raises(UserError, match=r"the loss is nan at step 6, on the samples .*best weights so far .step 4"):
        run_step(catalog, tune_cases.step_on(base), place)
    assert list(place.directory.glob(".work/*/job/best.safetensors"))
    assert not (place.directory / "tuned" / "0").exists()


def test_broken_gradients_stop_before_the_step(catalog, base, place):
    with pytest.raises(UserError, match=r"(the loss|norm of the gradients) is (nan|inf) at step \d"):
        run_step(catalog, tune_cases.step_on(base, learning_rate=1e30, max_grad_norm=1e30), place)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory: 9 GB")]
)
def test_full_memory_says_what_to_lower(catalog, base, place, monkeypatch, error):
    from mhe_hf.training import watching

    def full(*_arguments, **_more):
        raise error

    monkeypatch.setattr(watching.Trainer, "training_step", full)
    with pytest.raises(UserError, match="--set batch_size=2 --set gradient_accumulation=2"):
        run_step(catalog, tune_cases.step_on(base), place)


def test_an_unreadable_image_names_the_sample(catalog, base, tmp_path):
    data = tune_cases.write_release(tmp_path / "vqa_rad")
    for path in (data / "images").iterdir():
        path.write_bytes(path.read_bytes()[:60] + path.name.encode())
    with pytest.raises(UserError, match=r"(?s)training sample \d+: image .*`broken`"):
        run_step(catalog, tune_cases.step_on(base), tune_cases.place_at(tmp_path / "c", data))


def test_a_quantised_base_is_refused(catalog, base, place):
    step = tune_cases.step_on(base)
    spec = step.base.model_copy(update={"options": {"quantization": "nf4"}})
    with pytest.raises(UserError, match="quantised"):
        run_step(catalog, replace(step, base=spec), place)


def test_questions_of_one_image_share_a_sequence(catalog, base, place):
    from mhe_hf.training.batches import Rows, group_by_image

    step = tune_cases.step_on(base, questions_per_row=2, max_steps=2)
    plan = plan_step(catalog, step, place)
    rows = group_by_image(plan.data.train, 2, 0)
    assert sorted(number for row in rows for number in row) == list(range(len(plan.data.train)))
    assert {len(row) for row in rows} == {1, 2}
    for row in rows:
        assert len({plan.data.train[number].request.images for number in row}) == 1
    assert len(Rows(plan.data.train, 2, 0)) == len(rows) < len(plan.data.train)
    assert run_plan(catalog, plan, place).status == "trained"


def test_padded_rows_equal_the_processors_own_batch(catalog, base, place):
    from mhe_hf import collate_training, load_processor
    from mhe_hf.training.batches import EXAMPLE_INDEX, RowCollator

    examples = plan_step(catalog, tune_cases.step_on(base), place).data.train[:5]
    processor = load_processor(tune_cases.model_at(base))
    ours = RowCollator(processor)([(number, (example,)) for number, example in enumerate(examples)])
    assert ours.pop(EXAMPLE_INDEX).tolist() == [0, 1, 2, 3, 4]
    theirs = collate_training(examples, processor)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_a_row_beyond_the_context_is_divided(catalog, base, place):
    from mhe_hf import load_processor
    from mhe_hf.training.batches import RowCollator

    examples = plan_step(catalog, tune_cases.step_on(base), place).data.train
    pair = tuple(e for e in examples if e.request.images == examples[-1].request.images)
    assert len(pair) == 2
    processor = load_processor(tune_cases.model_at(base))
    alone = max(RowCollator(processor)([(0, (example,))])["input_ids"].shape[1] for example in pair)
    assert RowCollator(processor, context=alone)([(0, pair)])["input_ids"].shape[0] == 2
    assert RowCollator(processor)([(0, pair)])["input_ids"].shape[0] == 1
    with pytest.raises(UserError, match=rf"training sample {pair[0].sample.id}"):
        RowCollator(processor, context=8)([(0, pair)])


def test_a_dry_run_counts_without_loading(catalog, base, place):
    plan = plan_step(catalog, tune_cases.step_on(base, vision="frozen"), place)
    found = preview_step(catalog, plan, place)
    assert found.modules["vision"][1] == 0 < found.modules["vision"][0]
    assert found.parameters == sum(t.numel() for t in tensors(base).values())
    assert "8 steps" in found.notes[0]
    assert not place.directory.exists()
