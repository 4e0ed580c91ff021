"""Recipe `bitfit`: biases move and nothing else does; a module without biases is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

import tune_cases
from mhe.errors import DocumentError, UserError
from mhe.pipelines import plan_step, preview_step, run_step

torch = pytest.importorskip("torch")

QUICK = {"batch_size": 64, "max_steps": 3, "warmup": 0.0, "keep": "last"}


pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=6)


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def bitfit(base, **settings):
    return replace(tune_cases.step_on(base), recipe="bitfit", settings={**QUICK, **settings})


def weights(folder):
    """By their names in the loaded model, with plain transformers and none of our loading."""
    from transformers import AutoConfig, AutoModelForImageTextToText, BlipForQuestionAnswering

    is_blip = AutoConfig.from_pretrained(folder).model_type == "blip"
    found, told = (BlipForQuestionAnswering if is_blip else AutoModelForImageTextToText).from_pretrained(
        folder, output_loading_info=True
    )
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return {name: parameter.detach().clone() for name, parameter in found.named_parameters()}


@pytest.mark.parametrize(
    ("name", "modules", "places"),
    [
        ("tiny-visiongpt2", {"language": "biases"}, ("decoder.",)),
        ("tiny-visiongpt2", {"vision": "biases", "fusion": "biases", "language": "frozen"}, ("encoder.", "decoder.")),
        ("tiny-blip-vqa", {"vision": "frozen", "fusion": "biases"}, ("text_encoder.", "text_decoder.")),
        ("tiny-llava", {"vision": "biases", "language": "frozen", "fusion": "frozen"}, ("model.vision_tower.",)),
    ],
)
def test_biases_move_and_all_else_keeps_every_bit(catalog, random_twins, place, name, modules, places):
    base = random_twins(name)
    done = run_step(catalog, bitfit(base, **modules), place)
    losses = [entry["loss"] for entry in done.checkpoint.history if "loss" in entry]
    assert losses[-1] < losses[0], losses
    before, after = weights(base), weights(done.folder / "model")
    assert before.keys() == after.keys()
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved
    assert all(key.endswith("bias") and key.startswith(places) for key in moved), moved
    trained = {share.name: share.trainable for share in done.checkpoint.modules}
    chosen = {"vision": "frozen", "fusion": "frozen", "language": "biases", **modules}
    assert {module for module, count in trained.items() if count} == {m for m, how in chosen.items() if how != "frozen"}
    assert sum(trained.values()) >= sum(before[key].numel() for key in moved)
    assert sum(trained.values()) < 0.05 * done.checkpoint.parameters


def test_the_count_is_that_of_all_biases(catalog, random_twins, place):
    base = random_twins("tiny-visiongpt2")
    step = bitfit(base, vision="biases", fusion="biases", language="biases")
    found = preview_step(catalog, plan_step(catalog, step, place), place)
    own = weights(base)
    assert found.trainable_parameters == sum(p.numel() for n, p in own.items() if n.endswith("bias"))
    assert found.parameters == sum(parameter.numel() for parameter in own.values())


def test_a_module_trained_whole_beside_biases(catalog, random_twins, place):
    base = random_twins("tiny-llava")
    done = run_step(catalog, bitfit(base, vision="biases", fusion="full", language="frozen"), place)
    before, after = weights(base), weights(done.folder / "model")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert {key for key in before if "multi_modal_projector" in key} <= moved
    assert all("multi_modal_projector" in key or key.endswith("bias") for key in moved)
    assert not any("language_model" in key or "lm_head" in key for key in moved)


def test_a_module_without_biases_is_refused_and_those_with_are_named(catalog, random_twins, place):
    with pytest.raises(UserError) as found:
        preview_step(catalog, plan_step(catalog, bitfit(random_twins("tiny-llava")), place), place)
    assert "language of this llava model has no biases" in str(found.value)
    assert "Modules with biases: vision, fusion." in str(found.value)
    assert "--set language=frozen --set vision=biases --set fusion=biases" in str(found.value)


def test_nothing_to_train_and_unknown_words_are_errors(catalog, random_twins, place):
    with pytest.raises(UserError, match="nothing would be trained"):
        preview_step(catalog, plan_step(catalog, bitfit(random_twins("tiny-llava"), language="frozen"), place), place)
    with pytest.raises(DocumentError, match="'frozen', 'biases' or 'full'"):
        plan_step(catalog, bitfit(random_twins("tiny-llava"), language="adapter"), place)


def test_a_table_of_position_biases_is_no_bias():
    from mhe_tune.bitfit import is_bias

    vector, table = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3, 2))
    assert is_bias("layer.attn.in_proj_bias", vector)
    assert is_bias("layer.fc1.bias", vector)
    assert not is_bias("layer.relative_position_bias_table", table)
    assert not is_bias("layer.fc1.weight", vector)
