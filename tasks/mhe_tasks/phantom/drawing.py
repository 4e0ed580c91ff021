"""Facts -> pixels.

Each modality has a look of its own. CT and MRI show the same axial anatomy with opposite contrast,
a radiograph shows a projection with ribs or other bones, ultrasound a fan with speckle. Regions
differ by their organs. Coordinates are canonical: x and y run from -512 to 511 over any image size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mhe_tasks.phantom.draws import Draws, IntArray
from mhe_tasks.phantom.facts import Facts

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

LESION_LEVEL = {"bright": 240, "dark": 8}

# Tissue -> grey level. Organs stay between 75 and 175, so that a lesion is bright or dark anywhere.
_LEVELS = {
    "CT": {"air": 0, "rim": 250, "soft": 120, "organ": 150, "hollow": 85, "bone": 220},
    "MRI": {"air": 0, "rim": 30, "soft": 150, "organ": 110, "hollow": 175, "bone": 50},
    "radiograph": {"air": 45, "rim": 180, "soft": 115, "organ": 145, "hollow": 85, "bone": 175},
    "ultrasound": {"air": 0, "rim": 170, "soft": 105, "organ": 135, "hollow": 70, "bone": 165},
}

# Region -> half axes of the outline, and of its organs (tissue, x, y, half width, half height).
_OUTLINES = {"head": (400, 445), "chest": (490, 420), "abdomen": (455, 430), "pelvis": (500, 400)}
_ORGANS = {
    "head": (("hollow", -52, 0, 26, 120), ("hollow", 52, 0, 26, 120), ("organ", 0, 300, 130, 60)),
    "chest": (("hollow", -225, 0, 180, 270), ("hollow", 225, 0, 180, 270), ("bone", 0, 300, 62, 62)),
    "abdomen": (("organ", -190, -50, 200, 220), ("organ", 250, -170, 90, 110), ("bone", 0, 270, 66, 66)),
    "pelvis": (
        ("organ", 0, -90, 130, 110),
        ("bone", -440, 40, 62, 190),
        ("bone", 440, 40, 62, 190),
        ("bone", 0, 260, 150, 56),
    ),
}


def draw_pixels(facts: Facts, size: int = 64) -> Pixels:
    """Return the phantom as a (size, size) array of grey levels; equal facts give equal bytes."""
    draws = Draws(facts.seed ^ 0x9E3779B97F4A7C15)
    levels = _LEVELS[facts.modality]
    if facts.modality == "radiograph":
        canvas = _projection(facts, levels, size)
    elif facts.modality == "ultrasound":
        canvas = _fan(facts, levels, size)
    else:
        canvas = _slice(facts, levels, size)
    for lesion in facts.lesions:
        mask = _ellipse(size, lesion.x, lesion.y, lesion.half_width, lesion.half_height)
        if facts.contrast is None:
            canvas[mask] = LESION_LEVEL[facts.intensity or "bright"]
        else:
            canvas[mask] += facts.contrast if facts.intensity == "bright" else -facts.contrast
    canvas = _soften(canvas)
    noise = draws.noise(size, size) * facts.noise
    if facts.modality == "ultrasound":
        # Speckle multiplies: it is strong in bright tissue and absent outside the fan.
        canvas += ((noise + np.roll(noise, 1, axis=1)) * canvas) >> 14
    else:
        canvas += noise >> 7
    return np.clip(canvas, 0, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _axis(size: int) -> NDArray[np.int64]:
    """Canonical coordinates of the pixel centres along one axis."""
    steps = np.arange(size, dtype=np.int64)
    return ((2 * steps + 1) * 512) // size - 512


def _ellipse(size: int, x: int, y: int, half_width: int, half_height: int) -> Mask:
    axis = _axis(size)
    across = ((axis - x) * half_height) ** 2
    down = ((axis - y) * half_width) ** 2
    mask: Mask = (across[None, :] + down[:, None]) <= (half_width * half_height) ** 2
    return mask


def _slice(facts: Facts, levels: dict[str, int], size: int) -> IntArray:
    """An axial slice: an outline with a rim, and organs inside it."""
    x, y = facts.centre
    half_width, half_height = (axis * facts.scale // 104 for axis in _OUTLINES[facts.region])
    rim = 62 if facts.region == "head" else 26
    canvas = np.full((size, size), levels["air"], dtype=np.int32)
    canvas[_ellipse(size, x, y, half_width, half_height)] = levels["rim"]
    inside = _ellipse(size, x, y, half_width - rim, half_height - rim)
    canvas[inside] = levels["soft"]
    for tissue, dx, dy, width, height in _ORGANS[facts.region]:
        canvas[_ellipse(size, x + dx, y + dy, width, height) & inside] = levels[tissue]
    return canvas


def _projection(facts: Facts, levels: dict[str, int], size: int) -> IntArray:
    """A radiograph: soft tissue to the frame's edge, shadows of bone laid over one another."""
    x, y = facts.centre
    across, down = _axis(size) - x, _axis(size) - y
    canvas = np.full((size, size), levels["soft"], dtype=np.int32)
    spine = np.abs(across) < 46
    if facts.region == "head":
        canvas[:] = levels["air"]
        canvas[_ellipse(size, x, y - 30, 420, 430)] = levels["rim"]
        canvas[_ellipse(size, x, y - 30, 375, 385)] = levels["soft"]
        canvas[_ellipse(size, x, y + 420, 170, 90)] = levels["bone"]
    elif facts.region == "chest":
        lungs = _ellipse(size, x - 220, y, 190, 400) | _ellipse(size, x + 220, y, 190, 400)
        canvas[lungs] = levels["hollow"]
        # Ribs fall away from the spine, hence the term in x.
        ribs = ((down[:, None] - np.abs(across)[None, :] // 3) % 150) < 40
        canvas[ribs & lungs] += 30
        canvas[:, spine] = levels["bone"]
    elif facts.region == "abdomen":
        canvas[_ellipse(size, x - 230, y - 200, 240, 230)] = levels["organ"]
        discs = (down % 130) < 100
        canvas[np.ix_(discs, spine)] = levels["bone"]
        canvas[~discs[:, None] & spine[None, :]] = levels["organ"]
    else:
        for sign in (-1, 1):
            canvas[_ellipse(size, x + sign * 300, y - 90, 260, 340)] += 22
            canvas[_ellipse(size, x + sign * 430, y + 400, 90, 200)] = levels["bone"]
        canvas[_ellipse(size, x, y - 330, 130, 170)] = levels["bone"]
    return canvas


def _fan(facts: Facts, levels: dict[str, int], size: int) -> IntArray:
    """An ultrasound sector: its tip above the frame, organs inside."""
    x, y = facts.centre
    axis = _axis(size)
    depth = axis - y + 700
    squared = (axis - x)[None, :] ** 2 + depth[:, None] ** 2
    fan = (np.abs(axis - x)[None, :] * 20 <= depth[:, None] * 15) & (squared <= 1170**2)
    fan &= squared >= 230**2
    canvas = np.zeros((size, size), dtype=np.int32)
    canvas[fan] = levels["soft"]
    if facts.region == "head":
        for sign in (-1, 1):
            canvas[_ellipse(size, x + sign * 52, y + 20, 30, 130) & fan] = levels["hollow"]
        canvas[fan & (squared > 1070**2)] = levels["rim"]
    elif facts.region == "chest":
        # Reverberation below the pleura: lines at equal distances.
        canvas[fan & (((squared >> 8) % 1100) < 260)] = levels["organ"]
    elif facts.region == "abdomen":
        canvas[_ellipse(size, x - 200, y + 40, 260, 250) & fan] = levels["organ"]
        canvas[_ellipse(size, x, y + 400, 60, 60) & fan] = levels["rim"]
    else:
        canvas[_ellipse(size, x, y - 90, 140, 120) & fan] = levels["hollow"]
        canvas[_ellipse(size, x, y + 330, 200, 50) & fan] = levels["rim"]
    return canvas


def _soften(canvas: IntArray) -> IntArray:
    """Return the canvas under a 3 x 3 binomial kernel, which also smooths the edges of shapes."""
    framed = np.pad(canvas, 1, mode="edge")
    rows = framed[:-2] + 2 * framed[1:-1] + framed[2:]
    smooth: IntArray = (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) >> 4
    return smooth
