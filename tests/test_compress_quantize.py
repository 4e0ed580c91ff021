"""The recipe `quantize`: what it writes reloads in plain transformers and is what loading in few bits gives."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

import tune_cases
from hf_models import build_llava
from mhe.documents.model import ModelSpec
from mhe.errors import DocumentError, ModelUnusableError, UserError
from mhe.pipelines import Step, plan_step, preview_step, run_step

pytest.importorskip("bitsandbytes")
torch = pytest.importorskip("torch")

from mhe_compress.merge_prompts import drawn_example, logits_of  # noqa: E402
from mhe_hf import HfOptions, load_model  # noqa: E402
from mhe_hf.description import loaded_facts, stored_bytes  # noqa: E402

KINDS = [
    {"quantization": "nf4"},
    {"quantization": "fp4", "double_quant": False, "modules": ["language"]},
    {"quantization": "int8", "modules": ["vision", "language"]},
]
ALONE = """
import sys, torch
from safetensors.torch import load_file
import transformers
folder, given, wanted = sys.argv[1:]
config = transformers.AutoConfig.from_pretrained(folder)
model, report = getattr(transformers, config.architectures[0]).from_pretrained(folder, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
assert not any(name.split(".")[0].startswith("mhe") for name in sys.modules)
with torch.no_grad():
    logits = model(**load_file(given)).logits
assert torch.equal(logits, load_file(wanted)["logits"]), (logits - load_file(wanted)["logits"]).abs().max()
"""


@pytest.fixture
def place(tmp_path):
    return tune_cases.place_at(tmp_path / "checkpoints", tmp_path)


def quantize(folder, name="small", **settings):
    return Step(name=name, recipe="quantize", base=tune_cases.model_at(folder), settings=settings)


def on_the_fly(folder, **settings):
    chosen = HfOptions(
        quantization=settings["quantization"],
        double_quant=settings.get("double_quant", settings["quantization"] != "int8"),
        quantized_modules=tuple(settings.get("modules", ("vision", "fusion", "language"))),
        device="cpu",
    )
    return load_model(tune_cases.model_at(folder), chosen, offline=True)[0]


@pytest.mark.parametrize(
    ("name", "settings"),
    [("tiny-llava", KINDS[0]), ("tiny-llava", KINDS[1]), ("tiny-mllama", KINDS[1]), ("tiny-blip-vqa", KINDS[2]),
     ("tiny-visiongpt2", KINDS[0])],
)  # fmt: skip
def test_the_checkpoint_is_the_model_quantised_while_loading(catalog, place, random_twins, name, settings):
    done = run_step(catalog, quantize(random_twins(name), **settings), place)
    model, processor = load_model(done.model, HfOptions(device="cpu"), offline=True)
    # Before the first forward pass, in which the library repacks weights for the processor.
    facts, stored = loaded_facts(model, HfOptions()), stored_bytes(model)
    other = on_the_fly(random_twins(name), **settings)
    examples = [drawn_example(number) for number in range(2)]
    for one, two in zip(logits_of(model, processor, examples), logits_of(other, processor, examples), strict=True):
        assert torch.equal(one, two)
    whole = load_model(tune_cases.model_at(random_twins(name)), HfOptions(device="cpu"), offline=True)[0]
    assert not torch.equal(logits_of(whole, processor, examples)[0], one), "nothing was quantised"
    checkpoint = done.checkpoint
    assert checkpoint.parameters == sum(parameter.numel() for parameter in whole.parameters())
    assert checkpoint.bytes_on_disk < sum(path.stat().st_size for path in random_twins(name).iterdir())
    weights = sum(path.stat().st_size for path in (done.folder / "model").glob("*.safetensors"))
    assert 0 <= weights - stored < 0.15 * weights, "the rest is the file's header and code tables"
    assert facts["precision"].startswith(settings["quantization"])
    assert any(f"{facts['bits_per_weight']:.4g} bits a weight" in note for note in checkpoint.notes)


def test_the_preview_says_the_size_and_writes_the_shape(catalog, place, random_twins, tmp_path):
    for settings in KINDS:
        step = quantize(random_twins("tiny-llava"), **settings)
        told = preview_step(catalog, plan_step(catalog, step, place), place, tmp_path / settings["quantization"])
        real = stored_bytes(on_the_fly(random_twins("tiny-llava"), **settings))
        # Code tables of 16 or 256 numbers a layer are left out; in a model this small they show.
        assert told.needed_bytes == pytest.approx(real, rel=0.12)
        assert not list(told.model_folder.glob("*.safetensors"))
        planned = replace(step, base=ModelSpec(
            name="planned", backend="hf", location=str(told.model_folder), options={"random_weights": True}
        ))  # fmt: skip
        with pytest.raises(UserError, match="is quantised already"):
            preview_step(catalog, plan_step(catalog, planned, place), place)


def test_it_loads_and_answers_without_mhe(catalog, place, random_twins, tmp_path):
    from safetensors.torch import save_file

    from mhe_hf import collate_training

    done = run_step(catalog, quantize(random_twins("tiny-llava")), place)
    model, processor = load_model(done.model, HfOptions(device="cpu"), offline=True)
    batch = dict(collate_training([drawn_example(0)], processor))
    batch.pop("labels")
    with torch.no_grad():
        save_file({"logits": model(**batch).logits.contiguous()}, tmp_path / "wanted.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in batch.items()}, tmp_path / "given.safetensors")
    arguments = [done.model.location, str(tmp_path / "given.safetensors"), str(tmp_path / "wanted.safetensors")]
    ran = subprocess.run([sys.executable, "-c", ALONE, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_what_is_in_few_bits_already_is_refused(catalog, place, random_twins):
    done = run_step(catalog, quantize(random_twins("tiny-llava")), place)
    again = replace(quantize(random_twins("tiny-llava"), "twice"), base=done.model)
    with pytest.raises(UserError, match=r"quantised already \(nf4\).*recipe merge"):
        run_step(catalog, again, place)
    loading = done.model.model_copy(update={"options": {"quantization": "int8"}})
    with pytest.raises(ModelUnusableError, match=r"quantised already \(nf4\)"):
        load_model(loading, HfOptions(quantization="int8"), offline=True)
    trained = Step(name="t", recipe="full", base=done.model, data=tune_cases.step_on(done.folder).data)
    release = tune_cases.write_release(place.data_dir / "vqa_rad")
    with pytest.raises(UserError, match=r"is quantised \(nf4\)"):
        run_step(catalog, trained, replace(place, data_dir=release))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"quantization": "int8", "double_quant": True}, "double_quant needs"),
        ({"modules": []}, "nothing would be quantised"),
        ({"quantization": "nf5"}, "nf4"),
    ],
)
def test_bad_options_are_told(catalog, place, random_twins, settings, told):
    with pytest.raises(DocumentError, match=told):
        plan_step(catalog, quantize(random_twins("tiny-llava"), **settings), place)


def test_a_module_without_linear_layers_is_an_error(catalog, place, random_twins):
    with pytest.raises(UserError, match="no linear layer"):
        run_step(catalog, quantize(random_twins("tiny-blip"), modules=["fusion"]), place)


# ---------------------------------------------------------------- widths that a CPU's kernel cannot take


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A LLaVA whose feed-forward layers of the language model are 100 wide, as a pruned one's may be."""
    return build_llava(tmp_path_factory.mktemp("uneven") / "uneven", hidden=64, feed_forward=100)


def test_layers_that_do_not_run_everywhere_are_named_and_run_here(catalog, place, uneven, tmp_path):
    step = quantize(uneven, double_quant=False, quantization="fp4")
    done = run_step(catalog, step, place)
    (note,) = (note for note in done.checkpoint.notes if "AVX512-BF16" in note)
    assert "6 layers of language" in note
    assert "gate_proj: 64 to 100" in note
    model, processor = load_model(done.model, HfOptions(device="cpu"), offline=True)
    (logits,) = logits_of(model, processor, [drawn_example(0)])
    assert bool(logits.isfinite().all())
    told = preview_step(catalog, plan_step(catalog, replace(step, name="planned"), place), place, tmp_path / "preview")
    assert note in told.notes


@pytest.mark.parametrize("settings", [{"modules": ["vision", "fusion"]}, {"quantization": "int8"}])
def test_what_runs_everywhere_has_no_note(catalog, place, uneven, settings):
    done = run_step(catalog, quantize(uneven, **settings), place)
    assert not any("AVX512-BF16" in note for note in done.checkpoint.notes)


def test_the_rule_is_that_of_the_library():
    """Each layer by itself, on this machine's CPU, against what is noted."""
    import bitsandbytes
    from bitsandbytes.functional import has_avx512bf16

    from mhe_compress.quantize import PACKED_WIDTHS

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, so that the library runs every width")
    for width, outputs in ((64, 64), (128, 32), (100, 64), (64, 100), (96, 64), (192, 48)):
        layer = bitsandbytes.nn.Linear4bit(width, outputs, bias=False, compute_dtype=torch.float32).to("cpu").eval()
        runs = not width % PACKED_WIDTHS[0] and not outputs % PACKED_WIDTHS[1]
        try:
            with torch.no_grad():
                layer(torch.randn(3, width))
        except (AssertionError, RuntimeError):
            assert not runs, (width, outputs)
        else:
            assert runs, (width, outputs)
