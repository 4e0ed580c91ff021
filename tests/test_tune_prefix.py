"""Recipes `prefix` and `ptuning-v2`: every family trains, what is saved was trained, attention is as defined."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import tune_cases
from hf_models import answers, ask, open_backend, picture
from mhe.errors import ModelUnusableError
from mhe.pipelines import run_step
from mhe.protocols import BackendContext

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

# One batch of all rows, so that losses of two steps are of the same rows.
QUICK = {"learning_rate": 3e-3, "batch_size": 64, "max_steps": 3, "warmup": 0.0, "keep": "last"}
TWINS = ("tiny-llava", "tiny-llava-next", "tiny-qwen2-vl", "tiny-mllama", "tiny-visiongpt2", "tiny-blip-vqa")
RECIPES = ("prefix", "ptuning-v2")
QUESTIONS = ("what ?", "is there a fracture in the left lung ?", "where is the liver", "describe this image of a chest")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=6)


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def prefix_step(base: Path, recipe: str = "ptuning-v2", name: str = "tuned", **settings):
    return replace(tune_cases.step_on(base, name), recipe=recipe, settings={**QUICK, **settings})


def load(spec, **options):
    from mhe_hf import HfOptions, load_model

    return load_model(spec, HfOptions.model_validate({**spec.options, "dtype": "float32", **options}), offline=True)


def requests():
    return [ask(f"q{number}", text, image=picture(number)) for number, text in enumerate(QUESTIONS)]


def decoding_of(model, processor):
    """What decoding of a padded batch begins with, and its padding mask."""
    from mhe_hf import Collator, family_of

    collator = Collator(processor)
    batch = collator.collate(requests())
    collator.close()
    assert not batch.failures
    with torch.inference_mode():
        return family_of(processor).decoding(model, batch.inputs, batch.prompt_tokens), batch


def first_logits(model, processor):
    """Of the last place of each prompt, in one padded batch."""
    decoding, _ = decoding_of(model, processor)
    with torch.inference_mode():
        return decoding.generator(**decoding.inputs).logits[:, -1].clone()


@dataclass
class Tuned:
    done: object
    trained_logits: object
    """As the trained model gave them in memory, before it was saved."""


@pytest.fixture(scope="module")
def tuned(catalog, random_twins, release, tmp_path_factory):
    """A twin with a prefix on every module that has self-attention, trained once by recipe."""
    import mhe_tune.prefix_training
    from mhe_hf import take_prefixes

    made = {}

    def find(name, recipe="prefix"):
        if (name, recipe) in made:
            return made[name, recipe]
        seen = []

        def record(model):
            processor = load(tune_cases.model_at(random_twins(name)))[1]
            seen.append(first_logits(model.eval(), processor))
            take_prefixes(model)

        modules = dict.fromkeys(("vision", "language", *(["fusion"] if name == "tiny-blip-vqa" else [])), "adapter")
        where = tune_cases.place_at(tmp_path_factory.mktemp("checkpoints"), release)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mhe_tune.prefix_training, "take_prefixes", record)
            done = run_step(catalog, prefix_step(random_twins(name), recipe, **modules), where)
        made[name, recipe] = Tuned(done, seen[0])
        return made[name, recipe]

    return find


# ---------------------------------------------------------------- training and saving


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_prefix_learns_the_base_keeps_every_bit_and_the_saved_model_is_the_trained_one(
    random_twins, tuned, name, recipe
):
    found = tuned(name, recipe)
    losses = [entry["loss"] for entry in found.done.checkpoint.history if "loss" in entry]
    assert losses[-1] < losses[0], losses
    assert not list((found.done.folder / "model").glob("*.safetensors")), "the base is not copied"
    assert found.done.checkpoint.loads_in == ()
    assert found.done.checkpoint.needs_class == "mhe_hf.KeysAndValues"
    model, processor = load(found.done.model)
    untouched, _ = load(tune_cases.model_at(random_twins(name)))
    own = {key: value for key, value in model.named_parameters() if "learned_prefix" not in key}
    before = dict(untouched.named_parameters())
    assert own.keys() == before.keys()
    assert all(torch.equal(before[key], own[key]) for key in before)
    assert torch.equal(first_logits(model, processor), found.trained_logits)
    assert not torch.allclose(first_logits(untouched, processor), found.trained_logits, atol=1e-2)


def test_every_prefix_has_moved_from_where_it_started(catalog, place, tmp_path):
    """Training at a rate of nearly nothing shows the start; the trained one differs from it in every layer."""
    from mhe_hf import save_published
    from mhe_tiny.build import build

    # As initialised: attention of a twin is so sharp that keys near 0 are hardly seen.
    model, processor = build("tiny-blip-vqa", 0)
    for parameter in model.vision_model.parameters():
        # transformers draws those of BLIP's image encoder at 1e-10.
        torch.nn.init.normal_(parameter.data, 0, 0.05)
    save_published(model, processor, tmp_path / "tiny-blip-vqa")
    states = {}
    for name, rate in (("still", 1e-30), ("moved", 1e-2)):
        settings = {"vision": "adapter", "fusion": "adapter", "learning_rate": rate, "spread": 1.0}
        done = run_step(catalog, prefix_step(tmp_path / "tiny-blip-vqa", name=name, **settings), place)
        states[name] = {key: p for key, p in load(done.model)[0].named_parameters() if "learned_prefix" in key}
    # Three layers of vision, two of fusion, two of language; keys and values.
    assert len(states["still"]) == len(states["moved"]) == 2 * (3 + 2 + 2)
    assert all(bool((states["moved"][key] != value).any()) for key, value in states["still"].items())
    drawn = torch.cat([value.flatten() for value in states["still"].values()])
    assert float(drawn.std()) == pytest.approx(1, rel=0.05)


def test_a_module_trained_whole_is_saved_beside_the_prefix(catalog, random_twins, place):
    base = random_twins("tiny-llava")
    done = run_step(catalog, prefix_step(base, "prefix", fusion="full"), place)
    model, _ = load(done.model)
    untouched, _ = load(tune_cases.model_at(base))
    now = dict(model.named_parameters())
    changed = {key for key, value in untouched.named_parameters() if not torch.equal(value, now[key])}
    assert changed == {key for key in now if "multi_modal_projector" in key}
    assert sum("learned_prefix" in key for key in now) == 2 * 3


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_seed_gives_the_same_bytes(catalog, random_twins, release, tmp_path, recipe):
    found = []
    for number, seed in enumerate((0, 0, 1)):
        where = tune_cases.place_at(tmp_path / str(number), release)
        step = replace(prefix_step(random_twins("tiny-visiongpt2"), recipe), seed=seed)
        done = run_step(catalog, step, where)
        found.append((done.folder / "model" / "language" / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_the_fingerprint_covers_the_prefix(catalog, tuned, tmp_path):
    from safetensors.torch import load_file, save_file

    done = tuned("tiny-visiongpt2").done
    folder = shutil.copytree(done.folder / "model", tmp_path / "model")
    spec = done.model.model_copy(update={"location": str(folder)})
    factory = catalog.backend("hf")

    def digest():
        context = BackendContext(True, tmp_path, list)
        return factory(spec, factory.Options.model_validate(spec.options), context).describe().fingerprint.digest

    assert digest() == done.checkpoint.fingerprint
    path = folder / "language" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["transformer.h.0.attn.keys"][0, 0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    assert digest() != done.checkpoint.fingerprint


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("name", TWINS)
def test_cached_and_uncached_generation_agree(tuned, name):
    from mhe_hf.generation import plain_settings

    model, processor = load(tuned(name).done.model)
    decoding, _ = decoding_of(model, processor)
    found = []
    for is_cached in (True, False):
        settings = copy.deepcopy(plain_settings(model, processor))
        settings.update(use_cache=is_cached, max_new_tokens=6, output_logits=True, return_dict_in_generate=True)
        settings.eos_token_id = None
        with torch.inference_mode():
            found.append(decoding.generator.generate(**decoding.inputs, generation_config=settings))
    cached, uncached = found
    assert torch.equal(cached.sequences, uncached.sequences)
    assert cached.sequences.shape[1] == decoding.prompt_length + 6
    assert all(torch.allclose(a, b, atol=2e-4) for a, b in zip(cached.logits, uncached.logits, strict=True))


@pytest.mark.parametrize("name", TWINS)
def test_texts_do_not_depend_on_the_batch(tuned, name):
    """Questions of unequal length, alone and in a batch, padded on the family's own side."""
    folder = tuned(name).done.folder / "model"
    # A captioner is asked one question of all images.
    asked = [ask(r.sample_id, "what ?", image=picture(n)) for n, r in enumerate(requests())]
    asked = asked if name == "tiny-visiongpt2" else requests()
    texts = []
    for size in (1, 8):
        backend = open_backend(folder, dtype="float32", batch_size=size)
        found = answers(backend, asked)
        texts.append([found[request.sample_id].text for request in asked])
        backend.close()
    assert texts[0] == texts[1]
    assert any(texts[0])
    assert len(set(texts[0])) > 1


