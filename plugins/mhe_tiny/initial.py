"""Starting values that spare a vision transformer what every one of them must learn first.

Patch filters begin as the cosine transform's, low frequencies first, each with both signs; positions as sines of row
and column. Training changes both like any other weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def set_patch_filters(weight: torch.Tensor, gain: float = 0.5) -> None:
    """Fill a patch embedding of shape (width, colours, n, n) in place."""
    import torch

    width, colours, n, _ = weight.shape
    steps = torch.arange(n, dtype=torch.float32)
    waves = torch.cos(math.pi * (steps[None] + 0.5) * steps[:, None] / n)
    waves = waves / waves.norm(dim=1, keepdim=True)
    order = sorted(((u, v) for u in range(n) for v in range(n)), key=sum)
    with torch.no_grad():
        for index in range(width):
            u, v = order[(index // 2) % len(order)]
            sign = 1 if index % 2 == 0 else -1
            weight[index] = sign * gain / colours * torch.outer(waves[u], waves[v])


def set_positions(weight: torch.Tensor, gain: float = 0.3, longest: float = 100.0) -> None:
    """Fill a position embedding of shape (1 + n * n, width) in place; row 0, the class token's, stays."""
    import torch

    positions, width = weight.shape
    n = math.isqrt(positions - 1)
    frequencies = longest ** (-torch.arange(width // 4) / (width // 4))
    angles = torch.arange(n)[:, None] * frequencies[None]
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = line[:, None].expand(n, n, -1), line[None].expand(n, n, -1)
    with torch.no_grad():
        weight[1:] = gain * torch.cat([rows, columns], dim=2).reshape(n * n, width)
