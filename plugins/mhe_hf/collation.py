"""From requests to model inputs: prompts rendered and tokenised, images opened and preprocessed, rows padded.

A sample that cannot be read is left out and its failure kept; its neighbours are answered all the same, in a batch
that is the same each time. A prompt beyond the model's context is a failure, never cut.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mhe import Failure, SampleError, SampleModelError, open_image
from mhe_hf.families import family_of
from mhe_hf.families.family import Encoded
from mhe_hf.image_cache import KEY, CachingImageProcessor, ImageCache, placeholder, with_image_processor

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    import PIL.Image
    import torch
    from transformers import PreTrainedConfig, ProcessorMixin

    from mhe import Image, Request

CHARACTERS_PER_TOKEN = 4
"""A text with more characters than this times the context is measured alone, before its neighbours are padded to it."""

REFUSALS = (ValueError, ArithmeticError, IndexError, RuntimeError, OSError, MemoryError, SampleError)
"""What processors raise for an image that they cannot take: its shape, its size. Anything else is a defect."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests as model inputs."""

    requests: tuple[Request, ...]
    """The rows, in order."""
    inputs: Mapping[str, torch.Tensor]
    """What the family's `decoding` is given, on the CPU; where prompts are continued, rows are padded left."""
    prompt_tokens: tuple[int, ...]
    """Tokens of each row, image tokens included, padding not."""
    failures: Mapping[str, Failure]
    """Samples that have no row, and why."""
    seconds: float
    """What making it took."""
    same_image: tuple[int, ...] = ()
    """For each row the first row that shows the same one image; empty where a row shows none or several."""


@dataclass(slots=True)
class _Row:
    request: Request
    text: str
    pictures: list[PIL.Image.Image] = field(default_factory=list)


class Collator:
    """Makes batches with one processor. Safe for several threads, one at a time.

    `context` is the longest prompt in tokens (None: no limit); `cache_bytes` bounds the memory for preprocessed
    images that several requests share; `threads` open and resize images, several at once.
    """

    def __init__(
        self, processor: ProcessorMixin, *, context: int | None = None, cache_bytes: int = 0, threads: int = 1
    ) -> None:
        self._context = context
        self._cache = ImageCache(cache_bytes)
        self._workers = ThreadPoolExecutor(threads, "mhe-images") if threads > 1 else None
        run: Callable[..., Iterable[Any]] = map if self._workers is None else self._workers.map
        self._run = run
        self._images = CachingImageProcessor(processor.image_processor, self._cache, self._reopen, run)
        self._family = family_of(processor)
        self._processor = with_image_processor(processor, self._images)
        self._known: dict[Hashable, Image] = {}
        self._opened: dict[Hashable, PIL.Image.Image] = {}
        self._lock = threading.Lock()
        if self._processor.tokenizer.pad_token is None:
            # Pads are masked, so any token does.
            self._processor.tokenizer.pad_token = self._processor.tokenizer.eos_token

    def collate(self, requests: Sequence[Request]) -> Batch:
        """A batch of all requests that can be read; its `inputs` are empty where none can."""
        with self._lock:
            started = time.perf_counter()
            failures: dict[str, Failure] = {}
            rows = []
            for request, row in zip(requests, self._run(self._row_or_failure, requests), strict=True):
                if isinstance(row, Failure):
                    failures[request.sample_id] = row
                else:
                    rows.append(row)
            rows, encoded = self._readable(rows, failures)
            self._images.batch.clear()
            self._known.clear()
            self._opened.clear()
            return Batch(
                requests=tuple(row.request for row in rows),
                inputs=encoded.inputs,
                prompt_tokens=encoded.lengths,
                failures=failures,
                seconds=time.perf_counter() - started,
                same_image=_same_image(rows),
            )

    def forget(self) -> None:
        """Drop the kept images, so that one run's cost is measured as another's."""
        with self._lock:
            self._cache.clear()

    def close(self) -> None:
        """End the threads."""
        if self._workers is not None:
            self._workers.shutdown(wait=True, cancel_futures=True)

    def _row_or_failure(self, request: Request) -> _Row | Failure:
        try:
            return self._row(request)
        except SampleError as error:
            return Failure(error.kind, str(error))

    def _row(self, request: Request) -> _Row:
        text = self._family.render(self._processor, request.messages)
        if self._context is not None and len(text) > CHARACTERS_PER_TOKEN * self._context:
            self._check_length(len(self._processor.tokenizer(text)["input_ids"]))
        return _Row(request, text, [self._picture(image) for image in request.images])

    def _picture(self, image: Image) -> PIL.Image.Image:
        key = (image.source.digest(), image.resize)
        self._known[key] = image
        kept = self._cache.get(key) if self._images.stacks else None
        if kept is not None:
            return placeholder(key, kept[1])
        opened = self._opened.get(key)
        if opened is not None:
            return opened
        picture = open_image(image)
        picture.info[KEY] = key
        # Questions about one image are often neighbours. Two threads may open it at once, to the same end.
        self._opened[key] = picture
        return picture

    def _reopen(self, key: Hashable) -> PIL.Image.Image:
        return open_image(self._known[key])

    def _check_length(self, tokens: int) -> None:
        if self._context is not None and tokens >= self._context:
            raise SampleModelError(
                f"the prompt has {tokens} tokens, and the model's context of {self._context} must hold it and an answer"
            )

    def _readable(self, rows: list[_Row], failures: dict[str, Failure]) -> tuple[list[_Row], Encoded]:
        """The rows that can be processed and fit the context, with their inputs; the others' failures are added."""
        while rows:
            try:
                encoded = self._process(rows)
            except REFUSALS:
                # Of one image, and yet for the whole batch.
                blamed = {row.request.sample_id: failure for row in rows if (failure := self._failure_alone(row))}
                if not blamed:
                    raise
            else:
                blamed = {}
                for row, length in zip(rows, encoded.lengths, strict=True):
                    try:
                        self._check_length(length)
                    except SampleError as error:
                        blamed[row.request.sample_id] = Failure(error.kind, str(error))
                if not blamed:
                    return rows, encoded
            failures.update(blamed)
            rows = [row for row in rows if row.request.sample_id not in blamed]
        return [], Encoded({}, ())

    def _failure_alone(self, row: _Row) -> Failure | None:
        try:
            self._process([row])
        except SampleError as error:
            return Failure(error.kind, str(error))
        except MemoryError:
            return Failure("system", "out of memory while the image was preprocessed")
        except REFUSALS as error:
            return Failure("model", f"the model's processor refuses it: {type(error).__name__}: {error}")
        return None

    def _process(self, rows: Sequence[_Row]) -> Encoded:
        return self._family.encode(self._processor, [row.text for row in rows], [row.pictures for row in rows])


def _same_image(rows: Sequence[_Row]) -> tuple[int, ...]:
    if any(len(row.pictures) != 1 for row in rows):
        return ()
    firsts: dict[Hashable, int] = {}
    return tuple(firsts.setdefault(row.pictures[0].info[KEY], number) for number, row in enumerate(rows))


def context_of(configuration: PreTrainedConfig) -> int | None:
    """The model's context in tokens, None where its configuration names none."""
    text = configuration.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def image_token_of(configuration: PreTrainedConfig) -> int | None:
    """The token that holds an image's places in a prompt; None where images are read elsewhere."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(configuration, name, None)
        if isinstance(value, int):
            return value
    return None


def count_image_tokens(batch: Batch, token: int | None) -> int:
    """Places of images in all rows."""
    ids = batch.inputs.get("input_ids")
    return 0 if ids is None or token is None else int((ids == token).sum())
