"""Small models by name, built from a seed: `python -m mhe_tiny.build tiny-llava --out FOLDER --seed 0`.

What is built is untrained: a random twin of the trained model in the package, with the same configuration, tokenizer
and processor. A trained model is nearly always certain, so that agreement between backends is better tested on
a random one.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mhe import UserError
from mhe_tiny import blip2, blip_caption, blip_vqa, llava, llava_next, mllama, qwen2_vl, visiongpt2
from mhe_tiny.lessons import PLAIN, SOURCE, Curriculum, read_lessons
from mhe_tiny.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe_tiny.architecture import Architecture, Processor
    from mhe_tiny.lessons import Lesson

TOKENIZER_STREAM = 0
TOKENIZER_IMAGES = 2048
SPREAD = 8.0
"""By how much a random twin's matrices are larger than those that training starts from, which write the same few
tokens whatever they are shown."""


SOURCE_PLAN = Plan(vision_steps=900, steps=600, turns=5)


@dataclass(frozen=True, slots=True)
class Builder:
    """An architecture, what it is taught, and how long."""

    architecture: Architecture
    curriculum: Curriculum = SOURCE
    plan: Plan = SOURCE_PLAN
    is_halved: bool = True
    """Whether the trained weights are kept as float16; they are loaded as float32 all the same."""


BUILDERS: Mapping[str, Builder] = {
    "tiny-blip": Builder(blip_caption),
    "tiny-blip-vqa": Builder(blip_vqa),
    "tiny-blip2": Builder(blip2),
    "tiny-llava": Builder(llava, PLAIN, Plan(), is_halved=False),
    "tiny-llava-base": Builder(llava),
    "tiny-llava-next": Builder(llava_next),
    "tiny-mllama": Builder(mllama),
    "tiny-qwen2-vl": Builder(qwen2_vl),
    "tiny-visiongpt2": Builder(visiongpt2),
}
"""By name; each architecture has a file of its own."""


def find_builder(name: str) -> Builder:
    """Return the builder of this name; raises `UserError` for a name that is not one of `BUILDERS`."""
    if name not in BUILDERS:
        raise UserError(f"no small model is called {name!r}; there are: {', '.join(sorted(BUILDERS))}")
    return BUILDERS[name]


def build(name: str, seed: int, lessons: Sequence[Lesson] | None = None) -> tuple[PreTrainedModel, Processor]:
    """Return an untrained model and its processor; the tokenizer is trained on the lessons' text.

    Raises `UserError` for an unknown name.
    """
    builder = find_builder(name)
    known = read_lessons(builder.curriculum, TOKENIZER_STREAM, TOKENIZER_IMAGES) if lessons is None else lessons
    tokenizer = builder.architecture.train_tokenizer(turn for lesson in known for turn in lesson.turns)
    return builder.architecture.build_model(tokenizer, seed), builder.architecture.build_processor(tokenizer)


def build_folder(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a random twin in the published format and return its folder."""
    import torch

    from mhe_hf import save_published

    model, processor = build(name, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(SPREAD)
    # A family without a processor class has its two parts, which are saved alike.
    save_published(model, cast("ProcessorMixin", processor), folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m mhe_tiny.build", description=__doc__)
    parser.add_argument("name", choices=sorted(BUILDERS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    build_folder(chosen.name, chosen.out, chosen.seed)


if __name__ == "__main__":
    main()
