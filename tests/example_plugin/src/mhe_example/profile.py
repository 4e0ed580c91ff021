"""Profile `example-lenient`: an answer is right if its first word is a reference's first word."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Sample


class Lenient:
    """A profile for question answering: cleaning, the type of a question, and when an answer is right."""

    name = "example-lenient"
    version = "1"
    kind = "vqa"
    source = "the tutorial of mhe"
    defects: Sequence[str] = ("`no doubt, yes` counts as `no`",)
    usual_metrics: Sequence[str] = ("example-first-word",)

    def clean(self, texts: Sequence[str]) -> list[str]:
        return [" ".join(re.findall(r"\w+", text.lower())) for text in texts]

    def question_type(self, sample: Sample) -> str:
        return sample.answer_type or "open"

    def credit(self, answer: str, sample: Sample) -> float:
        given, *right = (text.split(" ")[0] for text in self.clean([answer, *sample.references]))
        return float(given in right)


LENIENT = Lenient()
