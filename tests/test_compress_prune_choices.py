"""What `prune` takes out: importance, budgets, scans, single weights, true sizes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import prune_cases as cases
from hf_models import ask
from mhe import ModelSpec, TrainingExample, UserError, open_job
from mhe.documents.pipeline import TrainingChoice
from mhe.errors import DocumentError
from mhe.model_names import resolve_model
from mhe.pipelines import Step, run_step
from mhe.previews import preview_alone
from mhe_compress.blocks import key_of
from mhe_compress.importance import gated, measure_importance, output_of
from mhe_compress.prune_choice import choose_units, legal_count
from mhe_compress.prune_sparsity import weakest_of_four, weakest_of_row
from mhe_hf import collate_training

PHANTOM = (TrainingChoice(task="phantom-vqa", limit=12),)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny_llava(catalog):
    return resolve_model("tiny-llava", catalog)


@pytest.fixture(scope="module")
def answers(catalog):
    """Pairs of the phantom's training split."""
    return open_job(catalog, "tiny-llava", ["phantom-vqa"], limit=40).train[:24]


def prune(catalog, base, folder, *, data=(), name="pruned", **settings):
    step = cases.step_on(base, name, **settings)
    return run_step(catalog, Step(step.name, step.recipe, step.base, step.settings, data=data), cases.place_at(folder))


def language_units(model, kind):
    return [b.units for b in cases.blocks_of(model) if b.kind == kind and b.place.module == "language"]


# ---------------------------------------------------------------- importance


@pytest.fixture(scope="module")
def small(random_twins):
    """A twin with grouped queries, its blocks and four calibration batches."""
    model, processor = cases.loaded(random_twins("tiny-llava-next"))
    batches = [
        dict(
            collate_training([TrainingExample(ask(f"s{n}", "Is there a lesion?"), "no", None)], processor, context=None)
        )
        for n in range(4)
    ]
    return model, [b for b in cases.blocks_of(model) if b.place.module == "language"], batches


def test_magnitude_is_the_norm_of_the_weights_that_would_leave(small):
    model, blocks, _ = small
    scores = measure_importance(model, blocks, "magnitude")
    heads, neurons = blocks[0], blocks[1]
    attention = model.get_submodule(heads.name)
    rows = slice(heads.size * 5, heads.size * 6)
    shared = slice(heads.size * 2, heads.size * 3)
    wanted = attention.q_proj.weight[rows].square().sum() + attention.o_proj.weight[:, rows].square().sum()
    wanted += (attention.k_proj.weight[shared].square().sum() + attention.v_proj.weight[shared].square().sum()) / 2
    assert float(scores[key_of(heads)][5]) == pytest.approx(wanted.item(), rel=1e-5)
    mlp = model.get_submodule(neurons.name)
    wanted = mlp.gate_proj.weight[7].square().sum() + mlp.up_proj.weight[7].square().sum()
    wanted += mlp.down_proj.weight[:, 7].square().sum()
    assert float(scores[key_of(neurons)][7]) == pytest.approx(wanted.item(), rel=1e-5)


def test_activation_weighs_the_weights_by_what_flows(small):
    model, blocks, batches = small
    scores = measure_importance(model, blocks, "activation", iter(batches))
    seen = []
    layer = output_of(model, blocks[1])
    handle = layer.register_forward_pre_hook(lambda _layer, given: seen.append(given[0][0]))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    wanted = torch.cat(seen).square().mean(0) * layer.weight.square().sum(0)
    assert torch.allclose(scores[key_of(blocks[1])].float(), wanted.float(), rtol=1e-4)


def test_taylor_is_the_slope_of_the_loss_along_a_gate(small):
    """Against a difference quotient of the same gate, sample by sample."""
    model, blocks, batches = small
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    scores = measure_importance(model, blocks, "taylor", iter(batches))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    block, step = blocks[2], 1e-2
    for unit in (0, 3):
        slopes = []
        for batch in batches:
            losses = []
            for value in (1 + step, 1 - step):
                gate = torch.ones(block.units)
                gate[unit] = value
                with torch.no_grad(), gated(model, [block], {key_of(block): gate}):
                    losses.append(float(model(**batch).loss))
            slopes.append(abs(losses[0] - losses[1]) / (2 * step))
        assert float(scores[key_of(block)][unit]) == pytest.approx(sum(slopes) / len(slopes), rel=0.05, abs=2e-4)


