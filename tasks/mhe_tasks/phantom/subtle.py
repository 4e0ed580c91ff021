"""Subtle findings: phantoms that a small model does not see through.

Lesions are two or three pixels in radius, round or oblong, a little brighter or darker than the tissue under them,
under more noise; all lesions of an image lie in one quadrant.
"""

from __future__ import annotations

from mhe_tasks.phantom.draws import Draws
from mhe_tasks.phantom.facts import (
    INTENSITIES,
    MODALITIES,
    NUMBER_WEIGHTS,
    POSITIONS,
    REGIONS,
    SHAPES,
    SIZES,
    Facts,
    Lesion,
    check_seed,
    is_within_outlines,
)

# Of a disc of the same area, in canonical units (the image is 1024 wide): about 1.8 and 3 pixels at 64 x 64.
SUBTLE_RADII = {"small": (27, 31), "large": (46, 50)}
CONTRASTS = (50, 95)
"""Grey levels between a lesion and the tissue under it."""
NOISE = (5, 12)

_SALT = 0x27D4EB2F165667C5
_APART = 146
"""Between the centres of two lesions: twice the longest half axis and a gap."""
_SLOTS = ((90, 90), (90, 240), (240, 90))


def draw_subtle_facts(seed: int) -> Facts:
    """Return the facts of the subtle phantom with this seed; any integer in [0, 2**64) is one."""
    check_seed(seed)
    draws = Draws(seed ^ _SALT)
    modality, region = draws.one_of(MODALITIES), draws.one_of(REGIONS)
    number = draws.one_of(NUMBER_WEIGHTS)
    position, size, shape = draws.one_of(POSITIONS), draws.one_of(SIZES), draws.one_of(SHAPES)
    intensity = draws.one_of(INTENSITIES)
    contrast, noise = draws.between(*CONTRASTS), draws.between(*NOISE)
    centre = (draws.between(-14, 14), draws.between(-14, 14))
    scale = draws.between(94, 104)
    lesions = _place(draws, number, position, (size, shape), centre)
    has_lesions = number > 0
    return Facts(
        seed,
        modality,
        region,
        lesions,
        side=None,
        size=size if has_lesions else None,
        intensity=intensity if has_lesions else None,
        noise=noise,
        centre=centre,
        scale=scale,
        position=position if has_lesions else None,
        shape=shape if has_lesions else None,
        contrast=contrast,
    )


def _place(
    draws: Draws, number: int, position: str, look: tuple[str, str], centre: tuple[int, int]
) -> tuple[Lesion, ...]:
    """Return lesions that lie wholly in one quadrant, inside every outline, with a gap between them."""
    size, shape = look
    across = -1 if position.endswith("left") else 1
    down = -1 if position.startswith("upper") else 1
    places: list[tuple[int, int]] = []
    for _ in range(60):
        if len(places) == number:
            break
        x, y = draws.between(84, 260), draws.between(84, 260)
        if is_within_outlines(x, y, 66) and all((x - p) ** 2 + (y - q) ** 2 >= _APART**2 for p, q in places):
            places.append((x, y))
    if len(places) < number:
        places = list(_SLOTS[:number])
    lesions = []
    for x, y in places:
        width, height = _half_axes(draws, size, shape)
        lesions.append(Lesion(across * x + centre[0], down * y + centre[1], width, height))
    return tuple(lesions)


def _half_axes(draws: Draws, size: str, shape: str) -> tuple[int, int]:
    """Return half width and half height: equal, or as 9 to 5 with the same area, lying or upright."""
    radius = draws.between(*SUBTLE_RADII[size])
    is_upright = draws.below(2) == 1
    if shape == "round":
        return radius, radius
    # sqrt(9 / 5) is 1.342 and its inverse 0.745.
    long, short = radius * 1342 // 1000, radius * 745 // 1000
    return (short, long) if is_upright else (long, short)
