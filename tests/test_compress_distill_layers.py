"""Which language layers a student keeps, and that what is left computes as the whole model with the others skipped."""

from __future__ import annotations

import pytest

import distill_cases
import tune_cases

torch = pytest.importorskip("torch")

from mhe.errors import UserError  # noqa: E402
from mhe_compress.student import smaller_configuration  # noqa: E402
from mhe_compress.student_layers import (  # noqa: E402
    block_influence,
    choose_by_influence,
    choose_evenly,
    counts_to_keep,
    drop_layers,
    evenly,
    kinds_of_layers,
    layer_lists,
    shortened_configuration,
)
from mhe_hf import ARCHITECTURES, family_of  # noqa: E402

FAMILIES = [
    "tiny-llava", "tiny-llava-next", "tiny-mllama", "tiny-qwen2-vl", "tiny-visiongpt2", "tiny-blip", "tiny-blip-vqa",
    "tiny-blip2",
]  # fmt: skip


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """One sample with an image, a question and an answer."""
    from mhe.catalog import open_catalog
    from mhe.documents.pipeline import TrainingChoice
    from mhe.training_data import load_training_set

    release = tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=4)
    choice = TrainingChoice(task="vqa-rad", limit=4)
    return load_training_set(open_catalog(), [choice], seed=0, data_dir=release, offline=True).train[0]


def inputs_of(processor, example):
    from mhe_hf import collate_training

    return collate_training([example], processor)


def logits(model, inputs):
    with torch.no_grad():
        return distill_cases.logits_of(model, inputs)


def skip(layer):
    """The layer gives its input back, in the form of its output."""

    def pass_on(_module, given, named, output):
        before = given[0] if given else named["hidden_states"]
        return before if isinstance(output, torch.Tensor) else (before, *output[1:])

    return layer.register_forward_hook(pass_on, with_kwargs=True)


@pytest.mark.parametrize(
    ("total", "count", "wanted"),
    [
        (32, 16, [0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31]),
        (3, 2, [0, 2]),
        (4, 2, [0, 3]),
        (2, 1, [0]),
        (6, 4, [0, 2, 3, 5]),
    ],
)
def test_layers_are_kept_at_equal_distances(total, count, wanted):
    assert evenly(range(total), count) == wanted


@pytest.mark.parametrize("total", [2, 3, 7, 24, 32, 40])
def test_every_number_of_layers_is_distinct_and_has_both_ends(total):
    for count in range(2, total):
        chosen = evenly(range(total), count)
        assert chosen == sorted(set(chosen))
        assert len(chosen) == count
        assert (chosen[0], chosen[-1]) == (0, total - 1)