@pytest.mark.parametrize("importance", ["magnitude", "activation"])
def test_what_stays_of_a_trained_model_answers_better_than_what_would_leave(importance, catalog, tiny_llava, answers):
    """The choice must mean something: of equal sizes, the chosen units lose less than those it would drop.

    Taylor is left out: at a loss of nearly zero, as this model has, there is no slope to go by.
    """
    model, processor = cases.loaded(tiny_llava)
    batches = [dict(collate_training([one], processor, context=None)) for one in answers]
    blocks = [b for b in cases.blocks_of(model) if b.place.module == "language"]
    scores = measure_importance(model, blocks, importance, batches[:8])

    def loss(sign):
        gates = {}
        for block in blocks:
            kept = choose_units(block, legal_count(block, 0.3), sign * scores[key_of(block)]).units
            gates[key_of(block)] = torch.zeros(block.units).index_fill(0, torch.tensor(kept), 1)
        return mean_loss(model, batches[8:], blocks, gates)

    assert loss(1) < loss(-1)


def mean_loss(model, batches, blocks, gates):
    with torch.no_grad(), gated(model, blocks, gates):
        return sum(float(model(**batch).loss) for batch in batches) / len(batches)


# ---------------------------------------------------------------- budgets and scans


@pytest.mark.parametrize("name", ["tiny-llava", "tiny-blip-vqa"])
def test_a_budget_of_parameters_is_kept_and_not_wasted(name, catalog, tmp_path):
    base = resolve_model(name, catalog)
    original, own = cases.loaded(base)
    whole = sum(p.numel() for p in original.parameters())
    done = prune(catalog, base, tmp_path, parameters=0.88)
    assert done.checkpoint.needs_class is not None
    assert done.checkpoint.parameters <= 0.88 * whole
    assert done.checkpoint.parameters > 0.85 * whole, "no more leaves than the budget asks for, but for one step"
    model, processor = cases.loaded(done.model)
    widths = language_units(model, "neurons")
    assert len(set(widths)) > 1, "layers give what they can do without"
    assert all(width % 8 == 0 for width in widths)
    with cases.masked(original, cases.kept_of(done.folder)):
        assert_equal(cases.logits(model, processor), cases.logits(original, own))


def test_layers_of_different_sizes_need_a_class_or_zeros(catalog, tiny_llava, tmp_path):
    custom = prune(catalog, tiny_llava, tmp_path, parameters=0.88)
    plain = prune(catalog, tiny_llava, tmp_path, parameters=0.88, only_plain=True, name="plain")
    assert custom.checkpoint.needs_class == "mhe_compress.PrunedLlavaForConditionalGeneration"
    assert plain.checkpoint.needs_class is None
    assert plain.checkpoint.parameters > custom.checkpoint.parameters
    assert "stay as zeros, which save neither memory nor time" in " ".join(plain.checkpoint.notes)
    assert_equal(cases.logits(*cases.loaded(plain.model)), cases.logits(*cases.loaded(custom.model)))


def assert_equal(found, wanted):
    assert torch.allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, float(wanted.abs().max())))


def test_a_budget_of_time_is_measured_once(catalog, random_twins, tmp_path):
    done = prune(catalog, random_twins("tiny-qwen2-vl"), tmp_path, latency=0.85)
    timings = json.loads((done.folder / "latency.json").read_text())
    assert timings
    assert all(unit > 0 for unit, _ in timings.values())
    assert "estimated from timings on cpu" in " ".join(done.checkpoint.notes)
    model, _ = cases.loaded(done.model)
    assert sum(language_units(model, "neurons")) + sum(language_units(model, "heads")) < 2 * (192 + 8)


def test_a_budget_beyond_reach_is_an_error(catalog, random_twins, tmp_path):
    with pytest.raises(UserError, match=r"with at most 30%"):
        prune(catalog, random_twins("tiny-llava"), tmp_path, parameters=0.2, most=0.3)
    with pytest.raises(UserError, match="no more than the budget"):
        prune(catalog, random_twins("tiny-llava"), tmp_path, parameters=10**12)


# ---------------------------------------------------------------- single weights


