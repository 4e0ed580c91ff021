"""Quality against cost: who is not beaten in both, and a drawing of it as SVG text of our own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from mhe.boards.markdown import plain_line, short_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PANEL_WIDTH, PANEL_HEIGHT = 320, 250
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 48
LEGEND_LINE = 18
INK, GREY, FRONT_COLOUR = "#1f2328", "#8c959f", "#0b62c4"


@dataclass(frozen=True, slots=True)
class Point:
    """One entrant: what it costs and how good it is."""

    name: str
    cost: float
    quality: float


@dataclass(frozen=True, slots=True)
class Panel:
    """One kind of cost with all entrants that have it."""

    cost: str
    points: tuple[Point, ...]
    front: tuple[str, ...]
    """Names on the front, cheapest first."""


def front_of(points: Sequence[Point], *, higher_is_better: bool = True) -> tuple[str, ...]:
    """Names of the points that no other one beats or equals in both and beats in one; cheapest first."""
    sign = 1.0 if higher_is_better else -1.0
    found = [
        point
        for point in points
        if not any(
            other.cost <= point.cost
            and sign * other.quality >= sign * point.quality
            and (other.cost, other.quality) != (point.cost, point.quality)
            for other in points
        )
    ]
    return tuple(point.name for point in sorted(found, key=lambda p: (p.cost, -sign * p.quality, p.name)))


def drawing(title: str, quality: str, panels: Sequence[Panel], names: Sequence[str]) -> str:
    """SVG text: one panel a cost, entrants as numbers explained below, the front as a filled, joined line.

    `names` gives the numbers, from 1. The same input gives the same bytes: two decimals, no fonts measured.
    """
    width = PANEL_WIDTH * len(panels)
    height = PANEL_HEIGHT + LEGEND_LINE * len(names) + 20
    title, description = plain_line(title), _described(panels)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"',
        '  role="img" font-family="sans-serif" font-size="11">',
        f"<title>{escape(title)}</title>",
        f"<desc>{escape(description)}</desc>",
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for index, panel in enumerate(panels):
        lines.append(f'<g transform="translate({index * PANEL_WIDTH} 0)">')
        lines += _panel(panel, quality, names)
        lines.append("</g>")
    for index, name in enumerate(names):
        y = PANEL_HEIGHT + 14 + index * LEGEND_LINE
        lines.append(_text(LEFT, y, f"{index + 1}  {name}", INK))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _described(panels: Sequence[Panel]) -> str:
    return " ".join(f"Front by {panel.cost}: {', '.join(panel.front)}." for panel in panels)


def _panel(panel: Panel, quality: str, names: Sequence[str]) -> list[str]:
    # Costs of models lie orders of magnitude apart; a cost of nothing is drawn at one.
    xs = [math.log10(max(point.cost, 1e-9)) for point in panel.points]
    ys = [point.quality for point in panel.points]
    x_of, y_of = _axis(xs, LEFT, PANEL_WIDTH - RIGHT), _axis(ys, PANEL_HEIGHT - BOTTOM, TOP)
    bottom, right = PANEL_HEIGHT - BOTTOM, PANEL_WIDTH - RIGHT
    lines = [
        f'<path d="M{LEFT} {TOP} V{bottom} H{right}" fill="none" stroke="{GREY}"/>',
        _text((LEFT + right) / 2, bottom + 36, f"{panel.cost} (log scale)", INK, anchor="middle"),
        _text(LEFT - 44, TOP - 14, quality, INK),
    ]
    lines += [
        _text(x_of(x), bottom + 18, short_number(10**x, panel.cost), GREY, anchor="middle")
        for x in sorted({min(xs), max(xs)})
    ]
    lines += [_text(LEFT - 6, y_of(y) + 4, f"{y:.3f}", GREY, anchor="end") for y in sorted({min(ys), max(ys)})]
    by_name = {point.name: (x_of(x), y_of(y)) for point, x, y in zip(panel.points, xs, ys, strict=True)}
    joined = " ".join(f"{by_name[name][0]:.2f},{by_name[name][1]:.2f}" for name in panel.front)
    lines.append(f'<polyline points="{joined}" fill="none" stroke="{FRONT_COLOUR}" stroke-width="1.5"/>')
    for name in [n for n in names if n in by_name]:
        x_place, y_place = by_name[name]
        fill, ink = (FRONT_COLOUR, "#ffffff") if name in panel.front else ("#ffffff", INK)
        lines.append(f'<circle cx="{x_place:.2f}" cy="{y_place:.2f}" r="8" fill="{fill}" stroke="{INK}"/>')
        lines.append(_text(x_place, y_place + 3.5, str(names.index(name) + 1), ink, anchor="middle"))
    return lines


def _text(x: float, y: float, text: str, colour: str, *, anchor: str = "start") -> str:
    content = escape(plain_line(text))
    return f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" fill="{colour}">{content}</text>'


def _axis(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Maps values onto pixels, with a margin; a single value lies in the middle."""
    low, span = min(values), max(values) - min(values)

    def pixel(value: float) -> float:
        share = (value - low) / span if span > 0 else 0.5
        return start + (end - start) * (0.08 + 0.84 * share)

    return pixel
