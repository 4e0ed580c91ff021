"""Greedy matching of weighted tokens under an encoder: what BERTScore and its variants have in common.

P = Σ w(x) · max over y of cos(x, y) / Σ w(x)   over the answer's tokens x,   R the same from the reference's side,
F1 = 2 P R / (P + R), 0 where P or R is not positive; a text without a token gives three zeros
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from mhe import MetricUnavailableError, Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from mhe_metrics.encoders import Encoder, TokenVectors

    FloatArray = NDArray[np.float64]
    Tokens = tuple[int, ...]
    Triple = tuple[float, float, float]

NOTHING: Triple = (0.0, 0.0, 0.0)


class EncoderOptions(Part):
    """Which encoder, and how it is run."""

    encoder: str | None = None
    """A folder, or owner/name on the hub. Required to compute anything."""
    revision: str | None = None
    """Commit, tag or branch of a hub encoder."""
    layer: int | None = Field(default=None, ge=1)
    """Which layer's vectors, counted from 1; the last where left out."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs that are encoded together."""
    device: str | None = None
    """Such as cpu or cuda:0; the first GPU where there is one."""


class WeightedText(NamedTuple):
    """A text as it is matched: equal ones are encoded and matched once."""

    tokens: Tokens
    """Token numbers, special ones included; empty for a text without any other."""
    weights: tuple[float, ...]
    """One a token, not negative; 0 for the tokens that open and close a text. Their sum need not be 1."""


class ChosenEncoder:
    """The encoder of a metric's options: found when first asked for, loaded when first used."""

    def __init__(self, metric: str, options: EncoderOptions, device: str | None) -> None:
        self._metric = metric
        self._options = options
        self._device = options.device or device
        self._folder: Path | None = None
        self._encoder: Encoder | None = None

    def find(self) -> Path:
        """Its folder. Raises `MetricUnavailableError` where none is set or it cannot be had."""
        if self._options.encoder is None:
            raise MetricUnavailableError(
                f"no encoder is set: --set metrics.{self._metric}.encoder=FOLDER or owner/name, "
                f"such as microsoft/deberta-xlarge-mnli with metrics.{self._metric}.layer=40"
            )
        if self._folder is None:
            from mhe_metrics.encoders import find_encoder

            self._folder = find_encoder(self._options.encoder, self._options.revision)
        return self._folder

    def digest(self) -> str:
        """Of its content. Raises `MetricUnavailableError`."""
        from mhe_metrics.encoders import encoder_digest

        return encoder_digest(self.find())

    def load(self) -> Encoder:
        """The encoder itself. Raises `MetricUnavailableError`."""
        if self._encoder is None:
            from mhe_metrics.encoders import Encoder, first_device

            device = self._device or first_device()
            self._encoder = Encoder(self.find(), layer=self._options.layer, device=device)
        return self._encoder

    def best_scores(
        self, cases: Sequence[tuple[WeightedText, Sequence[WeightedText]]], *, match_special: bool
    ) -> FloatArray:
        """Precision, recall and F1 of each answer beside its references: shape (len(cases), 3).

        Each of the three is its own highest over the references. The tokens that open and close a text can be matched
        where `match_special` is true; they never weigh anything.
        """
        import numpy as np

        pairs = {(answer, reference) for answer, references in cases for reference in references}
        scores = _score_pairs(self.load(), pairs, self._options.batch_size, match_special=match_special)
        rows = [
            [max(column) for column in zip(*(scores[answer, reference] for reference in references), strict=True)]
            for answer, references in cases
        ]
        return np.array(rows, dtype=np.float64).reshape(len(cases), 3)


def mean_values(sums: FloatArray, names: Sequence[str]) -> Mapping[str, FloatArray]:
    """The means from column sums whose last column is the count; NaN over no sample."""
    from mhe_metrics.means import mean

    return {name: mean(sums[..., place], sums[..., len(names)]) for place, name in enumerate(names)}


def with_counts(rows: FloatArray) -> FloatArray:
    """The rows with a last column of ones."""
    import numpy as np

    return np.hstack([rows, np.ones((len(rows), 1))])


def _score_pairs(
    encoder: Encoder, pairs: set[tuple[WeightedText, WeightedText]], batch_size: int, *, match_special: bool
) -> dict[tuple[WeightedText, WeightedText], Triple]:
    """Precision, recall and F1 of each pair; long ones first, so that a lack of memory shows at once."""
    # The order depends on nothing but the texts, so that a batch, and its last bits, do not depend on the samples'.
    ordered = sorted(pairs, key=lambda pair: (-max(len(pair[0].tokens), len(pair[1].tokens)), pair))
    scores = {pair: NOTHING for pair in ordered if not (pair[0].tokens and pair[1].tokens)}
    rest = [pair for pair in ordered if pair not in scores]
    for start in range(0, len(rest), batch_size):
        batch = rest[start : start + batch_size]
        texts = sorted({text.tokens for pair in batch for text in pair}, key=lambda tokens: (len(tokens), tokens))
        # Shorter and longer texts apart: less of a batch is padding.
        vectors: dict[Tokens, TokenVectors] = {}
        for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :]):
            vectors.update({one.tokens: one for one in (encoder.vectors(half) if half else [])})
        for answer, reference in batch:
            sides = [(vectors[text.tokens].vectors, text.weights) for text in (answer, reference)]
            if not match_special:
                sides = [_weighing(*side) for side in sides]
            scores[answer, reference] = match(*sides[0], *sides[1])
    return scores


def _weighing(vectors: torch.Tensor, weights: tuple[float, ...]) -> tuple[torch.Tensor, tuple[float, ...]]:
    """Only the tokens that weigh something."""
    kept = [place for place, weight in enumerate(weights) if weight > 0]
    return vectors[kept], tuple(weights[place] for place in kept)


def match(
    answer: torch.Tensor, answer_weights: Sequence[float], reference: torch.Tensor, reference_weights: Sequence[float]
) -> Triple:
    """Precision, recall and F1 from unit vectors of shape (tokens, width) and a weight for each token."""
    similarity = answer @ reference.T
    precision = _weighted_mean(similarity.amax(dim=1).tolist(), answer_weights)
    recall = _weighted_mean(similarity.amax(dim=0).tolist(), reference_weights)
    # Cosines of equal vectors come out a little above 1.
    precision, recall = (max(-1.0, min(1.0, value)) for value in (precision, recall))
    if precision <= 0 or recall <= 0:
        return precision, recall, 0.0
    return precision, recall, 2 * precision * recall / (precision + recall)


def _weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)
