"""What a scoring profile promises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe.protocols import AnswerProfile
from mhe.testing.contracts.promises import check_name, promise
from mhe.testing.toys import HOSTILE_TEXTS, toy_samples

if TYPE_CHECKING:
    from mhe.protocols import Profile


def check_profile(profile: Profile) -> None:
    """Cleaning keeps number and order, treats each text alone, and leaves single blanks; credits lie in 0 to 1.

    Raises `AssertionError` with the broken promise, and `MetricUnavailableError` where a program it needs is absent.
    """
    what = f"profile {getattr(profile, 'name', profile)!r}"
    check_name(profile.name, profile.version, what)
    promise(profile.kind in ("caption", "vqa"), f"{what}: kind must be caption or vqa, found {profile.kind!r}")
    promise(profile.source, f"{what}: name the paper or program whose rules these are in `source`")
    promise(
        not isinstance(profile.defects, str) and all(isinstance(line, str) for line in profile.defects),
        f"{what}: defects must be a sequence of texts",
    )
    texts = ["A dog.", *HOSTILE_TEXTS, "Right lung", "a dog"]
    cleaned = profile.clean(texts)
    promise(isinstance(cleaned, list), f"{what}: clean must return a list, found {type(cleaned).__name__}")
    promise(len(cleaned) == len(texts), f"{what}: clean returned {len(cleaned)} texts for {len(texts)}")
    for text, clean in zip(texts, cleaned, strict=True):
        promise(isinstance(clean, str), f"{what}: clean returned {type(clean).__name__} for {text[:40]!r}")
        promise(
            clean == " ".join(clean.split(" ")).strip(" ") and "\n" not in clean and "  " not in clean,
            f"{what}: tokens must be separated by single blanks: {text[:40]!r} became {clean[:40]!r}",
        )
    promise(profile.clean([]) == [], f"{what}: clean([]) must be []")
    promise(profile.clean(texts[::-1]) == cleaned[::-1], f"{what}: what a text becomes depends on its neighbours")
    if profile.kind == "vqa":
        _check_credit(profile, what)


def _check_credit(profile: Profile, what: str) -> None:
    if not isinstance(profile, AnswerProfile):
        raise AssertionError(f"{what}: a profile for question answering needs question_type and credit")
    for sample in toy_samples(4):
        kind = profile.question_type(sample)
        promise(kind in ("closed", "open"), f"{what}: question_type must be closed or open, found {kind!r}")
        right = profile.credit(sample.references[0], sample)
        wrong = profile.credit("nothing of the kind whatsoever", sample)
        promise(right >= wrong, f"{what}: {sample.references[0]!r} earns {right}, less than a wrong answer's {wrong}")
        promise(right > 0, f"{what}: the reference itself, {sample.references[0]!r}, earns nothing")
        for answer in HOSTILE_TEXTS:
            credit = profile.credit(answer, sample)
            promise(0.0 <= credit <= 1.0, f"{what}: credit {credit} for {answer[:40]!r} is not in 0 to 1")
