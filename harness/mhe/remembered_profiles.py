"""Profiles that clean each text of a run once, however many metrics ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe.protocols import AnswerProfile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.catalog import Catalog
    from mhe.protocols import Profile
    from mhe.values import Case


class _RememberedProfile:
    """A profile that cleans every text of the run in one call, however many metrics ask: Java starts once."""

    def __init__(self, profile: Profile, texts: Sequence[str]) -> None:
        self.name = profile.name
        self.version = profile.version
        self.kind = profile.kind
        self.source = profile.source
        self.defects = profile.defects
        self._profile = profile
        self._texts = texts
        self._cleaned: dict[str, str] = {}

    def clean(self, texts: Sequence[str]) -> list[str]:
        """As the profile does."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._cleaned]
        if missing:
            wanted = list(dict.fromkeys([*missing, *(() if self._cleaned else self._texts)]))
            cleaned = self._profile.clean(wanted)
            self._cleaned.update(zip(wanted, cleaned, strict=True))
        return [self._cleaned[text] for text in texts]


class _RememberedAnswerProfile(_RememberedProfile):
    """The same for question answering."""

    def __init__(self, profile: AnswerProfile, texts: Sequence[str]) -> None:
        super().__init__(profile, texts)
        self.question_type = profile.question_type
        self.credit = profile.credit


def remembering_profiles(catalog: Catalog, names: Sequence[str], cases: Sequence[Case]) -> list[Profile]:
    """The named profiles, for the answers and references of these cases. Raises `UnknownNameError`."""
    texts = [text for case in cases for text in (case.answer, *case.sample.references)]
    found: list[Profile] = []
    for name in names:
        profile = catalog.profile(name)
        if isinstance(profile, AnswerProfile):
            found.append(_RememberedAnswerProfile(profile, texts))
        else:
            found.append(_RememberedProfile(profile, texts))
    return found
