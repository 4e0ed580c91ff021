"""The distilling part of a training step: the student's own loss, mixed with what its teacher says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from mhe_compress.distill_losses import Divergence, soft_loss, state_loss
from mhe_compress.distill_states import Projection, Reading, answer_places
from mhe_hf.training.watching import WatchedTrainer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from mhe_compress.teacher_targets import SoftTargets

PROJECTION = "distillation_projection"
"""The student's attribute while it is trained; the projection is learnt with it and then dropped."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """What is learnt of a teacher, and how much it weighs."""

    targets: SoftTargets
    temperature: float
    alpha: float
    """Weight of the soft loss; that of the hard loss is 1 - alpha."""
    divergence: Divergence
    vocabulary: int
    """How many logits of student and teacher are about the same tokens."""
    hidden_weight: float = 0.0
    """Weight of the states' loss, on top."""
    layers: Sequence[nn.Module] = field(default=())
    """The student's, whose states are matched; where empty, what its output head reads."""


class DistillTrainer(WatchedTrainer):
    """Trains on (1 - alpha) · hard + alpha · T² · divergence + hidden_weight · states, each a mean over the answers'
    tokens; validates on the hard loss alone, as every other recipe does, so that the numbers compare.
    """

    def __init__(self, *arguments: object, distillation: Distillation, **named: object) -> None:
        super().__init__(*arguments, **named)  # type: ignore[arg-type]
        self._distillation = distillation

    def mean_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool
    ) -> torch.Tensor | tuple[torch.Tensor, object]:
        """The mixed loss of this pass where the model is trained, the hard loss else."""
        if not model.training:
            return super().mean_loss(model, inputs, return_outputs)
        chosen = self._distillation
        student = self.own_model
        places = answer_places(inputs["labels"], student)  # type: ignore[arg-type]
        with Reading(student, chosen.layers) as seen:  # type: ignore[arg-type]
            found = super().mean_loss(model, inputs, return_outputs=True)
        assert isinstance(found, tuple)
        hard, outputs = found
        targets = chosen.targets.read(self._batch, inputs)
        logits = seen.logits[places][:, : chosen.vocabulary]
        soft = soft_loss(logits, targets.logits, chosen.temperature, chosen.divergence)
        loss = (1 - chosen.alpha) * hard + chosen.alpha * soft
        if chosen.hidden_weight:
            projection: Projection = getattr(student, PROJECTION)
            projected = projection([state[places] for state in (seen.states or [seen.last])])
            distances = [state_loss(own, theirs) for own, theirs in zip(projected, targets.states, strict=True)]
            loss = loss + chosen.hidden_weight * torch.stack(distances).mean()
        return (loss, outputs) if return_outputs else loss
