"""The recipe `export`: a folder that plain transformers loads in a process without mhe, with a card."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
import yaml

import tune_cases
from mhe.errors import UserError
from mhe.pipelines import Step, plan_step, preview_step, run_step

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from mhe_compress import export_checks  # noqa: E402
from mhe_hf import HfOptions, load_model  # noqa: E402


@pytest.fixture
def place(tmp_path):
    return tune_cases.place_at(tmp_path / "checkpoints", tmp_path)


def export(model, name="out", **settings):
    return Step(name=name, recipe="export", base=model, settings={"vllm": "skip", **settings})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tiny-llava", {"max_shard_gb": 0.002}),
        ("tiny-blip-vqa", {}),
        ("tiny-qwen2-vl", {"dtype": "bfloat16"}),
        ("tiny-visiongpt2", {}),
    ],
)
def test_it_loads_without_mhe_and_has_a_card(catalog, place, random_twins, name, settings):
    done = run_step(catalog, export(tune_cases.model_at(random_twins(name)), **settings), place)
    folder = done.folder / "model"
    _, head, body = (folder / "README.md").read_text().split("---", 2)
    about = yaml.safe_load(head)
    assert about["library_name"] == "transformers"
    assert about["base_model"] == name
    assert f"{done.checkpoint.parameters:,} parameters" in body
    assert "largest difference in logits" in body
    assert "from_pretrained" in body
    assert done.checkpoint.loads_in == ("transformers",)
    assert len(list(folder.glob("*.safetensors"))) == (1 if "max_shard_gb" not in settings else 4)
    model, _ = load_model(done.model, HfOptions(device="cpu"), offline=True)
    assert model.dtype == (torch.bfloat16 if "dtype" in settings else torch.float32)


def test_key_names_are_those_of_the_published_checkpoints(catalog, place, random_twins):
    from safetensors import safe_open

    done = run_step(catalog, export(tune_cases.model_at(random_twins("tiny-llava"))), place)
    with safe_open(done.folder / "model" / "model.safetensors", framework="pt") as stored:
        tops = {".".join(key.split(".")[:2]) for key in stored.keys()}  # noqa: SIM118 - not a dictionary
    assert tops == {
        "language_model.lm_head", "language_model.model", "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2", "vision_tower.vision_model",
    }  # fmt: skip


def test_weights_of_few_bits_are_exported_as_they_are(catalog, place, random_twins):
    pytest.importorskip("bitsandbytes")
    small = run_step(
        catalog, Step(name="s", recipe="quantize", base=tune_cases.model_at(random_twins("tiny-llava"))), place
    )
    done = run_step(catalog, export(small.model), place)
    settings = json.loads((done.folder / "model" / "config.json").read_text())["quantization_config"]
    assert settings["bnb_4bit_quant_type"] == "nf4"
    card = (done.folder / "model" / "README.md").read_text()
    assert "nf4" in yaml.safe_load(card.split("---")[1])["tags"]
    assert "1. `quantize` of `tiny-llava`, seed 0" in card
    with pytest.raises(UserError, match="leave dtype=auto"):
        run_step(catalog, export(small.model, "again", dtype="float16"), place)


def test_adapters_and_weights_quantised_while_loading_are_refused(catalog, place, random_twins):
    release = tune_cases.write_release(place.data_dir / "vqa_rad")
    settings = {"max_steps": 1, "batch_size": 4, "keep": "last"}
    step = replace(tune_cases.step_on(random_twins("tiny-llava")), recipe="lora", settings=settings)
    adapted = run_step(catalog, step, replace(place, data_dir=release))
    with pytest.raises(UserError, match="--recipe merge"):
        run_step(catalog, export(adapted.model), place)
    loading = tune_cases.model_at(random_twins("tiny-llava")).model_copy(update={"options": {"quantization": "nf4"}})
    with pytest.raises(UserError, match="--recipe quantize"):
        run_step(catalog, export(loading), place)


def test_a_folder_that_others_cannot_load_fails_the_step(random_twins, tmp_path):
    model, processor = load_model(
        tune_cases.model_at(random_twins("tiny-llava")), HfOptions(device="cpu"), offline=True
    )
    folder = shutil.copytree(random_twins("tiny-llava"), tmp_path / "copy")
    assert export_checks.check_in_transformers(model, processor, folder, 1, 1e-5) <= 1e-5
    with torch.no_grad():
        model.lm_head.weight[7] += 1.0
    with pytest.raises(UserError, match="differ by up to"):
        export_checks.check_in_transformers(model, processor, folder, 1, 1e-5)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(UserError, match="does not load in plain transformers"):
        export_checks.check_in_transformers(model, processor, folder, 1, 1e-5)


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed; tests/with_vllm asks it")
def test_vllm_that_is_required_and_not_there_fails(catalog, place, random_twins):
    with pytest.raises(UserError, match="not installed here"):
        run_step(catalog, export(tune_cases.model_at(random_twins("tiny-llava")), vllm="require"), place)
    assert not (place.directory / "out").exists()


def test_the_plan_says_the_size(catalog, place, random_twins):
    step = export(tune_cases.model_at(random_twins("tiny-llava")), dtype="float16")
    told = preview_step(catalog, plan_step(catalog, step, place), place)
    assert told.needed_bytes == 2 * told.parameters
