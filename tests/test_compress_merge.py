"""The recipe `merge`: adapters into weights, from a base in 4 bits too, with the difference told and limited."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import tune_cases
from mhe.errors import UserError
from mhe.pipelines import Step, plan_step, preview_step, run_step

torch = pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from mhe_compress.merge_prompts import drawn_example, logits_of  # noqa: E402
from mhe_hf import HfOptions, load_model  # noqa: E402

FAST = {"learning_rate": 3e-2, "batch_size": 8, "max_steps": 2, "warmup": 0.0, "keep": "last", "rank": 4}
NUMBER = r"[0-9.e+-]+|inf"


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad")


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def adapt(catalog, place, folder, recipe, **settings):
    step = replace(tune_cases.step_on(folder, "adapted"), recipe=recipe, settings={**FAST, **settings})
    return run_step(catalog, step, place)


def merge(model, name="merged", **settings):
    return Step(name=name, recipe="merge", base=model, settings=settings)


def told(checkpoint):
    (note,) = (note for note in checkpoint.notes if "largest difference" in note)
    found = re.search(rf"({NUMBER}) in float32, ({NUMBER}) as saved", note)
    return float(found[1]), float(found[2])


def furthest(model, other, processor):
    examples = [drawn_example(number) for number in range(20, 23)]
    pairs = zip(logits_of(model, processor, examples), logits_of(other, processor, examples), strict=True)
    return max(float((one - two).abs().max()) for one, two in pairs)


@pytest.mark.parametrize(
    ("name", "recipe", "settings"),
    [
        ("tiny-llava", "qlora", {}),
        ("tiny-llava", "lora", {"vision": "adapter", "fusion": "full"}),
        ("tiny-visiongpt2", "qlora", {"fusion": "adapter"}),
        ("tiny-mllama", "qlora", {"double_quant": False}),
    ],
)
def test_merged_answers_as_unmerged_and_loads_plainly(catalog, place, random_twins, name, recipe, settings):
    adapted = adapt(catalog, place, random_twins(name), recipe, **settings)
    done = run_step(catalog, merge(adapted.model), place)
    difference, saved = told(done.checkpoint)
    assert difference < 1e-3
    assert saved == pytest.approx(difference, abs=2e-3), "the twins are saved in float32"
    apart, processor = load_model(
        adapted.model, HfOptions(**{**adapted.model.options, "dtype": "float32"}), offline=True, is_made_whole=True
    )
    merged, _ = load_model(done.model, HfOptions(device="cpu"), offline=True)
    assert furthest(merged, apart, processor) < 1e-3
    plain = load_model(tune_cases.model_at(random_twins(name)), HfOptions(device="cpu"), offline=True)[0]
    assert furthest(merged, plain, processor) > 1e-2, "the adapter does nothing, so this would show nothing"
    assert {type(layer).__name__ for layer in merged.modules()} == {type(layer).__name__ for layer in plain.modules()}
    assert set(merged.state_dict()) == set(plain.state_dict())
    assert done.checkpoint.parameters == sum(parameter.numel() for parameter in plain.parameters())
    assert done.checkpoint.loads_in == ("transformers",)
    assert not (done.folder / "model" / "adapters.json").exists()


def test_rounding_the_sum_to_4_bits_again_is_far_off(catalog, place, random_twins):
    """What merging into weights of 4 bits comes to, measured: else the test above could not fail."""
    adapted = adapt(catalog, place, random_twins("tiny-llava"), "qlora")
    merged = run_step(catalog, merge(adapted.model), place)
    rounded = run_step(catalog, Step(name="rounded", recipe="quantize", base=merged.model), place)
    whole, processor = load_model(merged.model, HfOptions(device="cpu"), offline=True)
    few, _ = load_model(rounded.model, HfOptions(device="cpu"), offline=True)
    assert furthest(few, whole, processor) > 0.02


def test_a_difference_beyond_the_limit_fails_and_leaves_no_checkpoint(catalog, place, random_twins):
    adapted = adapt(catalog, place, random_twins("tiny-llava"), "lora")
    with pytest.raises(UserError, match=r"the limit is 1e-12"):
        run_step(catalog, merge(adapted.model, limit=1e-12), place)
    assert not (place.directory / "merged").exists()
    with pytest.raises(UserError, match="bfloat16 is too coarse"):
        run_step(catalog, merge(adapted.model, limit=1e-5, dtype="bfloat16", prompts=1), place)
    done = run_step(catalog, merge(adapted.model, limit=None, dtype="bfloat16", prompts=1), place)
    assert any("in bfloat16" in note for note in done.checkpoint.notes)


def test_training_prompts_are_used_where_there_are_any(catalog, place, random_twins):
    adapted = adapt(catalog, place, random_twins("tiny-llava"), "lora")
    step = replace(merge(adapted.model, prompts=3), data=tune_cases.step_on(adapted.folder).data)
    done = run_step(catalog, step, place)
    assert any("on 3 training prompts" in note for note in done.checkpoint.notes)


def test_nothing_to_merge_and_prefixes_are_refused(catalog, place, random_twins):
    with pytest.raises(UserError, match="nothing to merge"):
        run_step(catalog, merge(tune_cases.model_at(random_twins("tiny-llava"))), place)
    step = replace(tune_cases.step_on(random_twins("tiny-llava"), "prefixed"), recipe="ptuning-v2")
    settings = {"max_steps": 1, "batch_size": 4, "tokens": 2, "keep": "last"}
    prefixed = run_step(catalog, replace(step, settings=settings), place)
    with pytest.raises(UserError, match="learned prefix"):
        run_step(catalog, merge(prefixed.model), place)


def test_a_base_in_few_bits_alone_is_made_whole(catalog, place, random_twins):
    base = tune_cases.model_at(random_twins("tiny-llava"))
    small = run_step(catalog, Step(name="small", recipe="quantize", base=base), place)
    done = run_step(catalog, merge(small.model), place)
    merged, processor = load_model(done.model, HfOptions(device="cpu"), offline=True)
    # In its own 4 bits a CPU computes in bfloat16, so that the weights are compared.
    few, _ = load_model(small.model, HfOptions(device="cpu"), offline=True, is_made_whole=True)
    assert furthest(merged, few, processor) == 0
    base_weights = load_model(base, HfOptions(device="cpu"), offline=True)[0]
    assert 0.01 < furthest(merged, base_weights, processor) < 5
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert any("made whole" in note for note in done.checkpoint.notes)


def test_the_plan_of_a_merge_after_a_planned_qlora(catalog, place, random_twins, tmp_path):
    step = replace(tune_cases.step_on(random_twins("tiny-llava")), recipe="qlora", settings=FAST)
    planned = preview_step(catalog, plan_step(catalog, step, place), place, tmp_path / "qlora")
    model = tune_cases.model_at(planned.model_folder).model_copy(
        update={"options": {**planned.options, "random_weights": True}}
    )
    told = preview_step(catalog, plan_step(catalog, merge(model), place), place, tmp_path / "merge")
    assert told.parameters == planned.parameters - planned.trainable_parameters
    assert told.needed_bytes == 4 * told.parameters
    whole = model.model_copy(update={"location": str(told.model_folder), "options": {"random_weights": True}})
    with pytest.raises(UserError, match="nothing to merge"):
        preview_step(catalog, plan_step(catalog, merge(whole), place), place)
