"""Reader `shades`: grey squares in memory, and the question whether they are bright.

The publisher of this make-believe data set calls bright what is brighter than 100, so that a threshold at half errs
and a fitted one does not.
"""

from __future__ import annotations

from typing import Annotated

from mhe import BytesSource, Image, Part, Sample
from mhe.testing import tiny_png
from pydantic import Field

BRIGHT = 100
FIRST = {"train": 3, "test": 0}


class ShadesOptions(Part):
    count: Annotated[int, Field(ge=1, le=40)] = 40
    """Squares in each split."""


class ShadesReader:
    Options = ShadesOptions

    def __init__(self, options):
        self._options = options

    def read(self, context):
        for number in range(min(self._options.count, context.limit or 40)):
            shade = FIRST[context.split] + 6 * number
            yield Sample(
                id=f"{context.split}-{shade}",
                images=(Image(f"square-{shade}", BytesSource(tiny_png(shade))),),
                references=("yes" if shade > BRIGHT else "no",),
                question="Is the square bright?",
                answer_type="closed",
                groups={"half": "upper" if shade >= 128 else "lower"},
            )
