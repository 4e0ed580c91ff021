"""Twins to prune, inputs to compare them on, and the whole model with the same units masked: the oracle of pruning."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import torch

from hf_models import ask
from mhe import ModelSpec, TrainingExample
from mhe.pipelines import Step, StepPlace
from mhe_compress.blocks import find_blocks, key_of
from mhe_compress.importance import gated
from mhe_hf import HfOptions, architecture_of, collate_training, load_model

TWINS = (
    "tiny-llava", "tiny-llava-next", "tiny-qwen2-vl", "tiny-mllama", "tiny-visiongpt2", "tiny-blip", "tiny-blip-vqa",
    "tiny-blip2",
)  # fmt: skip
BOTH = {"heads": 0.3, "neurons": 0.3, "vision_heads": 0.3, "vision_neurons": 0.3, "multiple": 1}


def spec_at(folder: Path) -> ModelSpec:
    return ModelSpec(name=folder.name, backend="hf", location=str(folder))


def step_on(base: ModelSpec | Path, name: str = "pruned", **settings: object) -> Step:
    base = base if isinstance(base, ModelSpec) else spec_at(base)
    return Step(name=name, recipe="prune", base=base, settings={"device": "cpu", **settings})


def place_at(folder: Path) -> StepPlace:
    return StepPlace(directory=folder, offline=True)


def loaded(where: ModelSpec | Path):
    """Model and processor in float32; one for all tests that ask for this place, so leave it as it is."""
    spec = where if isinstance(where, ModelSpec) else spec_at(where)
    key = spec.model_dump_json()
    if key not in _LOADED:
        _LOADED[key] = load_model(spec, HfOptions(device="cpu", dtype="float32"), offline=True)
    return _LOADED[key]


_LOADED: dict[str, tuple] = {}


def example(number: int = 0) -> TrainingExample:
    return TrainingExample(ask(f"sample{number}", "Is there a lesion?"), "yes", None)  # type: ignore[arg-type]


def logits(model, processor, number: int = 0) -> torch.Tensor:
    """Of an answer's tokens, with the answer given: every layer of every module has its part in them."""
    batch = collate_training([example(number)], processor, context=None)
    with torch.no_grad():
        found = model(**batch)
    # The question-answering BLIP gives no logits but a loss, which is a function of all of them.
    tensor = getattr(found, "logits", None)
    return found.loss.reshape(1) if tensor is None else tensor


def blocks_of(model):
    return find_blocks(model, architecture_of(model.config.model_type))


@contextmanager
def masked(model, kept):
    """The whole model with every unit that is not kept multiplied by zero."""
    gates = {}
    blocks = blocks_of(model)
    for block in blocks:
        if key_of(block) in kept:
            gate = torch.zeros(block.units)
            gate[kept[key_of(block)]["units"]] = 1.0
            gates[key_of(block)] = gate
    assert gates.keys() == kept.keys(), "every block that was cut is known by the same name"
    with gated(model, blocks, gates):
        yield model


def kept_of(checkpoint: Path):
    return json.loads((checkpoint / "pruning.json").read_text())["kept"]
