"""Adapter recipes: what moves and what does not, plain PEFT loads the result, and the papers' parameter counts."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

import tune_cases
from mhe.errors import DocumentError, ModelUnusableError, UserError
from mhe.model_names import resolve_model
from mhe.pipelines import plan_step, preview_step, run_step
from mhe.protocols import BackendContext

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

# One batch of all rows, so that losses of two steps are of the same rows.
QUICK = {"learning_rate": 1e-3, "batch_size": 64, "max_steps": 3, "warmup": 0.0, "keep": "last", "dropout": 0.0}
FAMILIES = ("tiny-llava", "tiny-qwen2-vl", "tiny-mllama", "tiny-visiongpt2", "tiny-blip-vqa")
RECIPES = ("lora", "dora", "ia3", "qlora")


pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=6)


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def adapter_step(base: Path, recipe: str, name: str = "tuned", **settings):
    chosen = {**QUICK, **settings}
    if recipe == "ia3":
        chosen.pop("dropout")
    return replace(tune_cases.step_on(base, name), recipe=recipe, settings=chosen)


def load(spec):
    from mhe_hf import HfOptions, load_model

    return load_model(spec, HfOptions.model_validate(spec.options), offline=True)


def own_weights(model) -> dict:
    """The base's own weights by their name without adapters."""
    return {
        name.replace(".base_layer", ""): parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if not any(part in name for part in ("lora_", "ia3_"))
    }


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_base_keeps_every_bit_and_the_adapters_move(catalog, random_twins, place, name, recipe):
    base = random_twins(name)
    # bitsandbytes on a CPU takes widths that are multiples of 64, as all published models have; this ViT's is 96.
    only = {"quantized_modules": ["language"]} if recipe == "qlora" and name == "tiny-qwen2-vl" else {}
    done = run_step(catalog, adapter_step(base, recipe, **only), place)
    losses = [entry["loss"] for entry in done.checkpoint.history if "loss" in entry]
    assert losses[-1] < losses[0], losses
    trained = {module.name: module.trainable for module in done.checkpoint.modules}
    assert trained["language"] > 0
    assert trained["vision"] == trained["fusion"] == 0
    assert not list((done.folder / "model").glob("*.safetensors")), "the base is not copied"
    if recipe == "qlora":
        return
    model, _ = load(done.model)
    untouched, _ = load(tune_cases.model_at(base))
    before, after = own_weights(untouched), own_weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    start = 1.0 if recipe == "ia3" else 0.0
    moved = [p for key, p in model.named_parameters() if "lora_B" in key or "ia3_" in key]
    assert moved
    assert all(bool((p != start).any()) for p in moved)


@pytest.mark.parametrize("recipe", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("name", ["tiny-llava", "tiny-blip-vqa", "tiny-mllama"])
def test_plain_peft_loads_each_modules_adapter(catalog, random_twins, place, name, recipe):
    """On the sub-module that adapters.json names, with no code of ours, and the logits are those of our loading."""
    from peft import PeftModel

    base = random_twins(name)
    modules = {"vision": "adapter", "fusion": "adapter", "language": "adapter"}
    targets = {"fusion_targets": ["q_proj", "v_proj"]} if name == "tiny-mllama" and recipe != "ia3" else {}
    done = run_step(catalog, adapter_step(base, recipe, **modules, **targets), place)
    ours, _ = load(done.model)
    plain, _ = load(tune_cases.model_at(base))
    folder = done.folder / "model"
    about = json.loads((folder / "adapters.json").read_text())
    assert [member["folder"] for member in about["adapters"]] == ["vision", "fusion", "language"]
    for member in about["adapters"]:
        inner = plain.get_submodule(member["module"])
        wrapped = PeftModel.from_pretrained(inner, folder / member["folder"], adapter_name=member["folder"])
        # Merged, so that the next one finds plain layers.
        merged = wrapped.merge_and_unload()
        if member["module"]:
            plain.set_submodule(member["module"], merged)
        else:
            plain = merged
    expected = own_weights(merge(ours))
    found = own_weights(plain)
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[key], found[key], atol=1e-6) for key in expected)
    untouched, _ = load(tune_cases.model_at(base))
    changed = [key for key, weight in own_weights(untouched).items() if not torch.equal(weight, found[key])]
    assert changed, "the adapters change something"