def test_shares_are_of_each_kind_and_nothing_vanishes():
    reading, looking = [n for n in range(40) if n % 5 != 3], [n for n in range(40) if n % 5 == 3]
    assert counts_to_keep([reading, looking], 0.5) == [16, 4]
    assert counts_to_keep([reading, looking], 4) == [3, 1]
    assert counts_to_keep([list(range(32))], 0.7) == [22]
    assert counts_to_keep([list(range(10))], 0.35) == [4], "3.5 is rounded up, whatever floats make of it"
    for keep in (0.001, 40, 41):
        with pytest.raises(UserError, match="would leave"):
            counts_to_keep([reading, looking], keep)
    with pytest.raises(UserError, match="no layer that reads text"):
        counts_to_keep([reading, looking], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_is_the_whole_with_the_others_skipped(random_twins, example, family):
    model, processor = distill_cases.quiet_loader()(random_twins(family))
    inputs = inputs_of(processor, example)
    kept = choose_evenly(model, 0.5, ARCHITECTURES)
    short = drop_layers(model, kept)
    family_of(processor).mend(short)
    assert type(short) is type(model)
    short.eval()
    found, whole = logits(short, inputs), logits(model, inputs)
    handles = [
        skip(layer)
        for name, layers in layer_lists(model, ARCHITECTURES).items()
        for number, layer in enumerate(layers)
        if number not in kept[name]
    ]
    assert handles
    wanted = logits(model, inputs)
    for handle in handles:
        handle.remove()
    assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(found, whole, atol=1e-2), "the dropped layers did something"


@pytest.mark.parametrize("family", ["tiny-llava", "tiny-mllama", "tiny-visiongpt2", "tiny-qwen2-vl"])
def test_what_is_left_generates_with_a_cache_as_without(random_twins, example, family):
    """Layers that kept their old numbers would write into places of the cache that do not exist."""
    from mhe_hf.generation import plain_settings

    model, processor = distill_cases.quiet_loader()(random_twins(family))
    short = drop_layers(model, choose_evenly(model, 0.5, ARCHITECTURES)).eval()
    inputs = {name: value for name, value in inputs_of(processor, example).items() if name != "labels"}
    settings = plain_settings(short, processor)
    texts = []
    for use_cache in (True, False):
        settings.use_cache = use_cache
        settings.max_new_tokens = 5
        settings.eos_token_id = None
        with torch.no_grad():
            texts.append(short.generate(**inputs, generation_config=settings).tolist())
    assert texts[0] == texts[1]


def test_mllama_keeps_layers_that_look_at_the_image(random_twins):
    model, _ = distill_cases.quiet_loader()(random_twins("tiny-mllama"))
    assert kinds_of_layers(model.config) == [[0, 2], [1, 3]]
    assert choose_evenly(model, 0.5, ARCHITECTURES) == {"model.language_model.layers": [0, 1]}
    short = shortened_configuration(model.config, [0, 1])
    assert short.text_config.cross_attention_layers == [1]
    assert shortened_configuration(model.config, [1, 2, 3]).text_config.cross_attention_layers == [0, 2]
    assert model.config.text_config.num_hidden_layers == 4, "the whole model's is left alone"


def test_what_is_said_layer_by_layer_follows():
    from transformers import Qwen2VLConfig

    whole = Qwen2VLConfig(
        text_config={
            "num_hidden_layers": 4, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2,
            "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2, "vocab_size": 50,
        }
    )  # fmt: skip
    assert whole.text_config.layer_types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    short = shortened_configuration(whole, [0, 2, 3]).text_config
    assert short.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    assert (short.num_hidden_layers, short.max_window_layers) == (3, 1)
    again = Qwen2VLConfig(**shortened_configuration(whole, [0, 2, 3]).to_dict()).text_config
    assert again.layer_types == short.layer_types


def test_a_layer_that_changes_nothing_goes_first(random_twins, example):
    """Block influence against its formula, on a model one of whose layers is made to add nothing."""
    model, processor = distill_cases.quiet_loader()(random_twins("tiny-llava"))
    layers = layer_lists(model, ARCHITECTURES)["model.language_model.layers"]
    with torch.no_grad():
        layers[0].self_attn.o_proj.weight.zero_()
        layers[0].mlp.down_proj.weight.zero_()
    inputs = {name: value for name, value in inputs_of(processor, example).items() if name != "labels"}
    found = block_influence(model, {"model.language_model.layers": layers}, [inputs])["model.language_model.layers"]
    assert found[0] == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    before, after = states[1][0].double(), states[2][0].double()
    cosines = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
    assert found[1] == pytest.approx(float(1 - cosines.mean()), rel=1e-6)
    kept = choose_by_influence(model, 0.5, {"model.language_model.layers": found})
    assert kept == {"model.language_model.layers": [1, 2]}
    short = drop_layers(model, kept).eval()
    assert torch.allclose(logits(short, inputs), logits(model, inputs), atol=1e-5), "nothing was lost"


def test_each_kind_of_layer_is_chosen_by_its_own_influence(random_twins):
    model, _ = distill_cases.quiet_loader()(random_twins("tiny-mllama"))
    name = "model.language_model.layers"
    assert choose_by_influence(model, 0.5, {name: [0.1, 0.2, 0.9, 0.8]}) == {name: [2, 3]}
    assert choose_by_influence(model, 0.5, {name: [0.9, 0.1, 0.8, 0.0]}) == {name: [0, 1]}


def test_a_smaller_mllama_must_still_see(random_twins):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(random_twins("tiny-mllama"))
    assert smaller_configuration(config, {"text_config.num_hidden_layers": 2}).text_config.cross_attention_layers == [1]
    with pytest.raises(UserError, match="would never see an image"):
        smaller_configuration(config, {"text_config": {"num_hidden_layers": 1}})
    seeing = smaller_configuration(config, {"text_config": {"num_hidden_layers": 1, "cross_attention_layers": [0]}})
    assert seeing.text_config.cross_attention_layers == [0]


def test_a_field_is_given_once_and_what_was_given_stays_as_it_is(random_twins):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(random_twins("tiny-llava"))
    given = {"text_config": {"num_hidden_layers": 1}, "text_config.intermediate_size": 64}
    assert smaller_configuration(config, given).text_config.intermediate_size == 64
    assert given["text_config"] == {"num_hidden_layers": 1}
    with pytest.raises(UserError, match="text_config is given a value of its own"):
        smaller_configuration(config, {"text_config": 3, "text_config.num_hidden_layers": 1})