@pytest.mark.parametrize("name", [name for name in TWINS if name != "tiny-blip-vqa"])
def test_both_ways_of_computing_attention_agree(tuned, name):
    spec = tuned(name).done.model
    by = [first_logits(*load(spec, attn_implementation=way)) for way in ("sdpa", "eager")]
    assert torch.allclose(by[0], by[1], atol=5e-4)


def test_a_prefix_computes_in_the_models_precision(tuned):
    model, processor = load(tuned("tiny-llava").done.model)
    halved, _ = load(tuned("tiny-llava").done.model, dtype="bfloat16")
    assert halved.dtype == torch.bfloat16
    decoding, batch = decoding_of(halved, processor)
    inputs = {
        key: value.bfloat16() if getattr(value, "is_floating_point", bool)() else value
        for key, value in batch.inputs.items()
    }
    with torch.inference_mode():
        found = halved(**inputs).logits[:, -1].float()
    whole = first_logits(model, processor)
    assert float(torch.nn.functional.cosine_similarity(found, whole).min()) > 0.99
    assert decoding.prompt_length == batch.inputs["input_ids"].shape[1]


# ---------------------------------------------------------------- attention by hand


def by_hand(layer, hidden, visible, rotate=None):
    """The layer's output before any mixing of heads, in float64: softmax over prefix and tokens, from the definition.

    `visible` is (batch, queries, tokens); `rotate` turns queries and keys of (batch, heads, tokens, width) by place.
    """
    weights = {key: value.double() for key, value in layer.named_parameters()}
    width = getattr(layer, "head_dim", None) or layer.attention_head_size

    def linear(part):
        bias = weights.get(f"{part}.bias", 0)
        weight = weights[f"{part}.weight"]
        return hidden.double() @ (weight if part == "c_attn" else weight.T) + bias

    fused = next((part for part in ("c_attn", "qkv") if f"{part}.weight" in weights), None)
    if fused:
        made = linear(fused).chunk(3, dim=-1)
    else:
        parts = ("q_proj", "k_proj", "v_proj") if "q_proj.weight" in weights else ("query", "key", "value")
        made = [linear(part) for part in parts]
    query, key, value = (state.unflatten(-1, (-1, width)).transpose(1, 2) for state in made)
    if rotate is not None:
        query, key = rotate(query, key)
    out = torch.empty_like(query)
    shared = query.shape[1] // key.shape[1]
    for head in range(query.shape[1]):
        of = head // shared
        before = weights["learned_prefix.keys"][of], weights["learned_prefix.values"][of]
        for row in range(query.shape[0]):
            keys = torch.cat([before[0], key[row, of]])
            values = torch.cat([before[1], value[row, of]])
            scores = query[row, head] @ keys.T / math.sqrt(width)
            seen = torch.cat([torch.ones(query.shape[2], before[0].shape[0], dtype=torch.bool), visible[row]], dim=1)
            out[row, head] = scores.masked_fill(~seen, -math.inf).softmax(dim=-1) @ values
    return out.transpose(1, 2).flatten(2)


