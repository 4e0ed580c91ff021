"""Classes of plugins behind a checkpoint: found by name, told from the library's, and never guessed."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from fake_plugins import plugin, provider
from mhe import ModelUnusableError, open_catalog
from mhe_hf import HfOptions, load_model, needed_class
from mhe_hf.model_classes import class_names, own_class
from prune_cases import spec_at


class StrangeLlava(transformers.LlavaForConditionalGeneration):
    """A stranger's."""


@pytest.fixture
def with_stranger(monkeypatch):
    """A plugin that registers the class, besides everything installed."""
    strange = provider("StrangeLlava", load=lambda: StrangeLlava)
    catalog = open_catalog([plugin(register_model_classes=lambda: [strange])])
    monkeypatch.setattr("mhe_hf.model_classes._catalog", lambda: catalog)


def configuration(*names):
    found = transformers.LlavaConfig()
    found.architectures = list(names) or None
    return found


def test_a_registered_name_gives_its_class(with_stranger):
    assert own_class(configuration("StrangeLlava")) is StrangeLlava
    assert class_names(configuration("StrangeLlava")) >= {"StrangeLlava", "LlavaForConditionalGeneration"}


def test_names_of_the_library_and_unknown_ones_give_none(with_stranger):
    assert own_class(configuration("LlavaForConditionalGeneration")) is None
    assert own_class(configuration("LlavaLlamaForCausalLM")) is None, "as published by others: the type decides"
    assert own_class(configuration()) is None
    assert class_names(configuration()) == frozenset()


def test_a_name_of_the_library_cannot_be_taken(monkeypatch):
    taken = provider("LlavaForConditionalGeneration", load=lambda: StrangeLlava)
    catalog = open_catalog([plugin(register_model_classes=lambda: [taken])])
    monkeypatch.setattr("mhe_hf.model_classes._catalog", lambda: catalog)
    assert own_class(configuration("LlavaForConditionalGeneration")) is None


def test_what_a_model_needs_is_told():
    with torch.device("meta"):
        plain = transformers.BlipForQuestionAnswering(transformers.BlipConfig())
    assert needed_class(plain) is None
    strange = StrangeLlava.__new__(StrangeLlava)
    assert needed_class(strange) == f"{__name__.partition('.')[0]}.StrangeLlava"


def test_it_is_loaded_and_without_its_plugin_refused(with_stranger, random_twins, tmp_path, monkeypatch):
    whole, processor = load_model(spec_at(random_twins("tiny-llava")), HfOptions(device="cpu"), offline=True)
    strange = StrangeLlava(whole.config)
    strange.load_state_dict(whole.state_dict())
    folder = tmp_path / "strange"
    strange.save_pretrained(folder)
    processor.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text())
    assert content["architectures"] == ["StrangeLlava"]
    model, _ = load_model(spec_at(folder), HfOptions(device="cpu"), offline=True)
    assert type(model) is StrangeLlava
    assert torch.equal(model.lm_head.weight, whole.lm_head.weight)
    # Without the plugin the library's class is tried, and where the shapes are others, that is an error with a hint.
    monkeypatch.setattr("mhe_hf.model_classes._catalog", lambda: open_catalog([]))
    content["text_config"]["intermediate_size"] += 8
    path.write_text(json.dumps(content))
    with pytest.raises(ModelUnusableError, match="that plugin is not installed"):
        load_model(spec_at(folder), HfOptions(device="cpu"), offline=True)
