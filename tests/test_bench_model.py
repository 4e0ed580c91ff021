"""`mhe bench-model`: cost without scoring, of true weights and of a true size with drawn ones."""

from __future__ import annotations

import json
import shutil
import time

import pytest

import hf_models
from command import mhe
from hf_family_models import FAMILIES
from hf_models import answers, ask, picture
from mhe import BackendContext, Generation, ModelSpec, ModelUnusableError, UserError
from mhe.catalog import open_catalog
from mhe.documents.measurement import Measurement
from mhe.measuring import MeasureOptions, measure_model
from mhe.model_names import resolve_model
from mhe.run_plan import RunOptions
from mhe_hf import Collator, HfBackend, HfOptions, bind_family, empty_model
from mhe_hf.collation import count_image_tokens, image_token_of
from mhe_hf.models import MODELS
from mhe_hf.random_models import BUNDLED, bundled_names, configuration_folder
from mhe_hf.stand_ins import stand_in_processor

QUESTION = "Is there evidence of an aortic aneurysm?\nAnswer with a word or a short phrase."
PARAMETERS = {
    "llava-1.5-7b": 7_063_427_072,
    "llava-1.6-mistral-7b": 7_566_747_648,
    "qwen2-vl-2b": 2_208_985_600,
    "llama-3.2-11b-vision": 10_670_220_835,
    "blip-captioning": 223_971_644,
    "blip-vqa": 361_230_140,
    "miss": 361_230_140,
    "blip2-opt-2.7b": 3_744_761_856,
    "visiongpt2": 239_195_904,
    "vit-gpt2-coco": 239_195_904,
}
IMAGE_PLACES = {"llava-1.5-7b": 576, "llava-1.6-mistral-7b": 2340, "qwen2-vl-2b": 17 * 23, "blip2-opt-2.7b": 32}
"""Of an image 640 pixels wide and 480 high, as the published processors count."""


def configuration_of(name):
    from transformers import AutoConfig

    spec = next(model for model in MODELS if model.name == name)
    return AutoConfig.from_pretrained(configuration_folder(spec))


class TestBundled:
    def test_every_registered_model_has_a_configuration_and_none_is_left_over(self):
        assert bundled_names() == sorted(model.name for model in MODELS) == sorted(PARAMETERS)

    @pytest.mark.parametrize("name", PARAMETERS)
    def test_parameters_are_those_of_the_published_model(self, name):
        assert sum(p.numel() for p in empty_model(configuration_of(name)).parameters()) == PARAMETERS[name]

    @pytest.mark.parametrize("folder", sorted(BUNDLED.iterdir()), ids=lambda folder: folder.name)
    def test_a_prompt_has_as_many_places_as_the_models_own_processor_gives_it(self, folder):
        configuration = configuration_of(folder.name)
        processor = stand_in_processor(configuration)
        bind_family(processor, configuration)
        batch = Collator(processor).collate([ask("a", QUESTION, image=picture(0, (480, 640)))])
        assert not batch.failures
        expected = IMAGE_PLACES.get(folder.name)
        if expected is not None:
            places = count_image_tokens(batch, image_token_of(configuration))
            assert places == expected
            assert 20 <= batch.prompt_tokens[0] - places <= 60, "the question and what stands around it"
        vocabulary = configuration.get_text_config(decoder=True).vocab_size
        highest = max(int(batch.inputs[n].max()) for n in ("input_ids", "decoder_input_ids") if n in batch.inputs)
        assert highest < vocabulary + (1 if folder.name == "llama-3.2-11b-vision" else 0)

    def test_words_count_as_about_as_many_tokens_as_in_english_vocabularies(self):
        tokenizer = stand_in_processor(configuration_of("qwen2-vl-2b")).tokenizer
        text = "The chest radiograph shows a small left-sided pleural effusion with adjacent atelectasis. " * 10
        assert 3.2 < len(text) / len(tokenizer(text)["input_ids"]) < 5


class TestRandomWeights:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("quantization", ["none", "nf4"])
    def test_each_family_is_built_from_its_configuration_alone(self, family, quantization, tmp_path):
        if quantization != "none":
            pytest.importorskip("bitsandbytes")
        config = FAMILIES[family](tmp_path / "whole") / "config.json"
        (tmp_path / "alone").mkdir()
        shutil.copy(config, tmp_path / "alone" / "config.json")
        backend = backend_of(tmp_path / "alone", random_weights=True, exact_tokens=True, quantization=quantization)
        described = backend.describe()
        assert described.key_options["processor"] == "stand-in"
        backend.load()
        bits = backend.describe().bits_per_weight
        assert bits == 32 if quantization == "none" else bits < 24
        found = answers(backend, [ask("a", "?", generation=Generation(max_new_tokens=5)), ask("b", "?")])
        assert (found["a"].generated_tokens, found["a"].finish_reason) == (5, "length")
        assert found["b"].generated_tokens == 8
        backend.close()

    def test_one_seed_is_one_model_and_two_are_two(self, tmp_path):
        import torch

        hf_models.build_llava(tmp_path / "whole")
        for path in (tmp_path / "whole").glob("*.safetensors"):
            path.unlink()
        weights, digests = [], []
        for seed in (0, 0, 1):
            backend = backend_of(tmp_path / "whole", random_weights=True, seed_of_new_weights=seed)
            digests.append(backend.describe().fingerprint.digest)
            assert "processor" not in backend.describe().key_options, "its own tokenizer lies there"
            backend.load()
            weights.append(backend._model.lm_head.weight.clone())
            backend.close()
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])
        assert digests[0] == digests[1] != digests[2]

    def test_a_model_without_a_bundled_configuration_says_what_there_is(self):
        spec = ModelSpec(name="org/unknown", backend="hf", location="org/unknown")
        with pytest.raises(ModelUnusableError, match=r"no configuration is bundled for org/unknown[\s\S]*llava-1.5-7b"):
            configuration_folder(spec)

    def test_a_type_without_stand_in_says_so(self):
        from transformers import Idefics3Config

        with pytest.raises(ModelUnusableError, match="no stand-in processor is known for models of type 'idefics3'"):
            stand_in_processor(Idefics3Config())

    def test_an_adapter_on_drawn_weights_is_refused(self):
        with pytest.raises(ValueError, match="no adapter"):
            HfOptions(random_weights=True, adapter="somewhere")


