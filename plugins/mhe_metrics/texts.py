"""Answers and references as a profile cleans them, in the shape that text metrics work on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Case, Profile


class CleanedCase(NamedTuple):
    """One answer and its references, cleaned."""

    answer: str
    references: tuple[str, ...]


def cleaned_cases(cases: Sequence[Case], profile: Profile) -> list[CleanedCase]:
    """The cases' texts after `profile.clean`, in one call. Raises what the profile raises."""
    texts = [text for case in cases for text in (case.answer, *case.sample.references)]
    cleaned = profile.clean(texts)
    found, place = [], 0
    for case in cases:
        end = place + 1 + len(case.sample.references)
        found.append(CleanedCase(cleaned[place], tuple(cleaned[place + 1 : end])))
        place = end
    return found
