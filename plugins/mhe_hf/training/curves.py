"""The learning curve as a picture, from the history alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe_hf.training.yardsticks import Yardstick

WIDTH, HEIGHT, MARGIN = 640, 320, 48
LOSSES = (("loss", "#1f77b4", "training loss"), ("eval_loss", "#d62728", "validation loss"))
METRIC_COLOUR = "#2ca02c"


def draw_curve(history: Sequence[Mapping[str, float]], yardstick: Yardstick | None = None) -> str:
    """An SVG of training and validation loss over steps, from 0 up; finite values only.

    A metric that weights are chosen by is drawn with them, on a scale of its own that is written at the right.
    """
    lines = [(colour, name, _points(history, key)) for key, colour, name in LOSSES]
    every = [point for _, _, points in lines for point in points]
    top = max((y for _, y in every), default=1.0) or 1.0
    drawn = [(colour, name, points, 0.0, top) for colour, name, points in lines]
    if yardstick is not None and yardstick.samples:
        points = _points(history, yardstick.key)
        every += points
        ends = [0.0, *(y for _, y in points)]
        drawn.append((METRIC_COLOUR, f"validation {yardstick.name}", points, min(ends), max(ends)))
    last = max((x for x, _ in every), default=1.0) or 1.0
    low, right = HEIGHT - MARGIN, WIDTH - MARGIN
    size = f'width="{WIDTH}" height="{HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{MARGIN} {MARGIN}V{low}H{right}" stroke="black" fill="none"/>',
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{top:.3g}</text>',
        f'<text x="{MARGIN - 6}" y="{low}" text-anchor="end">0</text>',
        f'<text x="{right}" y="{low + 18}" text-anchor="end">step {last:.0f}</text>',
    ]
    for number, (colour, name, points, least, most) in enumerate(drawn):
        span = (most - least) or 1.0
        places = " ".join(
            f"{MARGIN + (right - MARGIN) * x / last:.1f},{low - (low - MARGIN) * max(y - least, 0.0) / span:.1f}"
            for x, y in points
        )
        height = MARGIN + 16 * number
        parts.append(f'<polyline points="{places}" stroke="{colour}" fill="none"/>')
        parts.append(f'<text x="{right}" y="{height}" text-anchor="end" fill="{colour}">{escape(name)}</text>')
        if number >= len(LOSSES):
            parts.append(f'<text x="{right + 4}" y="{MARGIN}" fill="{colour}">{most:.3g}</text>')
            parts.append(f'<text x="{right + 4}" y="{low}" fill="{colour}">{least:.3g}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _points(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    return [(entry["step"], entry[key]) for entry in history if key in entry and math.isfinite(entry[key])]
