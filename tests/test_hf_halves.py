"""VisionGPT-2 from its two published halves: what is new is drawn from a seed, and nobody mistakes it for trained."""

from __future__ import annotations

import pytest
import torch
import transformers

import hf_family_models
from hf_models import answers, ask, open_backend
from mhe import BackendContext, ModelSpec, ModelUnusableError
from mhe_hf import HfBackend, HfOptions, empty_model, load_configuration, load_model, load_processor, save_published
from mhe_hf.models import MODELS


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    place = tmp_path_factory.mktemp("halves")
    return hf_family_models.vit(place / "vit"), hf_family_models.gpt2(place / "gpt2")


def spec_of(*places: object) -> ModelSpec:
    return ModelSpec(name="visiongpt2", backend="hf", location=" + ".join(map(str, places)))


def backend_of(spec: ModelSpec, tmp_path, **options: object) -> HfBackend:
    return HfBackend(spec, HfOptions(device="cpu", **options), BackendContext(True, tmp_path, list))


def test_each_half_is_the_published_one_and_the_rest_follows_the_seed(halves):
    models = [load_model(spec_of(*halves), HfOptions(seed_of_new_weights=seed))[0] for seed in (0, 0, 1)]
    states = [model.state_dict() for model in models]
    encoder = transformers.ViTModel.from_pretrained(halves[0]).state_dict()
    decoder = transformers.GPT2LMHeadModel.from_pretrained(halves[1]).state_dict()
    for key, value in {
        **{f"encoder.{name}": value for name, value in encoder.items()},
        **{f"decoder.{name}": value for name, value in decoder.items()},
    }.items():
        assert torch.equal(states[0][key], value), key
    new = [key for key in states[0] if "crossattention" in key or "ln_cross_attn" in key]
    assert len(new) == len(states[0]) - len(encoder) - len(decoder) == 16
    assert all(torch.equal(states[0][key], states[1][key]) for key in new)
    assert not all(torch.equal(states[0][key], states[2][key]) for key in new)


def test_a_wider_decoder_gets_a_projection_from_the_seed(halves, tmp_path):
    wide = hf_family_models.gpt2(tmp_path / "wide", width=96)
    one, two = (load_model(spec_of(halves[0], wide))[0] for _ in range(2))
    assert one.enc_to_dec_proj.weight.shape == (96, 64)
    assert torch.equal(one.enc_to_dec_proj.weight, two.enc_to_dec_proj.weight)


def test_drawing_weights_leaves_the_random_state_alone(halves):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(spec_of(*halves))
    assert torch.equal(torch.rand(3), expected)


def test_evaluating_it_untrained_says_what_it_is(halves, tmp_path):
    expected = r"cross-attention has never been trained[\s\S]*mhe tune.*untrained=true"
    with pytest.raises(ModelUnusableError, match=expected):
        backend_of(spec_of(*halves), tmp_path).describe()
    backend = backend_of(spec_of(*halves), tmp_path, untrained=True)
    assert backend.describe().key_options["untrained"] is True
    backend.load()
    assert answers(backend, [ask("a")])["a"].generated_tokens >= 1


def test_the_fingerprint_covers_both_halves_and_the_seed(halves, tmp_path):
    def fingerprint(*places, **options):
        return backend_of(spec_of(*places), tmp_path, untrained=True, **options).describe().fingerprint

    first = fingerprint(*halves)
    assert first.verified
    assert {name.split("/")[0] for name in first.files} == {"base", "decoder"}
    others = [
        fingerprint(*halves, seed_of_new_weights=1),
        fingerprint(hf_family_models.vit(tmp_path / "v", seed=1), halves[1]),
        fingerprint(halves[0], hf_family_models.gpt2(tmp_path / "g", seed=1)),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 4
    assert fingerprint(*halves) == first


def test_saved_it_is_a_model_like_any_other(halves, tmp_path):
    model, processor = load_model(spec_of(*halves))
    save_published(model, processor, tmp_path / "saved")
    assert {"config.json", "preprocessor_config.json", "tokenizer.json"} <= {p.name for p in tmp_path.glob("saved/*")}
    again, _ = load_model(spec_of(tmp_path / "saved"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    plain = transformers.VisionEncoderDecoderModel.from_pretrained(tmp_path / "saved")
    assert plain.config.decoder_start_token_id == processor.tokenizer.eos_token_id
    backend = open_backend(tmp_path / "saved")
    assert backend.describe().fingerprint.verified
    assert answers(backend, [ask("a")])["a"].error is None


def test_the_shape_is_known_without_the_weights(halves):
    configuration = load_configuration(spec_of(*halves))
    model, _ = load_model(spec_of(*halves))
    empty = empty_model(configuration)
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert all(parameter.is_meta for parameter in empty.parameters())


@pytest.mark.parametrize("missing", [0, 1])
def test_a_half_that_is_not_there_or_has_no_weights(halves, tmp_path, missing):
    places = list(halves)
    places[missing] = tmp_path / "nowhere"
    with pytest.raises(ModelUnusableError, match="there is no folder"):
        load_model(spec_of(*places))
    places[missing] = tmp_path / "empty"
    places[missing].mkdir()
    (places[missing] / "config.json").write_text((halves[missing] / "config.json").read_text())
    with pytest.raises(ModelUnusableError, match="no weights"):
        load_model(spec_of(*places))
    with pytest.raises(ModelUnusableError, match="has 3 parts"):
        load_model(spec_of(*halves, tmp_path))


def test_halves_the_wrong_way_round(halves):
    with pytest.raises(ModelUnusableError):
        load_model(spec_of(halves[1], halves[0]))


def test_it_is_not_quantised(halves):
    with pytest.raises(ModelUnusableError, match="two halves, which are not quantised"):
        load_model(spec_of(*halves), HfOptions(quantization="nf4"))


def test_the_registered_names_say_what_they_are():
    named = {spec.name: spec for spec in MODELS}
    assert " + " in named["visiongpt2"].location
    assert "untrained" in named["visiongpt2"].summary
    assert named["miss"].location == named["blip-vqa"].location
    assert "not published" in named["miss"].summary
    twins = {spec.tiny_twin for spec in MODELS}
    assert twins == {
        "tiny-llava", "tiny-llava-next", "tiny-qwen2-vl", "tiny-mllama", "tiny-visiongpt2", "tiny-blip", "tiny-blip2",
        "tiny-blip-vqa",
    }  # fmt: skip
    assert all(spec.licence and spec.paper and spec.summary for spec in MODELS)


def test_its_processor_comes_from_both(halves):
    processor = load_processor(spec_of(*halves))
    assert processor.tokenizer.eos_token == "<|endoftext|>"
    assert type(processor.image_processor).__name__ == "ViTImageProcessorPil"
