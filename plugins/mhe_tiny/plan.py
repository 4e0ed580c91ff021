"""How long and how fast a small model is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps and rates of both stages."""

    vision_steps: int = 500
    """Steps in which the vision encoder learns to tell the facts."""
    vision_batch: int = 48
    steps: int = 1800
    """Steps in which the whole model learns to answer and to caption."""
    batch: int = 16
    rate: float = 2e-3
    """Highest learning rate, of both optimizers."""
    vision_rate: float = 6e-4
    """Highest learning rate of the vision tower in the second stage."""
    probe_weight: float = 0.3
    warm_up: int = 100
    turns: int | None = None
    """How many of an image's turns are learnt, drawn anew for each image; None: all."""
