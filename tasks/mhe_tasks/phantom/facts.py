"""What is true of a phantom: everything that its caption, its questions and its pixels say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mhe_tasks.phantom.draws import Draws

Modality = Literal["CT", "MRI", "radiograph", "ultrasound"]
MODALITIES: tuple[Modality, ...] = ("CT", "MRI", "radiograph", "ultrasound")
REGIONS = ("head", "chest", "abdomen", "pelvis")
SIDES = ("left", "right")
POSITIONS = ("upper left", "upper right", "lower left", "lower right")
SIZES = ("small", "large")
SHAPES = ("round", "oblong")
INTENSITIES = ("dark", "bright")
NUMBERS = ("zero", "one", "two", "three")

NUMBER_WEIGHTS = (0, 0, 0, 0, 1, 1, 2, 2, 3, 3)
"""Drawn from, so that neither "yes, there is a lesion" nor any number is a good guess."""

# Radii in canonical units (the image is 1024 wide): about 2.8 and 5.6 pixels at 64 x 64.
RADII = {"small": (40, 50), "large": (84, 96)}
_GAP = 30
_FROM_MIDLINE = 24


@dataclass(frozen=True, slots=True)
class Lesion:
    """One lesion, an ellipse; centre and half axes in canonical units from the image's centre."""

    x: int
    y: int
    half_width: int
    half_height: int


@dataclass(frozen=True, slots=True)
class Facts:
    """One phantom's facts. `side` or `position`, `size`, `intensity` and `shape` hold for all its lesions.

    `side` is the side of the image as displayed, not the patient's: left is where x is negative.
    With no lesion they are None and `lesions` is empty. Plain phantoms have a side, subtle ones a position and a
    shape.
    """

    seed: int
    modality: Modality
    region: str
    lesions: tuple[Lesion, ...]
    side: str | None
    size: str | None
    intensity: str | None
    noise: int
    centre: tuple[int, int]
    scale: int
    position: str | None = None
    shape: str | None = None
    contrast: int | None = None
    """Grey levels between lesion and tissue; None: lesions have a level of their own."""

    @property
    def number(self) -> int:
        """How many lesions the image shows."""
        return len(self.lesions)


def draw_facts(seed: int) -> Facts:
    """Return the facts of the phantom with this seed; any integer in [0, 2**64) is one."""
    check_seed(seed)
    draws = Draws(seed)
    modality = draws.one_of(MODALITIES)
    region = draws.one_of(REGIONS)
    number = draws.one_of(NUMBER_WEIGHTS)
    side, size = draws.one_of(SIDES), draws.one_of(SIZES)
    intensity = draws.one_of(INTENSITIES)
    noise = draws.between(2, 7)
    centre = (draws.between(-14, 14), draws.between(-14, 14))
    scale = draws.between(94, 104)
    lesions = _place(draws, number, side, size, centre)
    if number == 0:
        return Facts(seed, modality, region, (), None, None, None, noise, centre, scale)
    return Facts(seed, modality, region, lesions, side, size, intensity, noise, centre, scale)


def check_seed(seed: int) -> None:
    """Raise `ValueError` for a seed outside 64 bits."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"phantom seed {seed} is outside [0, 2**64); give a 64-bit integer")


def _place(draws: Draws, number: int, side: str, size: str, centre: tuple[int, int]) -> tuple[Lesion, ...]:
    """Return lesions that lie wholly on one side, inside every outline, with a gap between them."""
    low, high = RADII[size]
    sign = -1 if side == "left" else 1
    centres: list[tuple[int, int]] = []
    for _ in range(60):
        if len(centres) == number:
            break
        x = draws.between(high + _FROM_MIDLINE, 250)
        y = draws.between(-210, 210)
        if is_within_outlines(x, y, high) and all(_apart(x, y, p, q, 2 * high + _GAP) for p, q in centres):
            centres.append((x, y))
    if len(centres) < number:
        # A column of slots always has room for three large lesions.
        centres = [(high + _FROM_MIDLINE + 6, y) for y in (-200, 16, 230)][:number]
    return tuple(
        Lesion(sign * x + centre[0], y + centre[1] + 20, draws.between(low, high), draws.between(low, high))
        for x, y in centres
    )


def is_within_outlines(x: int, y: int, radius: int) -> bool:
    """Say whether a disc lies inside the ellipse of half axes 330 x 350 that every outline contains."""
    reach = 7 * radius // 10
    far_x, far_y = abs(x) + reach, abs(y) + reach
    return (far_x * 350) ** 2 + (far_y * 330) ** 2 <= (330 * 350) ** 2


def _apart(x: int, y: int, p: int, q: int, distance: int) -> bool:
    return (x - p) ** 2 + (y - q) ** 2 >= distance * distance
