"""Recipe `prune`: what is left computes what a masked model does, is as small as computed, and loads where it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import prune_cases as cases
from mhe import Generation, HeadsPlace
from mhe.checkpoints import render_card
from mhe.pipelines import run_step
from mhe_compress.blocks import Heads, Neurons, counts_of, key_of
from mhe_compress.prune_choice import Count, choose_units, legal_count
from mhe_hf import Collator, collate_training, save_published
from mhe_hf.generation import answer_batch

CLOSE = 1e-5
"""Of the largest logit."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def prune(catalog, random_twins, tmp_path_factory):
    """Prune a twin, once for each set of options."""
    root = tmp_path_factory.mktemp("pruned")
    made = {}

    def run(twin, **settings):
        key = json.dumps([twin, settings], sort_keys=True)
        if key not in made:
            step = cases.step_on(random_twins(twin), f"pruned-{len(made)}", **settings)
            made[key] = run_step(catalog, step, cases.place_at(root))
        return made[key]

    return run


def differ(found, wanted):
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))


# ---------------------------------------------------------------- every family


@pytest.mark.parametrize("twin", cases.TWINS)
def test_kept_paths_compute_what_a_masked_original_does(twin, prune, random_twins):
    done = prune(twin, **cases.BOTH)
    kept = cases.kept_of(done.folder)
    whole, processor = cases.loaded(random_twins(twin))
    pruned, own = cases.loaded(done.model)
    before = cases.logits(whole, processor)
    with cases.masked(whole, kept):
        wanted = cases.logits(whole, processor)
    assert differ(cases.logits(pruned, own), wanted) <= CLOSE
    assert differ(before, wanted) > 100 * CLOSE, "the mask must matter, or nothing was tested"
    # Every block of both modules got smaller, in the class and in the weights.
    shapes = {key_of(block): block for block in cases.blocks_of(pruned)}
    for block in cases.blocks_of(whole):
        assert shapes[key_of(block)].units == len(kept[key_of(block)]["units"]) < block.units


@pytest.mark.parametrize("twin", cases.TWINS)
def test_as_many_parameters_leave_as_computed(twin, prune, random_twins):
    done = prune(twin, **cases.BOTH)
    whole, _ = cases.loaded(random_twins(twin))
    kept = cases.kept_of(done.folder)
    computed = 0
    for block in cases.blocks_of(whole):
        layers = dict(whole.get_submodule(block.name).named_modules())
        share = 1 - len(kept[key_of(block)]["units"]) / block.units
        if isinstance(block, Neurons):
            rows = [layers[name] for name in block.place.inputs]
            shares = [share] * len(rows)
        else:
            # A fused projection holds several parts, and every one of them shrinks alike here.
            own = 1 - len(kept[key_of(block)]["key_value_heads"]) / block.key_value_heads
            parts = dict(zip(block.place.projections, (share, own, own), strict=True))
            rows, shares = [layers[name] for name in parts], list(parts.values())
        out = layers[block.place.output].weight.numel() * share
        gone = [
            (r.weight.numel() + (0 if r.bias is None else r.bias.numel())) * s
            for r, s in zip(rows, shares, strict=True)
        ]
        computed += round(out + sum(gone))
    before = sum(p.numel() for p in whole.parameters())
    pruned, _ = cases.loaded(done.model)
    assert before - sum(p.numel() for p in pruned.parameters()) == computed > 0
    assert done.checkpoint.parameters == before - computed
    assert f"parameters: {before:,} to {before - computed:,}" in " ".join(done.checkpoint.notes)


