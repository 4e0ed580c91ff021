"""A question with the words of a task around it, and without: who reads which."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hf_family_models import FAMILIES
from hf_models import ask
from mhe import Message, ModelSpec, Sample, SampleModelError, TrainingExample
from mhe_hf import collate_training, load_processor, render_prompt

SAMPLE = Sample("q", (), ("left",), question="what side ?")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_bare_question_is_read_by_those_that_were_trained_on_it_alone(tmp_path, name):
    text = "what side ?\nAnswer the question using a single word or phrase."
    told = ask("q", text)
    bare = dataclasses.replace(told, messages=(Message("user", text, images=1, question="what side ?"),))
    folder = FAMILIES[name](tmp_path / "model")
    processor = load_processor(ModelSpec(name="t", backend="hf", location=str(folder)))
    assert (render_prompt(processor, bare.messages) == "what side ?") == (name == "blip-vqa")
    if name == "blip-vqa":
        rows = [TrainingExample(request, "left", SAMPLE) for request in (bare, ask("q", "what side ?"))]
        first, second = (collate_training([row], processor) for row in rows)
        assert torch.equal(first["input_ids"], second["input_ids"])
        marked = dataclasses.replace(told, messages=(Message("user", text, images=1, question="[SEP] ?"),))
        with pytest.raises(SampleModelError, match=r"\[SEP\]"):
            render_prompt(processor, marked.messages)
    else:
        assert render_prompt(processor, bare.messages) == render_prompt(processor, told.messages)
