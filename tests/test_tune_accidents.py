"""Accidents of adapter recipes: kills, numbers that are none, full memory and disks, unusable bases."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tune_cases
from hf_models import build_llava
from mhe.checkpoints import find_checkpoint
from mhe.errors import DocumentError, ModelUnusableError, StorageError, UserError
from mhe.pipelines import plan_step, preview_step, run_step

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

SETTINGS = {
    "learning_rate": 1e-3, "batch_size": 8, "max_steps": 6, "evaluate_every": 3, "save_every": 2, "dropout": 0.1,
    "rank": 4,
}  # fmt: skip
ADAPTER = "model/language/adapter_model.safetensors"
BOTH = pytest.mark.parametrize("recipe", ["lora", "qlora"])


pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    # bitsandbytes on a CPU takes widths that are multiples of 64.
    return build_llava(tmp_path_factory.mktemp("models") / "base", hidden=64, layers=1)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad")


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def step_of(recipe: str, base: Path, **settings):
    return replace(tune_cases.step_on(base), recipe=recipe, settings={**SETTINGS, **settings})


@pytest.fixture(scope="module")
def tuned(catalog, base, release, tmp_path_factory):
    """A finished LoRA with dropout that nothing disturbed."""
    where = tune_cases.place_at(tmp_path_factory.mktemp("tuned"), release)
    return run_step(catalog, step_of("lora", base), where), where


def test_killed_and_continued_ends_in_the_same_bytes_with_dropout(tuned, catalog, base, release, tmp_path):
    root = tmp_path / "checkpoints"
    script = (
        "import sys, json, torch; torch.set_num_threads(2); sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from dataclasses import replace; import tune_cases\n"
        "from mhe.catalog import open_catalog; from mhe.pipelines import run_step\n"
        "step = replace(tune_cases.step_on(Path(sys.argv[2])), recipe='lora', settings=json.loads(sys.argv[5]))\n"
        "run_step(open_catalog(), step, tune_cases.place_at(Path(sys.argv[3]), Path(sys.argv[4])))\n"
    )
    arguments = [Path(__file__).parent, base, root, release, json.dumps(SETTINGS)]
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as worker:
        deadline = time.monotonic() + 120
        while not list(root.glob(".work/*/job/checkpoint-2/mhe_saved.json")) and time.monotonic() < deadline:
            assert worker.poll() is None, "it ended by itself"
            time.sleep(0.002)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert not (root / "tuned" / "0").exists()
    said = []
    done = run_step(catalog, step_of("lora", base), tune_cases.place_at(root, release, say=said.append))
    assert any("continuing" in line for line in said)
    assert (done.folder / ADAPTER).read_bytes() == (tuned[0].folder / ADAPTER).read_bytes()
    undropped = run_step(catalog, step_of("lora", base, dropout=0.0), tune_cases.place_at(tmp_path / "o", release))
    assert (undropped.folder / ADAPTER).read_bytes() != (done.folder / ADAPTER).read_bytes(), "dropout was at work"


@BOTH
def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_adapter(catalog, base, place, monkeypatch, recipe):
    from safetensors.torch import load_file

    from mhe_hf.training import watching

    original = watching.Trainer.compute_loss

    def broken(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        found = original(self, model, inputs, return_outputs, num_items_in_batch)
        return found * float("nan") if model.training and self.state.global_step == 4 else found

    monkeypatch.setattr(watching.Trainer, "compute_loss", broken)
    with pytest.raises(UserError, match=r"the loss is nan at step 5, on the samples .*best weights so far .step 3"):
        run_step(catalog, step_of(recipe, base), place)
    (best,) = place.directory.glob(".work/*/job/best.safetensors")
    kept = load_file(best)
    assert any("lora_B" in name for name in kept)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in kept.values())
    assert not (place.directory / "tuned" / "0").exists()


@BOTH
def test_full_memory_says_what_to_lower(catalog, base, place, monkeypatch, recipe):
    from mhe_hf.training import watching

    def full(*_arguments, **_more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    monkeypatch.setattr(watching.Trainer, "training_step", full)
    with pytest.raises(UserError, match="Tried to allocate 9 GiB") as found:
        run_step(catalog, step_of(recipe, base), place)
    assert "--set batch_size=4 --set gradient_accumulation=2" in str(found.value)
    assert "--set gradient_checkpointing=true" in str(found.value)


def test_an_empty_split_is_an_error(catalog, base, tmp_path):
    data = tune_cases.write_release(tmp_path / "vqa_rad")
    path = data / "VQA_RAD Dataset Public.json"
    rows = [row for row in json.loads(path.read_text()) if row["phrase_type"] == "test_freeform"]
    path.write_text(json.dumps(rows))
    with pytest.raises(UserError, match=r"(?i)no .*(sample|pair)|train"):
        run_step(catalog, step_of("lora", base), tune_cases.place_at(tmp_path / "c", data))
    assert not (tmp_path / "c" / "tuned").exists()


def test_a_name_that_holds_another_result_is_kept_until_it_is_replaced(tuned, catalog, base):
    outcome, where = tuned
    before = (outcome.folder / ADAPTER).read_bytes()
    with pytest.raises(UserError, match=r"holds the result of another step .lora of base.*--replace"):
        run_step(catalog, step_of("lora", base, rank=2), where)
    assert (outcome.folder / ADAPTER).read_bytes() == before


def test_a_full_disk_keeps_what_was_saved_before(tuned, catalog, base, place, monkeypatch):
    from mhe_hf.training import watching

    original = watching.write_whole
    room = [2]

    def write(path, data):
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= path.name == watching.WHOLE_MARK
        original(path, data)

    monkeypatch.setattr(watching, "write_whole", write)
    with pytest.raises(StorageError, match=r"is full.*make room and run the same command"):
        run_step(catalog, step_of("lora", base), place)
    assert {path.parent.name for path in place.directory.glob(".work/*/job/checkpoint-*/mhe_saved.json")} == {
        "checkpoint-2", "checkpoint-4",
    }  # fmt: skip
    room[0] = 100
    done = run_step(catalog, step_of("lora", base), place)
    assert (done.folder / ADAPTER).read_bytes() == (tuned[0].folder / ADAPTER).read_bytes()


@pytest.fixture
def limit_files():
    """Writing beyond a size is refused by the system itself, as on a full disk or beyond a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield limit
    limit(None)


