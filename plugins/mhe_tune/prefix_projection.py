"""The network that makes keys and values while the recipe `prefix` trains: shared up to its last layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from mhe_hf import AttentionShape


class VirtualTokens(nn.Module):
    """tanh(W E + b): the embedding of a module's virtual tokens and the first linear layer."""

    def __init__(self, tokens: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(tokens, width))
        self.inner = nn.Linear(width, hidden)

    def forward(self) -> torch.Tensor:
        """(tokens, hidden)."""
        return torch.tanh(self.inner(self.embedding))


class ProjectedPrefix(nn.Module):
    """Keys and values of one layer: its own rows of the last linear layer."""

    def __init__(self, shared: VirtualTokens, shape: AttentionShape) -> None:
        super().__init__()
        self.shared = shared
        self.outer = nn.Linear(shared.inner.out_features, 2 * shape.heads * shape.width)
        self._shape = shape

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both, each (key-value heads, tokens, head width)."""
        made = self.outer(self.shared()).unflatten(-1, (2, self._shape.heads, self._shape.width))
        keys, values = made.permute(1, 2, 0, 3)
        return keys, values
