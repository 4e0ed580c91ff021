"""`phrases`: entities are the phrases of a file, found as whole words."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import MetricUnavailableError, Part, file_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Words = tuple[str, ...]
    Spans = list[tuple[int, int]]

WORD = re.compile(r"\w+")
JOINT = re.compile(r"[\s\-‐‑–/'’]*")
"""What may stand between two words of a phrase: `x-ray` is found by `x ray`, and the other way round."""


class PhraseOptions(Part):
    """Where the phrases are."""

    file: Path | None = None
    """A text file in UTF-8, one phrase a line; blank lines are passed over. Required."""


class PhraseTagger:
    """Whole words in any case, blanks and hyphens alike; the longest phrase first, and none inside another."""

    Options = PhraseOptions
    name = "phrases"
    version = "1"

    def __init__(self, options: PhraseOptions) -> None:
        self._file = options.file
        self._phrases: dict[str, list[Words]] | None = None

    @property
    def resources(self) -> Mapping[str, str]:
        """The file's digest. Raises `MetricUnavailableError` where it cannot be read."""
        try:
            return {"file": file_digest(self._place())}
        except OSError as error:
            raise MetricUnavailableError(f"the phrases in {self._file} cannot be read: {error.strerror}") from error

    def spans(self, texts: Sequence[str]) -> list[Spans]:
        """The phrases in each text. Raises `MetricUnavailableError` where there is no file with a phrase."""
        if self._phrases is None:
            self._phrases = self._read()
        return [_find(text, self._phrases) for text in texts]

    def _place(self) -> Path:
        if self._file is None:
            raise MetricUnavailableError(
                "no phrases are given: --set metrics.NAME.tagger_options.file=FILE, a text file with one phrase a line"
            )
        return self._file.expanduser()

    def _read(self) -> dict[str, list[Words]]:
        """Phrases by their first word, the longest first."""
        place = self._place()
        try:
            lines = place.read_text(encoding="utf-8-sig").split("\n")
        except OSError as error:
            raise MetricUnavailableError(f"the phrases in {place} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise MetricUnavailableError(f"the phrases in {place} are not UTF-8: {error.reason}") from error
        found: dict[str, list[Words]] = {}
        for phrase in {tuple(word.casefold() for word in WORD.findall(line)) for line in lines}:
            if phrase:
                found.setdefault(phrase[0], []).append(phrase)
        if not found:
            raise MetricUnavailableError(f"{place} holds no phrase: write one a line")
        return {word: sorted(phrases, key=lambda phrase: (-len(phrase), phrase)) for word, phrases in found.items()}


def _find(text: str, phrases: Mapping[str, list[Words]]) -> Spans:
    places = [match.span() for match in WORD.finditer(text)]
    words = tuple(text[start:end].casefold() for start, end in places)
    found: Spans = []
    here = 0
    while here < len(words):
        length = next(
            (
                len(phrase)
                for phrase in phrases.get(words[here], ())
                if words[here : here + len(phrase)] == phrase
                and _hang_together(text, places[here : here + len(phrase)])
            ),
            0,
        )
        if length:
            found.append((places[here][0], places[here + length - 1][1]))
        here += max(length, 1)
    return found


def _hang_together(text: str, places: Sequence[tuple[int, int]]) -> bool:
    """True where only joints stand between the words: a phrase does not go over a comma or a full stop."""
    return all(JOINT.fullmatch(text, one[1], other[0]) for one, other in pairwise(places))
