"""A reader of facts from patch features, which teaches the vision tower before the language model talks.

One linear classifier for each question type, over patches summed with learned weights: a sum, not a mean, because
how many lesions there are is one of the facts. It is thrown away after training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from mhe_tiny.packing import IGNORED

GLANCES = 4
"""Weighted sums that each classifier looks at."""


class FactProbe(nn.Module):
    """Classifies the open answers of each question type from patch features of shape (b, patches, width)."""

    def __init__(self, answers: Mapping[str, Sequence[str]], width: int) -> None:
        super().__init__()
        self.answers = {name: tuple(values) for name, values in answers.items()}
        self.norm = nn.LayerNorm(width)
        self.glances = nn.Linear(width, GLANCES * len(self.answers))
        self.classifiers = nn.ModuleList([nn.Linear(GLANCES * width, len(v)) for v in self.answers.values()])

    def loss(self, patches: torch.Tensor, facts: Sequence[Mapping[str, str]]) -> torch.Tensor:
        """Return the sum over types of the mean cross-entropy; images without such a fact do not count."""
        normal = self.norm(patches)
        weights = torch.sigmoid(self.glances(normal) - 2)
        sums = torch.einsum("bng,bnd->bgd", weights, normal) / 4
        total = patches.new_zeros(())
        for index, (name, values) in enumerate(self.answers.items()):
            labels = torch.tensor([values.index(fact[name]) if name in fact else IGNORED for fact in facts])
            if bool((labels != IGNORED).any()):
                seen = sums[:, GLANCES * index : GLANCES * (index + 1)].flatten(1)
                total = total + nn.functional.cross_entropy(self.classifiers[index](seen), labels)
        return total