@pytest.mark.parametrize(
    ("twin", "needs"),
    [
        ("tiny-llava", None), ("tiny-llava-next", None), ("tiny-qwen2-vl", "PrunedQwen2VLForConditionalGeneration"),
        ("tiny-mllama", "PrunedMllamaForConditionalGeneration"), ("tiny-blip2", "PrunedBlip2ForConditionalGeneration"),
        ("tiny-visiongpt2", "PrunedVisionEncoderDecoderModel"), ("tiny-blip", "PrunedBlipForConditionalGeneration"),
        ("tiny-blip-vqa", "PrunedBlipForQuestionAnswering"),
    ],
)  # fmt: skip
def test_what_is_needed_is_said(twin, needs, prune):
    done = prune(twin)
    made = done.checkpoint
    notes = " ".join(made.notes)
    if needs is None:
        assert made.needs_class is None
        assert "transformers" in made.loads_in
        assert "without this package" in notes
    else:
        assert made.needs_class == f"mhe_compress.{needs}"
        assert made.loads_in == ()
        assert f"saved as mhe_compress.{needs}, which only this package loads" in notes
        assert f"Needs the class `mhe_compress.{needs}`" in render_card(made)
    assert "language heads: 8 to 6" in notes
    assert "0.25 taken out; 0.3 was asked for, and this is the nearest legal number" in notes


def test_feed_forward_alone_is_plain_in_every_family(prune):
    for twin in cases.TWINS:
        done = prune(twin, heads=0, neurons=0.3)
        assert done.checkpoint.needs_class is None, twin
        config = json.loads((Path(done.model.location) / "config.json").read_text())
        assert "pruned_blocks" not in config


def test_vision_and_language_are_apart(prune, random_twins):
    before = dict(cases.loaded(random_twins("tiny-llava"))[0].named_parameters())
    vision = prune("tiny-llava", heads=0, neurons=0, vision_heads=0.5, vision_neurons=0.25)
    after = dict(cases.loaded(vision.model)[0].named_parameters())
    changed = {name for name, value in after.items() if value.shape != before[name].shape}
    assert changed
    assert all("vision_tower" in name for name in changed)
    language = dict(cases.loaded(prune("tiny-llava").model)[0].named_parameters())
    changed = {name for name, value in language.items() if value.shape != before[name].shape}
    assert changed
    assert not any("vision_tower" in name for name in changed), "vision is left alone by default"


def test_a_pruned_model_can_be_pruned_again(prune, catalog, tmp_path):
    once = prune("tiny-mllama")
    twice = run_step(catalog, cases.step_on(once.model, "twice"), cases.place_at(tmp_path))
    whole, processor = cases.loaded(once.model)
    with cases.masked(whole, cases.kept_of(twice.folder)):
        wanted = cases.logits(whole, processor)
    model, own = cases.loaded(twice.model)
    assert differ(cases.logits(model, own), wanted) <= CLOSE
    assert {
        block.units for block in cases.blocks_of(model) if block.kind == "heads" and block.place.module == "language"
    } == {4}


@pytest.mark.parametrize("twin", cases.TWINS)
def test_a_class_of_ours_survives_being_saved_again(twin, prune, tmp_path):
    """As every recipe that comes after pruning does."""
    model, processor = cases.loaded(prune(twin, **cases.BOTH).model)
    save_published(model, processor, tmp_path / "again")
    again, _ = cases.loaded(tmp_path / "again")
    assert type(again) is type(model)
    found, wanted = again.state_dict(), model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


# ---------------------------------------------------------------- grouped queries and legal numbers

PLACE = HeadsPlace("language", "x.*", ("q", "k", "v"), "o", "text_config")


