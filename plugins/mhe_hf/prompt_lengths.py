"""How long a prompt will be, without making it: enough to put prompts in order and to guess at memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from mhe import Message, SampleError
from mhe_hf.families import family_of

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from mhe import Image, Request

CHARACTERS_PER_TOKEN = 4
SMALL, LARGE = (336, 336), (672, 672)
"""Sizes in pixels that the processor is tried with."""


class PromptLengths:
    """Tokens by the number of characters and, where a larger image takes more tokens, its size in pixels."""

    def __init__(self, processor: ProcessorMixin) -> None:
        small, large = (_tokens_with(processor, size) for size in (SMALL, LARGE))
        self._image_tokens = small
        self._tokens_a_pixel = max(0.0, (large - small) / (_area(LARGE) - _area(SMALL)))

    def of(self, request: Request) -> float:
        """About how many tokens the prompt has."""
        characters = sum(len(message.text) for message in request.messages)
        return characters / CHARACTERS_PER_TOKEN + sum(self._of_image(image) for image in request.images)

    def _of_image(self, image: Image) -> float:
        if self._tokens_a_pixel == 0:
            return self._image_tokens
        return max(0.0, self._image_tokens + self._tokens_a_pixel * (_pixels(image) - _area(SMALL)))


def _tokens_with(processor: ProcessorMixin, size: tuple[int, int]) -> int:
    import PIL.Image

    family = family_of(processor)
    try:
        text = family.render(processor, [Message("user", "?", images=1)])
        return family.encode(processor, [text], [[PIL.Image.new("RGB", size)]]).lengths[0]
    except (ValueError, ArithmeticError, LookupError, RuntimeError, OSError, MemoryError, SampleError):
        # A processor that takes no such image says so again, sample by sample, where it matters.
        return 0


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _pixels(image: Image) -> int:
    """From the file's header; 0 of an image that cannot be read."""
    import PIL.Image

    if image.resize is not None:
        return _area(image.resize)
    try:
        path = getattr(image.source, "path", None)
        with PIL.Image.open(path if path is not None else io.BytesIO(image.source.read())) as picture:
            return _area(picture.size)
    except (OSError, ValueError, SyntaxError, LookupError, SampleError, PIL.Image.DecompressionBombError):
        return 0
