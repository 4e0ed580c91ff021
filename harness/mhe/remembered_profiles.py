"""Profiles that clean each text once, however many metrics, and models on the same references, ask for it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mhe.protocols import AnswerProfile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.catalog import Catalog
    from mhe.protocols import Profile
    from mhe.values import Case

KEPT_CHARACTERS = 20_000_000
"""Of references, as they stand: about 200 MB with their cleaned texts at most."""


class _References:
    """The cleaned references of the latest run under one profile, so that the next model's run finds them."""

    def __init__(self) -> None:
        self.version = ""
        self.cleaned: dict[str, str] = {}


_kept: WeakKeyDictionary[Profile, _References] = WeakKeyDictionary()


class _RememberedProfile:
    """A profile that cleans every text of the run in one call, however many metrics ask: Java starts once."""

    def __init__(self, profile: Profile, answers: Sequence[str], references: Sequence[str]) -> None:
        self.name = profile.name
        self.version = profile.version
        self.kind = profile.kind
        self.source = profile.source
        self.defects = profile.defects
        self._profile = profile
        self._texts = [*answers, *references]
        self._references = dict.fromkeys(references)
        self._cleaned = dict(_kept_for(profile))

    def clean(self, texts: Sequence[str]) -> list[str]:
        """As the profile does."""
        if not all(map(self._cleaned.__contains__, texts)):
            wanted = [text for text in dict.fromkeys([*texts, *self._texts]) if text not in self._cleaned]
            cleaned = self._profile.clean(wanted)
            self._cleaned.update(zip(wanted, cleaned, strict=True))
            _keep(self._profile, {text: self._cleaned[text] for text in self._references})
        return list(map(self._cleaned.__getitem__, texts))


class _RememberedAnswerProfile(_RememberedProfile):
    """The same for question answering."""

    def __init__(self, profile: AnswerProfile, answers: Sequence[str], references: Sequence[str]) -> None:
        super().__init__(profile, answers, references)
        self.question_type = profile.question_type
        self.credit = profile.credit


def remembering_profiles(catalog: Catalog, names: Sequence[str], cases: Sequence[Case]) -> list[Profile]:
    """The named profiles, for the answers and references of these cases. Raises `UnknownNameError`."""
    answers = [case.answer for case in cases]
    references = [text for case in cases for text in case.sample.references]
    found: list[Profile] = []
    for name in names:
        profile = catalog.profile(name)
        if isinstance(profile, AnswerProfile):
            found.append(_RememberedAnswerProfile(profile, answers, references))
        else:
            found.append(_RememberedProfile(profile, answers, references))
    return found


def _kept_for(profile: Profile) -> dict[str, str]:
    try:
        kept = _kept.get(profile)
    except TypeError:  # a stranger's profile that cannot be hashed or referred to weakly
        return {}
    return kept.cleaned if kept is not None and kept.version == profile.version else {}


def _keep(profile: Profile, cleaned: dict[str, str]) -> None:
    if sum(map(len, cleaned)) > KEPT_CHARACTERS:
        return
    try:
        kept = _kept.setdefault(profile, _References())
    except TypeError:
        return
    kept.version, kept.cleaned = profile.version, cleaned
