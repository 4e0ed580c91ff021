"""Backend `example`: looks at the mean grey level of an image, and answers yes from a threshold on."""

from __future__ import annotations

import math
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mhe import (
    BackendDescription,
    BackendOptions,
    Failure,
    ModelUnusableError,
    Response,
    SampleDataError,
    TokenChance,
    fingerprint_folder,
    open_image,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from mhe import BackendContext, Image, ModelSpec, Request

WEIGHTS = "threshold.bin"
GREYS_OF_DOUBT = 16


class BrightnessOptions(BackendOptions):
    """Set with `--set backend.…`. What may change an answer is part of the run key; say so where it may not."""

    bright: str = "yes"
    dark: str = "no"
    batch_size: Annotated[int, Field(ge=1, json_schema_extra={"answer_neutral": True})] = 1


class BrightnessBackend:
    """A model with one weight."""

    Options = BrightnessOptions

    def __init__(self, model: ModelSpec, options: BrightnessOptions, context: BackendContext) -> None:
        self._folder = Path(model.location)
        self._options = options
        self._threshold: float | None = None

    def describe(self) -> BackendDescription:
        return BackendDescription(
            name="example",
            version="1",
            fingerprint=fingerprint_folder(self._folder),
            key_options=self._options.in_key(),
            neutral_options=self._options.neutral(),
            device="cpu",
            parameters=1,
        )

    def load(self) -> None:
        self._threshold = read_threshold(self._folder)

    def generate(self, requests: Sequence[Request], pending: Collection[str]) -> Iterator[Response]:
        assert self._threshold is not None, "load() comes first"
        for request in requests:
            if request.sample_id not in pending:
                continue
            start = time.perf_counter()
            try:
                is_bright = brightness(request.images[0]) >= self._threshold
            except SampleDataError as error:
                yield Response(request.sample_id, error=Failure("data", str(error)))
                continue
            text = self._options.bright if is_bright else self._options.dark
            yield Response(request.sample_id, text=text, finish_reason="stop", seconds=time.perf_counter() - start)

    def usage(self) -> Mapping[str, float]:
        return {"batch_size": float(self._options.batch_size)}

    def close(self) -> None:
        self._threshold = None

    def render_prompt(self, request: Request) -> str | None:
        # The text that the model reads: this one is shown the image alone.
        return None

    def next_tokens(self, request: Request, before: Sequence[int], most: int) -> Sequence[Sequence[TokenChance]]:
        assert self._threshold is not None, "load() comes first"
        above = (brightness(request.images[0]) - self._threshold) / GREYS_OF_DOUBT
        words = [
            TokenChance(1, self._options.bright, -math.log1p(math.exp(-above)), self._options.bright),
            TokenChance(2, self._options.dark, -math.log1p(math.exp(above)), self._options.dark),
        ]
        words.sort(key=lambda word: -word.log_probability)
        chosen = next((word for word in words if word.id in before[:1]), words[0])
        return [words[:most], [TokenChance(0, "", 0.0, chosen.text, is_end=True)]]


def brightness(image: Image) -> float:
    """The mean grey level, 0 to 255."""
    levels = open_image(image).convert("L").tobytes()
    return sum(levels) / len(levels)


def read_threshold(folder: Path) -> float:
    """The one weight."""
    try:
        (threshold,) = struct.unpack("<d", (folder / WEIGHTS).read_bytes())
    except (OSError, struct.error) as error:
        raise ModelUnusableError(f"{folder / WEIGHTS} cannot be read: {error}") from None
    return float(threshold)


def write_threshold(folder: Path, threshold: float) -> None:
    """Save the one weight."""
    (folder / WEIGHTS).write_bytes(struct.pack("<d", threshold))
