"""What a family of models has to say for itself: how it is asked, how it decodes, and how it learns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import PIL.Image
    import torch
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import Message, TrainingExample

IGNORED = -100
"""The label that the loss leaves out."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Prompts and images as tensors on the CPU."""

    inputs: Mapping[str, torch.Tensor]
    lengths: tuple[int, ...]
    """Prompt tokens of each row, image tokens included, padding not."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """Where an answer is written, and after what."""

    generator: PreTrainedModel
    """Whose `generate` is called: the model, or its text decoder."""
    inputs: Mapping[str, object]
    """What it is called with, beside the settings."""
    prompt_length: int
    """Tokens at the start of each generated row that are not the answer's."""
    used: tuple[int | None, ...]
    """Places of the context that each row has filled before its answer begins; None: the model sets no limit here."""


class Family(Protocol):
    """One row of the table `FAMILIES`."""

    @property
    def model_class(self) -> str:
        """Name of the class in `transformers` whose `from_pretrained` loads the weights."""
        ...

    @property
    def reads_questions(self) -> bool:
        """False for a captioner, which is shown the image alone and says the same whatever it is asked."""
        ...

    @property
    def token_ids(self) -> Mapping[str, int]:
        """Tokens of `GenerationConfig` that the family fixes; the checkpoint's own settings hold for the others."""
        ...

    @property
    def fills(self) -> Mapping[str, int]:
        """Training inputs that are padded along their second dimension, and with what."""
        ...

    def mend(self, model: PreTrainedModel) -> None:
        """Put right, in place, what makes the library's model depend on the batch."""
        ...

    def render(self, processor: ProcessorMixin, messages: Sequence[Message]) -> str:
        """The text that the model reads before it answers. Raises `SampleModelError` for messages it cannot take."""
        ...

    def encode(
        self, processor: ProcessorMixin, texts: Sequence[str], pictures: Sequence[Sequence[PIL.Image.Image]]
    ) -> Encoded:
        """Rendered texts and opened pictures, row by row, padded so that an answer does not depend on neighbours."""
        ...

    def decoding(self, model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], lengths: Sequence[int]) -> Decoding:
        """What `generate` is called with, for encoded inputs that lie on the model's device."""
        ...

    def collate_training(
        self,
        examples: Sequence[TrainingExample | Sequence[TrainingExample]],
        processor: ProcessorMixin,
        context: int | None,
    ) -> dict[str, torch.Tensor]:
        """Inputs of the model's `forward` with `labels`, which are -100 outside the answers, padded right."""
        ...