def rotation(layer, given):
    """By the library's own function, which the prefix has no part in."""
    cos, sin = (part.double() for part in given["position_embeddings"])
    module = sys.modules[type(layer).__module__]
    if hasattr(module, "apply_multimodal_rotary_pos_emb"):
        sections = layer.config.rope_parameters["mrope_section"]
        return lambda q, k: module.apply_multimodal_rotary_pos_emb(q, k, cos, sin, sections)
    return lambda q, k: module.apply_rotary_pos_emb(q, k, cos, sin)


CASES = (
    ("tiny-llava", "model.language_model.layers.1.self_attn", "causal"),
    ("tiny-llava", "model.vision_tower.encoder.layers.1.self_attn", "all"),
    ("tiny-llava-next", "model.language_model.layers.2.self_attn", "causal"),
    ("tiny-qwen2-vl", "model.language_model.layers.1.self_attn", "causal"),
    ("tiny-mllama", "model.language_model.layers.2.self_attn", "causal"),
    ("tiny-visiongpt2", "decoder.transformer.h.1.attn", "causal"),
    ("tiny-visiongpt2", "encoder.layers.2.attention", "all"),
    ("tiny-blip-vqa", "vision_model.encoder.layers.1.self_attn", "all"),
    ("tiny-blip-vqa", "text_encoder.encoder.layer.1.attention.self", "padded"),
    ("tiny-blip-vqa", "text_decoder.bert.encoder.layer.1.attention.self", "causal"),
)


