"""PEFT adapters on their base: found, merged or beside it, on a sub-module, and refused on another base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import hf_family_models
import hf_models
from hf_models import answers, ask, open_backend, picture
from mhe import BackendContext, ModelSpec, ModelUnusableError
from mhe_hf import HfBackend, HfOptions, load_model

peft = pytest.importorskip("peft")

TARGETS = {
    "llava": r".*language_model.*\.(q_proj|v_proj)",
    "qwen2_vl": r".*language_model.*\.(q_proj|v_proj)",
    "mllama": r".*cross_attn\.(q_proj|v_proj)",
    "visiongpt2": r".*crossattention\.(q_attn|c_proj)",
    "blip": r".*crossattention\.self\.(query|value)",
    "blip-vqa": r".*crossattention\.self\.(query|value)",
    "blip-2": r".*language_model.*\.(q_proj|v_proj)",
}


def spec_of(folder: object) -> ModelSpec:
    return ModelSpec(name="tiny", backend="hf", location=str(folder))


def write_adapter(
    base: Path, folder: Path, targets: str, *, module: str = "", seed: int = 0, named: str | None = None, **settings
) -> Path:
    """A LoRA with weights of its own on both sides, as PEFT writes it."""
    model, _ = load_model(spec_of(base))
    target = model.get_submodule(module)
    wrapped = peft.get_peft_model(target, peft.LoraConfig(target_modules=targets, r=4, **settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.5)
    wrapped.peft_config["default"].base_model_name_or_path = str(base) if named is None else named
    wrapped.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    made = {}

    def base(name):
        if name not in made:
            made[name] = hf_family_models.FAMILIES[name](tmp_path_factory.mktemp(name))
        return made[name]

    return base


@pytest.fixture(scope="module")
def adapter(bases, tmp_path_factory):
    return write_adapter(bases("llava"), tmp_path_factory.mktemp("adapter"), TARGETS["llava"])


def texts(folder: Path, **options: object) -> list[str]:
    backend = open_backend(folder, dtype="float32", **options)
    requests = [ask(f"q{n}", "what ?", image=picture(n)) for n in range(3)]
    found = [answers(backend, requests)[r.sample_id].text for r in requests]
    backend.close()
    return found


def fingerprint(folder: Path, **options: object):
    context = BackendContext(True, Path("cache"), list)
    return HfBackend(spec_of(folder), HfOptions(**options), context).describe().fingerprint


@pytest.mark.parametrize("name", TARGETS)
def test_an_adapter_changes_answers_beside_the_weights_as_merged(bases, tmp_path, name):
    base = bases(name)
    folder = write_adapter(base, tmp_path / "adapter", TARGETS[name])
    beside, merged = texts(folder), texts(folder, merge_adapter=True)
    assert beside == merged == texts(base, adapter=str(folder))
    assert beside != texts(base)
    # PEFT alone says the same.
    model, _ = load_model(spec_of(folder))
    plain, _ = load_model(spec_of(base))
    wrapped = peft.PeftModel.from_pretrained(plain, folder)
    own, other = dict(model.named_parameters()), dict(wrapped.base_model.model.named_parameters())
    assert own.keys() == other.keys()
    assert all(torch.equal(own[key], value) for key, value in other.items())


def test_parameters_of_an_adapter_count_where_they_lie(bases, adapter):
    backend = open_backend(adapter)
    described = backend.describe()
    plain = open_backend(bases("llava")).describe()
    added = described.parameters - plain.parameters
    assert added > 0
    assert described.module_parameters["language"] == plain.module_parameters["language"] + added
    assert set(described.module_parameters) == {"vision", "fusion", "language"}
    assert "peft" in open_backend(bases("llava"), adapter=str(adapter)).describe().version


def test_one_adapter_a_module(bases, tmp_path):
    """Each on its sub-module; another on the whole model, touching other layers."""
    base = bases("blip-vqa")
    first = write_adapter(base, tmp_path / "one", r".*self\.query", module="text_encoder", named="")
    second = write_adapter(base, tmp_path / "two", r".*self\.value", module="text_decoder", seed=1, named="")
    third = write_adapter(base, tmp_path / "three", r"vision_model.*self_attn\.projection", seed=2)
    choice = [
        {"folder": str(first), "module": "text_encoder"},
        {"folder": str(second), "module": "text_decoder"},
        str(third),
    ]
    beside = texts(base, adapters=choice)
    assert beside == texts(base, adapters=choice, merge_adapter=True)
    for left_out in range(3):
        assert beside != texts(base, adapters=[one for n, one in enumerate(choice) if n != left_out])
    backend = open_backend(base, adapters=choice)
    assert set(backend.describe().module_parameters) == {"vision", "fusion", "language"}


def test_a_prefix_stays_around_its_module(bases, tmp_path):
    """PEFT's prefix works on BLIP's text decoder alone."""
    base = bases("blip-vqa")
    model, _ = load_model(spec_of(base))
    settings = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=64, num_attention_heads=2, num_layers=2
    )
    wrapped = peft.get_peft_model(model.text_decoder, settings)
    torch.manual_seed(3)
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.normal_(0, 3)
    wrapped.save_pretrained(tmp_path / "prefix")
    one = {"folder": str(tmp_path / "prefix"), "module": "text_decoder"}
    found = texts(base, adapters=[one], batch_size=4)
    assert found == texts(base, adapters=[one], batch_size=1)
    assert found != texts(base)
    backend = open_backend(base, adapters=[one])
    described = backend.describe()
    assert type(backend._model.text_decoder).__name__.startswith("PeftModel")
    assert sum(described.module_parameters.values()) == described.parameters
    plain = open_backend(base).describe()
    # Two layers of keys and values for three places.
    assert described.module_parameters == {
        **plain.module_parameters, "language": plain.module_parameters["language"] + 3 * 2 * 2 * 64
    }  # fmt: skip
    with pytest.raises(ModelUnusableError, match="prompt or prefix, which has no weights to merge"):
        load_model(spec_of(base), HfOptions(adapters=[one], merge_adapter=True))


def test_the_fingerprint_covers_base_adapter_and_its_module(bases, adapter, tmp_path):
    base = bases("llava")
    plain, one = fingerprint(base), fingerprint(base, adapter=str(adapter))
    assert one == fingerprint(adapter)
    assert one.verified
    assert one.bytes_on_disk > plain.bytes_on_disk
    other = write_adapter(base, tmp_path / "other", TARGETS["llava"], seed=9)
    moved = shutil.copytree(adapter, tmp_path / "moved")
    assert fingerprint(base, adapter=str(moved)).digest == one.digest
    named = [{"folder": str(adapter), "module": "model"}]
    digests = {plain.digest, one.digest, fingerprint(other).digest, fingerprint(base, adapters=named).digest}
    assert len(digests) == 4


class TestRefused:
    def test_an_adapter_that_names_another_base(self, bases, adapter, tmp_path):
        twin = hf_models.build_llava(tmp_path / "twin", seed=1)
        with pytest.raises(ModelUnusableError, match=r"was trained on .* and the base is [\s\S]*other_base=true"):
            load_model(spec_of(twin), HfOptions(adapter=str(adapter)))
        assert load_model(spec_of(twin), HfOptions(adapter=str(adapter), other_base=True))

    def test_an_adapter_of_other_shapes(self, adapter, tmp_path):
        wide = hf_models.build_llava(tmp_path / "wide", hidden=128)
        with pytest.raises(ModelUnusableError, match=r"does not fit Llava.*another base.*size mismatch"):
            load_model(spec_of(wide), HfOptions(adapter=str(adapter), other_base=True))

    def test_an_adapter_of_another_family(self, bases, adapter):
        with pytest.raises(ModelUnusableError, match="does not fit Blip"):
            load_model(spec_of(bases("blip-vqa")), HfOptions(adapter=str(adapter), other_base=True))

    def test_an_adapter_of_a_deeper_base(self, bases, adapter, tmp_path):
        deep = hf_models.build_llava(tmp_path / "deep", layers=3)
        with pytest.raises(ModelUnusableError, match=r"does not fit Llava.*4 places get none"):
            load_model(spec_of(deep), HfOptions(adapter=str(adapter), other_base=True))

    def test_a_module_that_is_not_there(self, bases, adapter):
        choice = [{"folder": str(adapter), "module": "text_decoder"}]
        with pytest.raises(ModelUnusableError, match=r"module 'text_decoder', which Llava.* lacks[\s\S]*lm_head"):
            load_model(spec_of(bases("llava")), HfOptions(adapters=choice))

    def test_two_adapters_beside_one_layer(self, bases, adapter, tmp_path):
        other = write_adapter(bases("llava"), tmp_path / "other", TARGETS["llava"], seed=9)
        choice = [str(adapter), str(other)]
        with pytest.raises(ModelUnusableError, match=r"both change .*q_proj[\s\S]*merge_adapter=true"):
            load_model(spec_of(bases("llava")), HfOptions(adapters=choice))
        assert load_model(spec_of(bases("llava")), HfOptions(adapters=choice, merge_adapter=True))

    def test_a_base_that_is_gone(self, adapter, tmp_path):
        lost = shutil.copytree(adapter, tmp_path / "lost")
        path = lost / "adapter_config.json"
        settings = json.loads(path.read_text())
        path.write_text(json.dumps({**settings, "base_model_name_or_path": "/gone/away"}))
        with pytest.raises(ModelUnusableError, match=r"trained on '/gone/away'[\s\S]*backend\.adapter="):
            fingerprint(lost)
        path.write_text(json.dumps({**settings, "base_model_name_or_path": None}))
        with pytest.raises(ModelUnusableError, match="does not name its base"):
            fingerprint(lost)

    @pytest.mark.parametrize(
        ("spoil", "expected"),
        [
            (lambda f: (f / "adapter_config.json").unlink(), "has no adapter_config.json"),
            (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
            (lambda f: (f / "adapter_config.json").write_text("[]"), "holds a list"),
            (lambda f: (f / "adapter_model.safetensors").unlink(), "holds no weights"),
            (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x10\0\0"), "is truncated"),
            (lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"), "as pickle"),
        ],
    )
    def test_a_folder_that_is_no_whole_adapter(self, bases, adapter, tmp_path, spoil, expected):
        broken = shutil.copytree(adapter, tmp_path / "broken")
        spoil(broken)
        with pytest.raises(ModelUnusableError, match=expected):
            fingerprint(bases("llava"), adapter=str(broken))

    def test_merging_into_four_bits(self):
        with pytest.raises(ValueError, match="cannot take an adapter in exactly"):
            HfOptions(quantization="nf4", merge_adapter=True)


def test_an_adapter_on_a_quantised_base(bases, adapter):
    pytest.importorskip("bitsandbytes")
    found = texts(bases("llava"), adapter=str(adapter), quantization="nf4")
    assert found != texts(bases("llava"), quantization="nf4")
