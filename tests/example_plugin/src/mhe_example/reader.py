"""Reader `example-squares`: noisy grey squares, and whether each is bright."""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING, Annotated

import PIL.Image
from pydantic import Field

from mhe import BytesSource, Image, Part, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mhe import ReadContext

BRIGHT_FROM = 100


class SquaresOptions(Part):
    """Set in `reader.options` of a task.yaml."""

    count: Annotated[int, Field(ge=1)] = 40


class SquaresReader:
    """A reader of files would look in `context.data_dir`, and raise `DataMissingError` where it is None."""

    Options = SquaresOptions

    def __init__(self, options: SquaresOptions) -> None:
        self._count = options.count

    def read(self, context: ReadContext) -> Iterator[Sample]:
        for number in range(self._count):
            name = f"{context.split}-{number}"
            draw = random.Random(name)
            level = draw.randrange(20, 236)
            levels = bytes(level + draw.randrange(-10, 11) for _ in range(8 * 8))
            buffer = io.BytesIO()
            PIL.Image.frombytes("L", (8, 8), levels).save(buffer, "PNG")
            yield Sample(
                id=name,
                images=(Image(name, BytesSource(buffer.getvalue())),),
                question="Is the square bright?",
                references=("yes" if sum(levels) / len(levels) >= BRIGHT_FROM else "no",),
                answer_type="closed",
                groups={"level": "high" if level >= 128 else "low"},
            )
