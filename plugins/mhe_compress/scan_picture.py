"""A scan as a picture: a bar for each layer, up where the loss rose, down where it fell."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mhe_compress.scan_results import LayerScan

BAR, GAP, HEIGHT, MARGIN = 14, 4, 320, 56
COLOURS = {"heads": "#1f77b4", "neurons": "#d62728"}


def draw_scan(scan: LayerScan) -> str:
    """An SVG; each bar names its layer when pointed at."""
    rises = [block.rise for block in scan.blocks]
    top, bottom = max(0.0, *rises), min(0.0, *rises)
    span = top - bottom or 1.0
    width = max(480, 2 * MARGIN + len(rises) * (BAR + GAP))

    def height(value: float) -> float:
        return MARGIN + (HEIGHT - 2 * MARGIN) * (top - value) / span

    zero = height(0.0)
    title = f"{scan.model}: rise of the loss ({scan.loss:.4g}) with one layer pruned by {scan.ratio:.0%}, {scan.task}"
    size = f'width="{width}" height="{HEIGHT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN}" y="18">{escape(title)}</text>',
        f'<path d="M{MARGIN} {zero:.1f}H{width - MARGIN}" stroke="black" fill="none"/>',
        f'<text x="{MARGIN - 6}" y="{height(top) + 4:.1f}" text-anchor="end">{top:.3g}</text>',
    ]
    if bottom < 0:
        parts.append(f'<text x="{MARGIN - 6}" y="{height(bottom) + 4:.1f}" text-anchor="end">{bottom:.3g}</text>')
    for number, block in enumerate(scan.blocks):
        ends = sorted((zero, height(block.rise)))
        parts.append(
            f'<rect x="{MARGIN + number * (BAR + GAP)}" y="{ends[0]:.1f}" width="{BAR}" '
            f'height="{max(0.5, ends[1] - ends[0]):.1f}" fill="{COLOURS[block.kind]}">'
            f"<title>{escape(block.key)}: {block.units} to {block.kept} {block.kind}, {block.rise:+.4g}</title></rect>"
        )
    for place, (kind, colour) in enumerate(COLOURS.items()):
        parts.append(
            f'<text x="{width - MARGIN}" y="{18 + 16 * place}" text-anchor="end" fill="{colour}">{kind}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])
