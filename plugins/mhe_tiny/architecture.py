"""What each small model's file offers: how it is built, how it learns and how it is asked.

The modules `llava`, `qwen2_vl` and so on are the implementations.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import PIL.Image
    import torch
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

    from mhe_tiny.lessons import Lesson

Pictures = Mapping[str, "torch.Tensor"]
"""What an image processor makes of b images."""


class Processor(Protocol):
    """What turns images and text into model inputs; for some families no more than its two parts."""

    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase

    def save_pretrained(self, save_directory: Path) -> object:
        """Write the published files."""


class Learner(Protocol):
    """One model while it is trained and asked."""

    @property
    def vision(self) -> nn.Module:
        """The vision encoder, trained first and slower later."""

    @property
    def width(self) -> int:
        """Width of what `see` returns."""

    def look(self, images: Sequence[PIL.Image.Image]) -> Pictures:
        """Return the images as the model takes them."""

    def see(self, pictures: Pictures) -> torch.Tensor:
        """Return patch features, shape (b, patches, width), before the rest of the model uses them."""

    def answer_loss(self, lessons: Sequence[Lesson], pictures: Pictures, seen: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy over the answers of all turns that this model can learn."""

    def ask(self, images: Sequence[PIL.Image.Image], prompts: Sequence[str], new_tokens: int) -> list[str]:
        """Return the greedy answer to each prompt about its image."""


class Architecture(Protocol):
    """A module that holds one small architecture."""

    CLASS: str
    """The class that the checkpoint loads in."""
    ANSWERS_QUESTIONS: bool
    """False: it only writes captions, whatever it is asked."""

    def train_tokenizer(self, turns: Iterable[tuple[str, str]]) -> PreTrainedTokenizerBase:
        """Return the family's kind of tokenizer, trained on prompts with their answers."""

    def build_processor(self, tokenizer: PreTrainedTokenizerBase) -> Processor:
        """Return the processor of the published kind."""

    def build_model(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
        """Return the untrained model in float32; equal seeds give equal weights."""

    # Each architecture takes its own classes.
    def build_learner(self, model: Any, processor: Any) -> Learner:  # noqa: ANN401 - see above
        """Return what trains and asks the model."""