def merge(model):
    """Adapters added to the layers they are on."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
    return model


def test_a_module_trained_whole_is_saved_beside_the_adapters(catalog, random_twins, place):
    base = random_twins("tiny-llava")
    done = run_step(catalog, adapter_step(base, "lora", fusion="full", vision="adapter"), place)
    model, _ = load(done.model)
    untouched, _ = load(tune_cases.model_at(base))
    before, after = own_weights(untouched), own_weights(model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if "multi_modal_projector" in key}
    assert done.checkpoint.loads_in == ("transformers", "peft")


def test_the_fingerprint_covers_base_and_adapter(catalog, random_twins, place, tmp_path):
    base = shutil.copytree(random_twins("tiny-llava"), tmp_path / "base")
    done = run_step(catalog, adapter_step(base, "lora"), place)
    factory = catalog.backend("hf")

    def describe():
        options = factory.Options.model_validate(done.model.options)
        return factory(done.model, options, BackendContext(True, tmp_path, list)).describe()

    assert describe().fingerprint.digest == done.checkpoint.fingerprint
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**config, "top_k": 3}))
    with pytest.raises(ModelUnusableError, match="trained on other weights"):
        describe()


def test_a_tuned_name_is_found_and_evaluated(catalog, random_twins, place):
    run_step(catalog, adapter_step(random_twins("tiny-llava"), "lora", name="my-lora"), place)
    spec = resolve_model("my-lora", catalog, checkpoints_dir=place.directory)
    model, processor = load(spec)
    assert processor.tokenizer is not None
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 3 * 7


def test_the_same_seed_gives_the_same_bytes(catalog, random_twins, release, tmp_path):
    found = []
    for number in (1, 2):
        where = tune_cases.place_at(tmp_path / str(number), release)
        done = run_step(catalog, adapter_step(random_twins("tiny-llava"), "lora", dropout=0.1), where)
        found.append((done.folder / "model" / "language" / "adapter_model.safetensors").read_bytes())
    assert found[0] == found[1]


# ---------------------------------------------------------------- the papers' counts, at true size without weights


def shares(catalog, config: str, recipe: str, preset: str) -> tuple[int, int]:
    """Trained and all parameters of a preset on a bundled configuration."""
    import mhe_hf

    folder = Path(mhe_hf.__file__).parent / "configurations" / config
    step = replace(adapter_step(folder, recipe), settings={"preset": preset, "dtype": "fp32"})
    factory = catalog.recipe(recipe)
    made = factory(factory.Options.model_validate(step.settings))
    from mhe.protocols import InputModel, RecipeJob, TrainingExample

    example = TrainingExample(request=None, answer="", sample=None)  # type: ignore[arg-type] - a plan only counts them
    with tempfile.TemporaryDirectory() as made_here:
        job = RecipeJob(
            base=InputModel(tune_cases.model_at(folder), "0"), inputs={}, train=[example] * 100, validation=[],
            folder=Path(made_here), seed=0, report=lambda *_: None, architectures=catalog.architectures, offline=True,
            dry_run=True,
        )  # fmt: skip
        result = made.run(job)
    return result.trainable_parameters, result.parameters


def test_llava16_lora_has_the_papers_40_108_032_parameters(catalog):
    trained, total = shares(catalog, "llava-1.6-mistral-7b", "lora", "llava16-lora")
    assert trained == 40_108_032
    assert trained / total == pytest.approx(0.0052, abs=1e-4)


@pytest.mark.parametrize(
    ("recipe", "preset", "share"),
    [
        ("lora", "mile-lora-faa-r4", 0.163),
        ("lora", "mile-lora-faa-r8", 0.325),
        ("lora", "mile-lora-aaa-r4", 0.327),
        ("lora", "mile-lora-aaa-r8", 0.652),
        ("lora", "mile-lora-fta-r4", 38.022),
        ("lora", "mile-lora-fta-r8", 38.072),
        ("lora", "mile-lora-taa-r4", 24.009),
        ("lora", "mile-lora-taa-r8", 24.133),
        ("lora", "mile-lora-tta-r4", 61.887),
        ("lora", "mile-lora-tta-r8", 61.919),
        ("ia3", "mile-ia3-faa", 0.051),
        ("ia3", "mile-ia3-aaa", 0.061),
        ("ia3", "mile-ia3-taa", 23.924),
        ("ia3", "mile-ia3-fta", 37.987),
        ("ia3", "mile-ia3-tta", 61.866),
    ],
)
def test_miles_shares(catalog, recipe, preset, share):
    """The published ViT is a little larger than BLIP's at 384 pixels, hence the tolerance where it is trained."""
    trained, total = shares(catalog, "miss", recipe, preset)
    assert 100 * trained / total == pytest.approx(share, rel=0.006 if share > 1 else 0.01)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 0}, "rank"),
        ({"language": "lora"}, "'frozen', 'full' or 'adapter'"),
        ({"visoin": "adapter"}, "Did you mean vision"),
        ({"preset": "llava16-lara"}, "Did you mean llava16-lora"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_loaded(catalog, random_twins, place, settings, told):
    with pytest.raises(DocumentError) as found:
        plan_step(catalog, adapter_step(random_twins("tiny-llava"), "lora", **settings), place)
    assert told in str(found.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"language_targets": ["q_prj"]}, "Did you mean q_proj?"),
        ({"language_targets": ["linear_1"]}, "fusion has such"),
        ({"language_targets": ["nothing"]}, "There are: down_proj, gate_proj, k_proj"),
        ({"language_targets": []}, "language_targets is empty"),
        ({"language": "frozen"}, "nothing for an adapter recipe to do"),
    ],
)
def test_a_target_that_matches_nothing_names_what_there_is(catalog, random_twins, place, settings, told):
    plan = plan_step(catalog, adapter_step(random_twins("tiny-llava"), "lora", **settings), place)
    with pytest.raises(UserError) as found:
        preview_step(catalog, plan, place)
    assert told in str(found.value)