def test_wanda_takes_the_weakest_of_each_row():
    scores = torch.tensor([[4.0, 1, 3, 2, 9, 8, 7, 6], [1, 2, 3, 4, 5, 6, 7, 8]])
    assert weakest_of_row(scores, 0.25).nonzero().tolist() == [[0, 1], [0, 3], [1, 0], [1, 1]]
    found = weakest_of_four(scores[:, :7])
    assert found.sum().item() == 4, "two of each whole group of four; the rest of the row is left alone"
    assert found.nonzero().tolist() == [[0, 1], [0, 3], [1, 0], [1, 1]]


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_single_weights_shrink_nothing_and_say_so(pattern, catalog, tiny_llava, tmp_path):
    done = prune(catalog, tiny_llava, tmp_path, data=PHANTOM, pattern=pattern, calibration=4)
    before, _ = cases.loaded(tiny_llava)
    after, _ = cases.loaded(done.model)
    assert done.checkpoint.parameters == sum(p.numel() for p in before.parameters())
    assert "not faster and not smaller" in " ".join(done.checkpoint.notes)
    was, now = (m.model.language_model.layers[1].mlp.up_proj.weight for m in (before, after))
    zeros = (now == 0) & (was != 0)
    assert float(zeros.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(now[~zeros], was[~zeros]), "what is not zero is as it was"
    if pattern == "2:4":
        assert ((now.reshape(len(now), -1, 4) == 0).sum(2) >= 2).all()
    vision = (m.model.vision_tower.encoder.layers[0].mlp.fc1.weight for m in (before, after))
    assert torch.equal(*vision)


# ---------------------------------------------------------------- true sizes


@pytest.mark.parametrize(
    ("model", "before", "after", "needs"),
    [
        # 32 x (10 heads x 128 x 4,096 x 4 + (11,008 - 7,680) x 3 x 4,096)
        ("llava-1.5-7b", 7_063_427_072, 5_083_715_584, None),
        # 28 x (4 heads x 128 x (1,536 + 1 + 1,536) + (8,960 - 6,272) x 3 x 1,536)
        ("qwen2-vl-2b", 2_208_985_600, 1_818_114_560, "mhe_compress.PrunedQwen2VLForConditionalGeneration"),
        # 40 x (8 heads x 128 x 4,096 x 2 + (14,336 - 10,048) x 3 x 4,096)
        ("llama-3.2-11b-vision", 10_670_220_835, 8_227_038_755, "mhe_compress.PrunedMllamaForConditionalGeneration"),
    ],
)
def test_a_dry_run_tells_all_at_true_size(model, before, after, needs, catalog, tmp_path):
    step = cases.step_on(catalog.models[model], preset="neto2025-prune")
    found = preview_alone(catalog, step, cases.place_at(tmp_path)).result
    assert found is not None
    assert found.parameters == after
    assert found.needs_class == needs
    text = " ".join(found.notes)
    assert f"{before:,} to {after:,}" in text
    assert "of memory while it is pruned" in text
    assert ("transformers" in found.loads_in) == (needs is None)
    assert found.needed_bytes == 2 * before
    assert not any(tmp_path.iterdir())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 0.97}, r"a ratio of 0\.97 leaves no head of the 8 of .*: at most 0\.875 can leave"),
        ({"neurons": 0.9999}, r"leaves no neuron of the 320 of "),
        ({"importance": "taylor"}, r"the calibration split is empty: .*--task, or set importance=magnitude"),
        ({"pattern": "2:4"}, r"the calibration split is empty: .*Wanda"),
        ({"scan": "nowhere.json"}, r"nowhere\.json cannot be read .*mhe scan-layers"),
        ({"heads": 1.0}, "less than 1"),
        ({"heads": 0, "neurons": 0}, "nothing would leave"),
        ({"preset": "neto2025-prun"}, "Did you mean neto2025-prune"),
        ({"parameters": 0.5, "latency": 0.5}, "give one of them"),
    ],
)
def test_what_cannot_be_is_said(settings, message, catalog, random_twins, tmp_path):
    with pytest.raises((UserError, DocumentError), match=message):
        prune(catalog, random_twins("tiny-llava"), tmp_path, **settings)
    assert not list(tmp_path.glob("pruned/*"))


def test_a_quantised_base_is_refused_with_what_to_do(catalog, random_twins, tmp_path):
    base = ModelSpec(
        name="few", backend="hf", location=str(random_twins("tiny-llava")), options={"quantization": "nf4"}
    )
    with pytest.raises(UserError, match=r"few is quantised \(nf4\).*prune the model it was quantised from"):
        prune(catalog, base, tmp_path)
    folder = tmp_path / "stored"
    folder.mkdir()
    for path in Path(random_twins("tiny-llava")).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="quantised"):
        prune(catalog, folder, tmp_path / "checkpoints")


def test_an_unknown_architecture_is_refused(random_twins):
    from mhe import Architecture
    from mhe_compress.blocks import find_blocks

    model, _ = cases.loaded(random_twins("tiny-llava"))
    with pytest.raises(UserError, match="where heads and neurons live in models of type 'strange' is not known"):
        find_blocks(model, Architecture("strange", ("a",), ("b",), ("c",)))
