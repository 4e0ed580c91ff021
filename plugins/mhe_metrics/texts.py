"""Answers and references as a profile cleans them, in the shape that text metrics work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Case, Profile


@dataclass(frozen=True, slots=True)
class CleanedCase:
    """One answer and its references, cleaned."""

    answer: str
    references: tuple[str, ...]


def cleaned_cases(cases: Sequence[Case], profile: Profile) -> list[CleanedCase]:
    """The cases' texts after `profile.clean`, in one call. Raises what the profile raises."""
    texts = [text for case in cases for text in (case.answer, *case.sample.references)]
    cleaned = iter(profile.clean(texts))
    return [
        CleanedCase(answer=next(cleaned), references=tuple(next(cleaned) for _ in case.sample.references))
        for case in cases
    ]