@pytest.mark.parametrize(
    ("heads", "own", "ratio", "grouping", "wanted"),
    [
        (32, 32, 0.3, "auto", (22, 22)),  # LLaVA-1.5: 22.4
        (12, 2, 0.3, "auto", (8, 2)),  # Qwen2-VL-2B: 8.4
        (32, 8, 0.3, "auto", (24, 8)),  # Mistral, Llama 3.1: 22.4, of two equally near ones all groups stay
        (32, 8, 0.3, "whole", (24, 6)),
        (32, 8, 0.4, "auto", (20, 5)),  # 19.2: whole groups come nearer
        (32, 8, 0.4, "within", (16, 8)),
        (8, 1, 0.3, "auto", (6, 1)),
        (8, 8, 0.0, "auto", (8, 8)),
        (4, 4, 0.85, "auto", (1, 1)),
        (8, 4, 0.8, "auto", (2, 1)),
        (8, 8, 0.3, "within", (6, 6)),
    ],
)
def test_the_nearest_legal_number_of_heads(heads, own, ratio, grouping, wanted):
    count = legal_count(Heads("b", PLACE, heads, own, 16), ratio, grouping)
    assert (count.units, count.key_value_heads) == wanted
    assert count.units % count.key_value_heads == 0


def test_widths_are_multiples_nearest_to_the_ratio():
    from mhe import NeuronsPlace

    block = Neurons("b", NeuronsPlace("language", "x.*", ("up",), "down", "text_config"), 11008)
    assert legal_count(block, 0.3, multiple=8).units == 7704
    assert legal_count(block, 0.3, multiple=1).units == 7706
    assert legal_count(block, 0.3).units == legal_count(block, 0.3, multiple=64).units == 7680
    assert legal_count(block, 0.0, multiple=64).units == 11008


def test_equally_many_heads_leave_every_group_or_whole_groups():
    block = Heads("b", PLACE, 8, 4, 16)
    scores = torch.tensor([9.0, 1.0, 8.0, 7.0, 0.1, 0.2, 5.0, 6.0])
    within = choose_units(block, Count(4, 4), scores)
    assert within.units == (0, 2, 5, 7), "the stronger of every pair"
    assert within.key_value_heads == (0, 1, 2, 3)
    whole = choose_units(block, Count(6, 3), scores)
    assert whole.units == (0, 1, 2, 3, 6, 7), "the weakest pair left together"
    assert whole.key_value_heads == (0, 1, 3)