def test_gradients_are_the_same_after_a_validation(catalog, random_twins):
    """bitsandbytes repacks 4-bit weights when a CPU with bfloat16 evaluates, and repacked layers have no gradient."""
    from peft import LoraConfig

    from mhe_hf import HfOptions, load_model
    from mhe_hf.training.adapter_training import _keep_gradients
    from mhe_hf.training.adapters import put_adapters

    model, processor = load_model(
        tune_cases.model_at(random_twins("tiny-llava")), HfOptions(quantization="nf4", dtype="float32"), offline=True
    )
    _keep_gradients(model)
    names = [f"model.language_model.layers.{number}.self_attn.q_proj" for number in range(3)]
    torch.manual_seed(0)
    treatments = {"vision": "frozen", "fusion": "frozen", "language": "adapter"}
    put_adapters(model, LoraConfig(r=4), {"language": names}, treatments, {})
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    tokens = processor.tokenizer("what is this?", return_tensors="pt")["input_ids"]

    def gradients():
        model.zero_grad()
        model.train()
        model(input_ids=tokens, labels=tokens).loss.backward()
        return [p.grad.clone() for n, p in model.named_parameters() if "lora_B" in n]

    before = gradients()
    model.eval()
    with torch.no_grad():
        model(input_ids=tokens)
    after = gradients()
    assert all(bool(gradient.any()) for gradient in before)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_quantised_module_cannot_be_trained_whole(catalog, random_twins, place):
    with pytest.raises(DocumentError, match="weights of few bits cannot be trained"):
        plan_step(catalog, adapter_step(random_twins("tiny-llava"), "qlora", fusion="full"), place)
