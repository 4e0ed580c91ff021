"""From requests to what vLLM's engine is given, some of them ahead of it in a thread."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe import Failure, SampleError, open_image
from mhe_hf import adds_special_tokens, render_prompt

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from concurrent.futures import Future

    import PIL.Image
    from transformers import ProcessorMixin

    from mhe import Image, Request

KEPT = 8
"""Pictures that are kept open: questions about one image are often neighbours."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A request with its tokens and pictures, or why it has none."""

    request: Request
    tokens: tuple[int, ...] = ()
    """As the tokenizer gives them: one for each image, which the engine makes as many as the image has."""
    pictures: tuple[PIL.Image.Image, ...] = ()
    names: tuple[str, ...] = ()
    """Of the pictures, by content."""
    failure: Failure | None = None


class PromptMaker:
    """Renders and tokenises with one processor, and opens images."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor = processor
        self._opened: deque[tuple[Image, PIL.Image.Image, str]] = deque(maxlen=KEPT)

    def make(self, request: Request) -> Prompt:
        """The prompt of a request; a sample that cannot be read is a failure, not an exception."""
        try:
            text = render_prompt(self._processor, request.messages)
            encoded = self._processor.tokenizer(
                text, add_special_tokens=adds_special_tokens(self._processor, text), verbose=False
            )
            opened = [self._open(image) for image in request.images]
        except SampleError as error:
            return Prompt(request, failure=Failure(error.kind, str(error)))
        pictures, names = tuple(picture for picture, _ in opened), tuple(name for _, name in opened)
        return Prompt(request, tuple(encoded["input_ids"]), pictures, names)

    def _open(self, image: Image) -> tuple[PIL.Image.Image, str]:
        for known, picture, name in self._opened:
            if (known.source, known.resize) == (image.source, image.resize):
                return picture, name
        picture, name = open_image(image), f"{image.source.digest()}-{image.resize}"
        self._opened.append((image, picture, name))
        return picture, name

    def make_ahead(self, requests: Sequence[Request], ahead: int) -> Generator[Prompt, None, None]:
        """Prompts in order, up to `ahead` of them made while the caller works."""
        # A file may have changed since the last run in this process.
        self._opened.clear()
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mhe-prompts")
        waiting: deque[Future[Prompt]] = deque()
        try:
            for request in requests:
                waiting.append(executor.submit(self.make, request))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
            self._opened.clear()


def as_engine_input(prompt: Prompt) -> dict[str, object]:
    """The prompt as vLLM's engine takes it. Images carry their content's digest, so that none is hashed again."""
    found: dict[str, object] = {"prompt_token_ids": list(prompt.tokens)}
    if prompt.pictures:
        found["multi_modal_data"] = {"image": list(prompt.pictures)}
        found["multi_modal_uuids"] = {"image": list(prompt.names)}
    return found
