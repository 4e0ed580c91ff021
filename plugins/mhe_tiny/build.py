"""Small models by name, built from a seed: `python -m mhe_tiny.build tiny-llava --out FOLDER --seed 0`.

What is built is untrained: a random twin of the trained model in the package, with the same configuration, tokenizer
and processor. A trained model is nearly always certain, so that agreement between backends is better tested on
a random one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import UserError
from mhe_tiny.lessons import read_lessons
from mhe_tiny.tokens import train_tokenizer

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

    from mhe_tiny.lessons import Lesson

    Pair = tuple[LlavaForConditionalGeneration, LlavaProcessor]

TOKENIZER_STREAM = 0
TOKENIZER_IMAGES = 2048
SPREAD = 8.0
"""By how much a random twin's matrices are larger than those that training starts from, which write the same few
tokens whatever they are shown."""


def _tiny_llava(tokenizer: PreTrainedTokenizerFast, seed: int) -> Pair:
    from mhe_tiny import llava

    return llava.build_model(tokenizer, seed), llava.build_processor(tokenizer)


BUILDERS: dict[str, Callable[[PreTrainedTokenizerFast, int], Pair]] = {"tiny-llava": _tiny_llava}
"""Name to what builds model and processor; each architecture has a file of its own."""


def build(name: str, seed: int, lessons: Sequence[Lesson] | None = None) -> Pair:
    """Return an untrained model and its processor; the tokenizer is trained on the lessons' text.

    Raises `UserError` for a name that is not one of `BUILDERS`.
    """
    if name not in BUILDERS:
        raise UserError(f"no small model is called {name!r}; there are: {', '.join(sorted(BUILDERS))}")
    known = read_lessons(TOKENIZER_STREAM, TOKENIZER_IMAGES) if lessons is None else lessons
    texts = [f"USER: {prompt} ASSISTANT: {answer}" for lesson in known for prompt, answer in lesson.turns]
    return BUILDERS[name](train_tokenizer(texts), seed)


def build_folder(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a random twin in the published format and return its folder."""
    import torch

    from mhe_hf import save_published

    model, processor = build(name, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(SPREAD)
    save_published(model, processor, folder)
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
