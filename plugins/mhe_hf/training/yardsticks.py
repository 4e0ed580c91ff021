"""What makes one validation better than another: the validation loss, or a metric of answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe import RecipeJob
    from mhe_hf.training.options import TrainingOptions

LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Yardstick:
    """A number of each validation, and which way is better. The default is the validation loss."""

    name: str = LOSS
    """`loss`, or the name of a metric's value."""
    higher_is_better: bool = False
    samples: int = 0
    """How many validation samples are answered for it; none for the loss."""

    @property
    def key(self) -> str:
        """Where a trainer's log has the number."""
        return f"eval_{self.name}"

    @property
    def label(self) -> str:
        """For sentences."""
        return f"{self.name} of answers to {self.samples:,} validation samples" if self.samples else "validation loss"

    @property
    def best(self) -> str:
        """The word for the best of them."""
        return "highest" if self.higher_is_better else "lowest"

    def costs(self, history: Sequence[Mapping[str, float]]) -> list[tuple[int, float]]:
        """(step, cost) of each validation in a trainer's log, in order: less is better, and what is no number is the
        worst.
        """
        sign = -1.0 if self.higher_is_better else 1.0
        numbers = [(int(entry["step"]), float(entry[self.key])) for entry in history if self.key in entry]
        return [(step, sign * number if math.isfinite(number) else math.inf) for step, number in numbers]

    def value_of(self, cost: float) -> float:
        """The number behind a cost."""
        return -cost if self.higher_is_better else cost


def choose_yardstick(options: TrainingOptions, job: RecipeJob) -> Yardstick:
    """What `best_by` asks for.

    Raises `UserError` for a value that the task's metrics have not (with suggestions) or that has no direction, where
    there is nothing to validate on, and for several tasks.
    """
    name = options.best_by
    if name == LOSS:
        return Yardstick()
    if job.scorer is None and job.expected_examples:
        # A dry run ahead of its data.
        return Yardstick(name, samples=options.best_by_samples or 1)
    if job.scorer is None:
        raise UserError(f"best_by={name}: this training has no validation samples. Use best_by=loss, or give a --task.")
    try:
        higher = job.scorer.value(name).higher_is_better
    except UserError as error:
        raise UserError(f"best_by={name}: {error}\nOr --set best_by=loss, the validation loss.") from None
    return Yardstick(name, bool(higher), len(job.scorer.requests(options.best_by_samples)))


def is_out_of_patience(costs: Sequence[tuple[int, float]], patience: int | None) -> bool:
    """Whether the last `patience` validations brought nothing better than the best before them."""
    if patience is None or not costs:
        return False
    values = [cost if math.isfinite(cost) else math.inf for _, cost in costs]
    return len(values) - 1 - values.index(min(values)) >= patience
