"""What a recipe is given to choose weights by the answers that a model in training gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.values import MetricValue, Request, Response


class ValidationScorer(Protocol):
    """Scores answers to validation samples as an evaluation of their task would, for choosing weights by a metric."""

    def value(self, name: str) -> MetricValue:
        """One of the values of the task's metrics, such as `accuracy` or `bleu-4`, with its direction.

        Raises `UnknownNameError`, with suggestions; `UserError` for a value without a direction, for a training that
        mixes several tasks, and for one without validation samples.
        """
        ...

    def requests(self, at_most: int | None = None) -> Sequence[Request]:
        """What evaluation would ask about the validation samples, to be decoded greedily; `at_most` of them are a draw
        by the job's seed, in the order of the samples.
        """
        ...

    def score(self, name: str, responses: Sequence[Response]) -> float:
        """The value over these responses: the task's rule for answers, its metric, its default profile.

        Raises what `value` raises, and `UserError` for a sample that failed, or with the reason where the value cannot
        be computed.
        """
        ...
