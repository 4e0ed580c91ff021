"""How texts are scored where nobody says how: read from the profiles, so that the core names none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.errors import MheError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.catalog import Catalog


@dataclass(frozen=True, slots=True)
class UsualScoring:
    """A profile and metrics, every gap filled."""

    profile: str
    metrics: tuple[str, ...]


def usual_scoring(
    catalog: Catalog, kind: str, *, profile: str | None = None, metrics: Sequence[str] = ()
) -> UsualScoring:
    """What is asked for; else the default profile of the kind, and the metrics that are usual under the profile.

    A profile that names no metrics has those of the default one. Raises `UnknownNameError` for a profile, and
    `UserError` where a gap cannot be filled: no profile of the kind is the default, or several are.
    """
    if profile is not None:
        chosen = tuple(metrics) or _usual_metrics(catalog, profile)
        if chosen:
            return UsualScoring(profile, chosen)
    default = default_profile(catalog, kind)
    return UsualScoring(profile or default, tuple(metrics) or _usual_metrics(catalog, default))


def default_profile(catalog: Catalog, kind: str) -> str:
    """The name of the profile that says of itself that it is the default for `caption` or `vqa`.

    Raises `UserError` where there is none, or more than one.
    """
    found = []
    for name in sorted(catalog.profiles):
        try:
            profile = catalog.profile(name)
        except MheError:
            # What cannot be loaded here cannot be the profile that works on every machine.
            continue
        if profile.kind == kind and getattr(profile, "is_default", False):
            found.append(name)
    if len(found) == 1:
        return found[0]
    if not found:
        fitting = ", ".join(sorted(catalog.profiles)) or "none"
        raise UserError(
            f"no installed profile is the default for {kind}: name profile and metrics (profiles: {fitting})."
        )
    owners = [f"{name} ({owner.distribution})" for name in found if (owner := catalog.owner_of("profile", name))]
    raise UserError(
        f"several profiles say that they are the default for {kind}: {', '.join(owners)}. Name one, or uninstall the "
        "distribution whose own you do not want."
    )


def _usual_metrics(catalog: Catalog, profile: str) -> tuple[str, ...]:
    return tuple(getattr(catalog.profile(profile), "usual_metrics", ()))