def test_a_disk_that_takes_no_more_loses_nothing(catalog, base, place, release, tmp_path, limit_files):
    """Refused first while the optimizer's state is saved, then while the model is written, each by its own library."""
    settings = {"vision": "frozen", "language": "frozen", "max_steps": 2, "save_every": 1, "evaluate_every": 2}
    step = replace(tune_cases.step_on(base), settings=settings)
    whole = run_step(catalog, step, tune_cases.place_at(tmp_path / "undisturbed", release)).folder
    sizes = (50_000, 300_000)
    assert (whole / "model" / "model.safetensors").stat().st_size > max(sizes)
    saves = []
    for size in sizes:
        limit_files(size)
        with pytest.raises(StorageError, match=r"is full.*make room and run the same command"):
            run_step(catalog, step, place)
        limit_files(None)
        assert not (place.directory / "tuned").exists()
        saves.append(len(list(place.directory.glob(".work/*/job/checkpoint-*/mhe_saved.json"))))
    assert saves == [0, 2]
    done = run_step(catalog, step, place)
    assert (done.folder / "model" / "model.safetensors").read_bytes() == (
        whole / "model" / "model.safetensors"
    ).read_bytes()


@BOTH
def test_killed_while_it_saves_the_adapter_it_ends_the_same(tuned, catalog, base, place, monkeypatch, recipe):
    from mhe_hf.training import adapters

    original = adapters.write_set

    def die(folder, *_more):
        (folder / "language" / "half.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(adapters, "write_set", die)
    with pytest.raises(KeyboardInterrupt):
        run_step(catalog, step_of(recipe, base), place)
    monkeypatch.setattr(adapters, "write_set", original)
    done = run_step(catalog, step_of(recipe, base), place)
    assert not list(done.folder.rglob("half.bin"))
    if recipe == "lora":
        assert (done.folder / ADAPTER).read_bytes() == (tuned[0].folder / ADAPTER).read_bytes()


def test_a_base_whose_download_was_interrupted_is_refused_and_the_whole_one_works(catalog, base, place, tmp_path):
    torn = Path(shutil.copytree(base, tmp_path / "torn"))
    weights = (torn / "model.safetensors").read_bytes()
    (torn / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ModelUnusableError, match=r"model\.safetensors"):
        run_step(catalog, step_of("lora", torn), place)
    assert not (place.directory / "tuned").exists()
    (torn / "model.safetensors").write_bytes(weights)
    assert run_step(catalog, step_of("lora", torn, max_steps=1), place).status == "trained"


def test_a_hub_copy_whose_weights_never_came_says_what_to_type(catalog, base, place, tmp_path, monkeypatch):
    """The hub's own cache as a download leaves it that ended in the middle: small files, and weights half there."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "hub" / "models--org--name"
    shutil.copytree(base, cache / "snapshots" / commit, ignore=shutil.ignore_patterns("*.safetensors"))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "abc.incomplete").write_bytes(b"half of it")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    step = step_of("lora", base)
    hub = step.base.model_copy(update={"name": "name", "location": "org/name"})
    with pytest.raises(ModelUnusableError, match=r"org/name"):
        run_step(catalog, replace(step, base=hub), place)
    assert not (place.directory / "tuned").exists()


def test_a_device_without_4_bit_weights_is_told(catalog, base, place, monkeypatch):
    """What bitsandbytes raises where it has no kernels comes out in plain words, with the model's name."""
    import transformers.quantizers.quantizer_bnb_4bit as quantizer

    def refuse(*_arguments, **_more):
        raise RuntimeError("None of the available devices `available_devices = {'mps'}` are supported by bitsandbytes")

    monkeypatch.setattr(quantizer.Bnb4BitHfQuantizer, "validate_environment", refuse)
    with pytest.raises(ModelUnusableError, match=r"base.*supported by bitsandbytes"):
        run_step(catalog, step_of("qlora", base), place)
    assert not (place.directory / "tuned" / "0").exists()


def test_an_adapter_on_a_base_quantised_by_name_needs_qlora(catalog, base, place):
    step = step_of("lora", base)
    quantised = step.base.model_copy(update={"options": {"quantization": "nf4"}})
    with pytest.raises(UserError, match=r"quantised .nf4.*recipe qlora"):
        run_step(catalog, replace(step, base=quantised), place)


# ---------------------------------------------------------------- a base that is an adapter


def parent_of(tuned):
    return find_checkpoint("tuned", tuned[1].directory)


@BOTH
def test_an_adapter_on_an_adapter_is_refused_before_anything_is_loaded(tuned, catalog, base, place, recipe):
    step = replace(step_of(recipe, base, rank=2), name="second", base=parent_of(tuned))
    plan = plan_step(catalog, step, place)
    with pytest.raises(UserError) as found:
        preview_step(catalog, plan, place)
    assert f"tuned is an adapter on {base}" in str(found.value)
    assert f"--model {base}" in str(found.value)
    assert "recipe full" in str(found.value)


def test_full_merges_the_adapter_first(tuned, catalog, base, place):
    """Frozen modules have the weights of base and adapter together, under published names and without PEFT's."""
    from safetensors.torch import load_file

    from mhe_hf import HfOptions, load_model

    parent = parent_of(tuned)
    settings = {
        "vision": "frozen", "fusion": "full", "language": "frozen", "learning_rate": 1e-3, "batch_size": 8,
        "max_steps": 2,
    }  # fmt: skip
    step = replace(tune_cases.step_on(base, "further"), base=parent, settings=settings)
    done = run_step(catalog, step, place)
    stored = load_file(done.folder / "model" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in stored)
    merged, _ = load_model(parent, HfOptions(merge_adapter=True), offline=True)
    after, _ = load_model(done.model, HfOptions(), offline=True)
    plain, _ = load_model(tune_cases.model_at(base), HfOptions(), offline=True)
    wanted, found, before = (dict(model.named_parameters()) for model in (merged, after, plain))
    assert wanted.keys() == found.keys() == before.keys()
    moved = {name for name in wanted if not torch.equal(wanted[name], found[name])}
    assert moved
    assert all("multi_modal_projector" in name for name in moved)
    assert any(not torch.equal(before[name], found[name]) for name in before if "q_proj" in name)
    assert [entry.parent for entry in done.checkpoint.lineage] == ["tuned@0", "base"]


def test_full_cannot_start_from_an_adapter_on_4_bits(tuned, catalog, base, place):
    step = replace(tune_cases.step_on(base, "further"), settings={"max_steps": 1})
    quantised = parent_of(tuned).model_copy(update={"options": {"quantization": "nf4", "double_quant": True}})
    with pytest.raises(UserError, match=r"quantised .nf4.*cannot be trained whole"):
        run_step(catalog, replace(step, base=quantised), place)


def test_all_wrong_settings_are_told_at_once(catalog, base, place):
    with pytest.raises(DocumentError) as found:
        plan_step(catalog, step_of("lora", base, rank=0, dropout=1.5, langauge="adapter"), place)
    assert len(found.value.problems) == 3