@pytest.mark.parametrize("groups", ["within", "whole"])
@pytest.mark.parametrize("twin", ["tiny-llava-next", "tiny-qwen2-vl", "tiny-mllama"])
def test_grouped_queries_both_ways_equal_a_masked_original(twin, groups, prune, random_twins):
    done = prune(twin, heads=0.5, neurons=0, groups=groups)
    kept = cases.kept_of(done.folder)
    whole, processor = cases.loaded(random_twins(twin))
    pruned, own = cases.loaded(done.model)
    blocks = [b for b in cases.blocks_of(pruned) if key_of(b) in kept]
    originals = {key_of(b): b for b in cases.blocks_of(whole)}
    for block in blocks:
        assert block.units == 4
        shares = originals[key_of(block)].key_value_heads
        assert counts_of(block)["key_value_heads"] == (shares if groups == "within" else shares // 2)
    with cases.masked(whole, kept):
        assert differ(cases.logits(pruned, own), cases.logits(whole, processor)) <= CLOSE


# ---------------------------------------------------------------- plain where it can be

_PLAIN = """
import json, sys

class NoneOfOurs:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("mhe"):
            raise ImportError(name)

sys.meta_path.insert(0, NoneOfOurs())
import torch, transformers
for folder, inputs, out in json.load(sys.stdin):
    kind = getattr(transformers, json.load(open(folder + "/config.json"))["architectures"][0])
    model, told = kind.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    given = torch.load(inputs)
    with torch.no_grad():
        found = model.eval()(**given)
    logits = getattr(found, "logits", None)
    torch.save(found.loss.reshape(1) if logits is None else logits, out)
assert not [name for name in sys.modules if name.split(".")[0].startswith("mhe")]
print("loaded")
"""


def test_plain_checkpoints_load_in_a_process_without_this_package(prune, tmp_path):
    """Equal logits, with plain transformers; the image processor's tensors are made here, the model is all theirs."""
    made = {
        "llava": prune("tiny-llava"),
        "llava-next": prune("tiny-llava-next"),
        "qwen": prune("tiny-qwen2-vl", only_plain=True),
        "mllama": prune("tiny-mllama", heads=0, neurons=0.3),
        "vit": prune("tiny-visiongpt2", heads=0, neurons=0.3, vision_heads=0.25, vision_neurons=0.3),
        "captioner": prune("tiny-blip", only_plain=True),
    }
    asked, wanted = [], {}
    for name, done in made.items():
        assert done.checkpoint.needs_class is None
        model, processor = cases.loaded(done.model)
        batch = dict(collate_training([cases.example()], processor, context=None))
        torch.save(batch, tmp_path / f"{name}.in")
        with torch.no_grad():
            wanted[name] = model(**batch).logits
        asked.append([done.model.location, str(tmp_path / f"{name}.in"), str(tmp_path / f"{name}.out")])
    done = subprocess.run(
        [sys.executable, "-I", "-c", _PLAIN], input=json.dumps(asked), capture_output=True, text=True, timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for name, logits in wanted.items():
        assert differ(torch.load(tmp_path / f"{name}.out"), logits) <= 1e-6, name


def test_a_custom_class_is_refused_by_transformers_alone(prune):
    """Never loaded with wrong shapes in silence."""
    import transformers

    folder = prune("tiny-qwen2-vl").model.location
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder)


def test_only_plain_keeps_zeroed_heads_and_says_so(prune, random_twins):
    done = prune("tiny-qwen2-vl", only_plain=True)
    notes = " ".join(done.checkpoint.notes)
    assert "only_plain: of 16 heads 0 left the matrices, and 4 stay as zeros" in notes
    assert "of 384 neurons 112 left the matrices, and none stay as zeros" in notes
    kept = cases.kept_of(done.folder)
    whole, processor = cases.loaded(random_twins("tiny-qwen2-vl"))
    plain, own = cases.loaded(done.model)
    assert type(plain).__name__ == "Qwen2VLForConditionalGeneration"
    with cases.masked(whole, kept):
        assert differ(cases.logits(plain, own), cases.logits(whole, processor)) <= CLOSE
    attention = plain.model.language_model.layers[0].self_attn
    gone = sorted(set(range(8)) - set(kept["model.language_model.layers.0.self_attn"]["units"]))
    assert len(gone) == 2
    for head in gone:
        rows = slice(32 * head, 32 * head + 32)
        assert not attention.q_proj.weight[rows].any()
        assert not attention.o_proj.weight[:, rows].any()


def test_the_command_evaluates_a_custom_class(prune, tmp_path):
    done = prune("tiny-blip-vqa", **cases.BOTH)
    shutil.copytree(done.model.location, tmp_path / "moved")
    ran = subprocess.run(
        [sys.executable, "-m", "mhe.cli.main", "eval", "--model", str(tmp_path / "moved"), "--task", "phantom-vqa",
         "--limit", "2", "--json", "--set", "backend.device=cpu"],
        capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MHE_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    record = json.loads(ran.stdout)
    record = record.get("record", record)
    text = json.dumps(record)
    assert f'"parameters": {done.checkpoint.parameters}' in text


def test_generation_with_a_cache_equals_a_masked_original(prune, random_twins):
    """Keys and values of each layer's own number of heads are kept between tokens."""
    request = cases.ask("a", "Is there a lesion?", generation=Generation(max_new_tokens=12))

    def answer(model, processor):
        batch = Collator(processor).collate([request])
        assert not batch.failures
        return answer_batch(model, processor, batch, None)[0].text

    for twin in ("tiny-qwen2-vl", "tiny-mllama", "tiny-visiongpt2"):
        done = prune(twin, heads=0.5, groups="whole", neurons=0.3)
        whole, processor = cases.loaded(random_twins(twin))
        with cases.masked(whole, cases.kept_of(done.folder)):
            wanted = answer(whole, processor)
        assert answer(*cases.loaded(done.model)) == wanted
