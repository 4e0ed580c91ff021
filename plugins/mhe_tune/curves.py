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
    points = {
        key: [(e["step"], e[key]) for e in history if key in e and math.isfinite(e[key])] for key, _, _ in LINES
    }
    every = [point for line in points.values() for point in line]
    last = max((x for x, _ in every), default=1.0) or 1.0
    top = max((y for _, y in every), default=1.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}" stroke="black" fill="none"/>',
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{top:.3g}</text>',
        f'<text x="{MARGIN - 6}" y="{HEIGHT - MARGIN}" text-anchor="end">0</text>',
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - MARGIN + 18}" text-anchor="end">step {last:.0f}</text>',
    ]
    for number, (key, colour, name) in enumerate(LINES):
        places = " ".join(
            f"{MARGIN + (WIDTH - 2 * MARGIN) * x / last:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * max(y, 0) / top:.1f}"
            for x, y in points[key]
        )
        parts.append(f'<polyline points="{places}" stroke="{colour}" fill="none"/>')
        parts.append(f'<text x="{WIDTH - MARGIN}" y="{MARGIN + 16 * number}" text-anchor="end" fill="{colour}">{name} loss</text>')
    return "\n".join([*parts, "</svg>", ""])
