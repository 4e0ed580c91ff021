"""The learning curve as a picture, from the history alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, MARGIN = 640, 320, 48
LINES = (("loss", "#1f77b4", "training"), ("eval_loss", "#d62728", "validation"))


def draw_curve(history: Sequence[Mapping[str, float]]) -> str:
    """An SVG of training and validation loss over steps; finite values only."""
    points = {key: [(e["step"], e[key]) for e in history if key in e and math.isfinite(e[key])] for key, _, _ in LINES}
    every = [point for line in points.values() for point in line]
    last = max((x for x, _ in every), default=1.0) or 1.0
    top = max((y for _, y in every), default=1.0) or 1.0
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
    for number, (key, colour, name) in enumerate(LINES):
        places = " ".join(
            f"{MARGIN + (right - MARGIN) * x / last:.1f},{low - (low - MARGIN) * max(y, 0.0) / top:.1f}"
            for x, y in points[key]
        )
        height = MARGIN + 16 * number
        parts.append(f'<polyline points="{places}" stroke="{colour}" fill="none"/>')
        parts.append(f'<text x="{right}" y="{height}" text-anchor="end" fill="{colour}">{name} loss</text>')
    return "\n".join([*parts, "</svg>", ""])