def backend_of(folder, **options):
    context = BackendContext(offline=True, cache_dir=folder, training_samples=list)
    spec = ModelSpec(name="t", backend="hf", location=str(folder))
    return HfBackend(spec, HfOptions(**{"device": "cpu", "num_threads": 1, "dtype": "float32", **options}), context)


def measured(tmp_path, model="tiny-llava", **options):
    catalog = open_catalog()
    run = RunOptions(runs_dir=tmp_path, limit=6, **options.pop("run", {}))
    spec = resolve_model(model, catalog)
    asked = MeasureOptions(run=run, **options)
    return measure_model(catalog, spec, catalog.task("phantom-vqa"), asked, lambda *_: None)


class TestMeasuring:
    def test_rounds_are_rounds_and_rates_follow_from_them(self, tmp_path, monkeypatch):
        calls = []
        original = HfBackend.generate

        def slow(self, requests, pending):
            calls.append(len(pending))
            time.sleep(0.2 * len(calls))
            yield from original(self, requests, pending)

        monkeypatch.setattr(HfBackend, "generate", slow)
        found = measured(tmp_path, rounds=3, batch_size=2)
        assert calls == [4, 6, 6, 6], "a warm-up of two batches, then whole rounds"
        assert found.warm_up_samples == 4
        seconds = found.costs.seconds
        assert 0.4 <= seconds.lowest < seconds.median < seconds.highest
        assert found.costs.samples_per_second.median == pytest.approx(6 / seconds.median)
        assert found.costs.samples_per_second.highest == pytest.approx(6 / seconds.lowest)
        assert found.image_tokens == 64
        assert found.prompt_tokens.lowest > 64
        assert found.costs.first_token_p50.median <= found.costs.latency_p50.median
        assert Measurement.from_data(json.loads(found.to_json()), "dump") == found

    def test_every_null_has_its_reason(self, tmp_path):
        found = measured(tmp_path, rounds=1)
        nulls = {name for name in type(found).model_fields if getattr(found, name) is None}
        nulls |= {f"costs.{name}" for name in type(found.costs).model_fields if getattr(found.costs, name) is None}
        assert nulls == set(found.reasons)
        assert all(found.reasons.values())

    def test_batch_1_prepares_nothing_ahead_unless_told_to(self, tmp_path):
        alone = measured(tmp_path, rounds=1).backend.neutral_options
        assert (alone["batch_size"], alone["prefetch"], alone["image_cache_mb"]) == (1, 0, 0)
        together = measured(tmp_path, rounds=1, batch_size=3).backend.neutral_options
        assert (together["batch_size"], together["prefetch"]) == (3, 2)
        told = measured(tmp_path, rounds=1, run={"backend_options": {"prefetch": 1}}).backend.neutral_options
        assert told["prefetch"] == 1

    def test_exact_tokens_are_written_past_the_end(self, tmp_path):
        free = measured(tmp_path, rounds=1)
        exact = measured(tmp_path, rounds=1, exact_tokens=True, run={"generation": {"max_new_tokens": 11}})
        assert exact.generated_tokens.lowest == exact.generated_tokens.highest == 11 > free.generated_tokens.median

    def test_a_backend_that_cannot_says_what_it_lacks(self, tmp_path):
        with pytest.raises(UserError, match="random_weights"):
            measured(tmp_path, model="scripted", random_weights=True)

    def test_a_model_that_answers_nothing_is_an_error(self, tmp_path):
        with pytest.raises(ModelUnusableError, match="captioner"):
            measured(tmp_path, model=str(FAMILIES["blip"](tmp_path / "blip")))


def test_the_command_writes_a_table_and_a_record(tmp_path):
    hf_models.build_llava(tmp_path / "small")
    for path in (tmp_path / "small").iterdir():
        if path.name != "config.json":
            path.unlink()
    done = mhe(
        "bench-model", "small", "--task", "phantom-vqa", "--random-weights", "--batch-size", "auto", "--repeat", "2",
        "--limit", "4", "--max-new-tokens", "5", "--out", "out/record.json", "--set", "backend.dtype=bfloat16",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Random weights at true size, and a stand-in for its tokenizer" in done.out
    assert "generated tokens/s" in done.out
    record = Measurement.from_json(tmp_path / "out" / "record.json")
    assert (record.rounds, record.data.samples, record.random_weights) == (2, 4, True)
    assert (record.backend.precision, record.model.bits_per_weight) == ("bfloat16", 16.0)
    assert record.generated_tokens.lowest == 5
    assert record.batch.asked == "auto"
    assert record.command.startswith("mhe bench-model small")