@pytest.mark.parametrize(("name", "path", "sight"), CASES)
def test_attention_with_a_prefix_is_what_the_definition_says(tuned, name, path, sight):
    model, processor = load(tuned(name).done.model)
    layer = model.get_submodule(path)
    if type(layer).__name__ == "BlipAttention":
        # transformers draws them at 1e-10, and nothing would be seen of the layer.
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter.data, 0, 0.2)
    calls = []

    def keep(_layer, given, named, output):
        calls.append((given[0] if given else named["hidden_states"], named, output[0]))

    handle = layer.register_forward_hook(keep, with_kwargs=True)
    decoding, batch = decoding_of(model, processor)
    if not calls:
        with torch.inference_mode():
            decoding.generator(**decoding.inputs)
    handle.remove()
    hidden, named, output = calls[0]
    places = hidden.shape[1]
    real = torch.ones(hidden.shape[:2], dtype=torch.bool)
    mask = batch.inputs.get("attention_mask")
    if sight != "all" and mask is not None and mask.shape[1] == places:
        real = mask.bool()
        assert not real.all(), "the batch is padded"
    visible = real[:, None, :].expand(-1, places, -1)
    if sight == "causal":
        visible = visible & torch.ones(places, places, dtype=torch.bool).tril()
    rotate = rotation(layer, named) if "position_embeddings" in named else None
    expected = by_hand(layer, hidden, visible, rotate)
    layer.learned_prefix.values.data.zero_()
    assert not torch.allclose(by_hand(layer, hidden, visible, rotate), expected, atol=1e-2), "the prefix is seen"
    last = next((part for part in ("o_proj", "out_proj", "c_proj", "projection") if hasattr(layer, part)), None)
    if last is not None:
        expected = copy.deepcopy(getattr(layer, last)).double()(expected)
    assert torch.allclose(output.double()[real], expected[real], atol=1e-4, rtol=1e-3)


# ---------------------------------------------------------------- taken off, and where it does not belong


def test_a_second_prefix_is_refused_and_one_taken_off_leaves_the_base(tuned, random_twins):
    from mhe_hf import KeysAndValues, put_prefix, take_prefixes

    for name, path, size in (
        ("tiny-llava", "model.language_model.layers.0.self_attn", (8, 2, 32)),
        ("tiny-blip-vqa", "text_encoder.encoder.layer.0.attention.self", (8, 2, 16)),
    ):
        model, processor = load(tuned(name).done.model)
        with pytest.raises(ModelUnusableError, match="has a learned prefix already"):
            put_prefix(model, path, KeysAndValues(torch.zeros(size), torch.zeros(size)))
        take_prefixes(model)
        untouched, _ = load(tune_cases.model_at(random_twins(name)))
        assert model.state_dict().keys() == untouched.state_dict().keys()
        assert torch.equal(first_logits(model, processor), first_logits(untouched, processor))


def test_a_prefix_is_refused_where_it_does_not_belong(catalog, random_twins, tuned, tmp_path):
    done = tuned("tiny-llava").done
    folder = shutil.copytree(done.folder / "model", tmp_path / "model")
    spec = done.model.model_copy(update={"location": str(folder)})
    with pytest.raises(ModelUnusableError, match="no weights to merge into: leave merge_adapter=false"):
        load(spec, merge_adapter=True)
    other = tune_cases.model_at(random_twins("tiny-llava-next"))
    alone = {"adapters": [{"folder": str(folder / "language"), "module": "model.language_model"}], "other_base": True}
    with pytest.raises(
        ModelUnusableError, match=r"wants keys and values of 4 heads of width 32, and got \(8, 30, 32\)"
    ):
        load(other, **alone)
    alone["adapters"][0]["module"] = "model.vision_tower"
    with pytest.raises(ModelUnusableError, match=r"3 of its layers are not there \(layers.0.self_attn"):
        load(other, **alone)
    about = json.loads((folder / "adapters.json").read_text())
    del about["adapters"][0]["kind"]
    (folder / "adapters.json").write_text(json.dumps(about))
    with pytest.raises(ModelUnusableError, match=r"of kind 'peft', and its adapter_config.json is of kind 'prefix'"):
        load(spec)


def test_one_modules_prefix_can_be_put_on_its_base_alone(random_twins, tuned):
    """`adapters` names the folder and the sub-module, as for PEFT's adapters."""
    done = tuned("tiny-llava").done
    base = tune_cases.model_at(random_twins("tiny-llava"))
    chosen = [{"folder": str(done.folder / "model" / m), "module": f"model.{path}"} for m, path in (
        ("language", "language_model"), ("vision", "vision_tower"),
    )]  # fmt: skip
    model, processor = load(base, adapters=chosen)
    assert torch.equal(first_logits(model, processor), tuned("tiny-llava").trained_logits)
