"""BERTScore precision, recall and F1 under an encoder of one's choice, averaged over samples.

    P = Σ w(x) · max over y of cos(x, y) / Σ w(x)   over the answer's tokens x,   R the same from the reference's side,
    F1 = 2 P R / (P + R)

with y the other text's tokens, those that open and close it included, which themselves weigh nothing. Every other
token weighs 1, or with `idf` ln((N + 1) / (n + 1)), where n of all N references have it. Of several references
each of the three values takes its own highest. Values are never rescaled by a baseline.

There is no default encoder: name one and its layer, for values of different encoders or layers cannot be compared.
`--set metrics.bertscore.encoder=microsoft/deberta-xlarge-mnli --set metrics.bertscore.layer=40` is what bert-score
recommends, `roberta-large` with layer 17 what most papers used. A biomedical encoder makes it another BERTScore, not
MedBERTScore. The encoder's content digest is part of the score's key and record.

Equal to the package `bert_score` 0.3.13, pair by pair, where that is right. It differs on purpose: padding is never
matched; a text without a token scores 0 instead of an exception; texts are cut at what the model allows, not only at
what the tokenizer says; F1 is 0 where P or R is not positive; under `idf` a text whose every token stands in all
references weighs them equally, and fewer than two different references are no basis for weights; the first word of a
text is read as any other by RoBERTa's and GPT-2's tokenizers, as bert-score means it and transformers 5 no longer does.

Source: Zhang et al., ICLR 2020. Blind to: negation and numbers to a large part (`no effusion` is close to `effusion`),
and to text beyond the encoder's limit, often 512 tokens. Unrelated captions seldom score below .3.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from pydantic import Field

from mhe import MetricUnavailableError, MetricValue, Part
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile
    from mhe_metrics.encoders import Encoder, TokenVectors

    FloatArray = NDArray[np.float64]
    Tokens = tuple[int, ...]
    Triple = tuple[float, float, float]

NO_ENCODER = (
    "no encoder is set: --set metrics.bertscore.encoder=FOLDER or owner/name, "
    "such as microsoft/deberta-xlarge-mnli with metrics.bertscore.layer=40"
)
NOTHING: Triple = (0.0, 0.0, 0.0)


class BertScoreOptions(Part):
    """Which encoder, and how tokens are weighed."""

    encoder: str | None = None
    """A folder, or owner/name on the hub. Required to compute anything."""
    revision: str | None = None
    """Commit, tag or branch of a hub encoder."""
    layer: int | None = Field(default=None, ge=1)
    """Which layer's vectors, counted from 1; the last where left out."""
    idf: bool = False
    """Weigh tokens by how few of all references have them."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs that are encoded together."""
    device: str | None = None
    """Such as cpu or cuda:0; the first GPU where there is one."""


class BertScore:
    """Mean BERTScore; columns: precision, recall, F1, and 1."""

    Options = BertScoreOptions
    name = "bertscore"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires = frozenset({"references", "encoder"})
    columns = ("precision", "recall", "f1", "count")
    values = (
        MetricValue("bertscore-precision", "how well the reference covers the answer's tokens", floor=-1.0),
        MetricValue("bertscore-recall", "how well the answer covers the reference's tokens", floor=-1.0),
        MetricValue("bertscore-f1", "harmonic mean of BERTScore's precision and recall"),
    )

    def __init__(self, options: BertScoreOptions, context: MetricContext) -> None:
        self._options = options
        self._device = options.device or context.device
        self._folder: Path | None = None
        self._encoder: Encoder | None = None

    @property
    def resources(self) -> Mapping[str, str]:
        """The content digest of the encoder. Raises `MetricUnavailableError` where it cannot be had."""
        from mhe_metrics.encoders import encoder_digest

        return {"encoder": encoder_digest(self._find())}

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 4). Raises `MetricUnavailableError` without an encoder, or without a basis for IDF."""
        import numpy as np

        self._find()
        if not cases:
            return np.zeros((0, len(self.columns)))
        encoder = self._load()
        texts = cleaned_cases(cases, profile)
        tokens = {text: encoder.tokens(text) for case in texts for text in (case.answer, *case.references)}
        references = [tokens[reference] for case in texts for reference in case.references]
        weigh = _weights(encoder, references if self._options.idf else None)
        pairs = {(tokens[case.answer], tokens[reference]) for case in texts for reference in case.references}
        scores = _score_pairs(encoder, pairs, weigh, self._options.batch_size)
        rows = []
        for case in texts:
            found = [scores[tokens[case.answer], tokens[reference]] for reference in case.references]
            rows.append((*(max(column) for column in zip(*found, strict=True)), 1.0))
        return np.array(rows, dtype=np.float64)

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The means from sums of shape (..., 4); NaN over no sample."""
        from mhe_metrics.means import mean

        return {value.name: mean(sums[..., place], sums[..., 3]) for place, value in enumerate(self.values)}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """The three of each sample."""
        return self.aggregate(statistics)

    def _find(self) -> Path:
        if self._options.encoder is None:
            raise MetricUnavailableError(NO_ENCODER)
        if self._folder is None:
            from mhe_metrics.encoders import find_encoder

            self._folder = find_encoder(self._options.encoder, self._options.revision)
        return self._folder

    def _load(self) -> Encoder:
        if self._encoder is None:
            from mhe_metrics.encoders import Encoder, first_device

            device = self._device or first_device()
            self._encoder = Encoder(self._find(), layer=self._options.layer, device=device)
        return self._encoder


def _weights(encoder: Encoder, references: Sequence[Tokens] | None) -> Callable[[Tokens], list[float]]:
    """From the tokens of a text to their weights, which sum to 1; by IDF where references are given."""
    found = Counter(number for tokens in references or () for number in set(tokens))
    total = len(references or ())
    if references is not None and len(set(references)) < 2:
        raise MetricUnavailableError(
            "IDF weights need two different references or more: leave out metrics.bertscore.idf, or score more samples"
        )

    def weigh(tokens: Tokens) -> list[float]:
        plain = [0.0 if number in encoder.unweighted else 1.0 for number in tokens]
        weights = plain
        if references is not None:
            weights = [w * math.log((total + 1) / (found[n] + 1)) for n, w in zip(tokens, plain, strict=True)]
            weights = weights if sum(weights) > 0 else plain
        return [weight / sum(weights) for weight in weights]

    return weigh


def _score_pairs(
    encoder: Encoder,
    pairs: set[tuple[Tokens, Tokens]],
    weigh: Callable[[Tokens], list[float]],
    batch_size: int,
) -> dict[tuple[Tokens, Tokens], Triple]:
    """Precision, recall and F1 of each pair; long ones first, so that a lack of memory shows at once."""
    # The order depends on nothing but the texts, so that a batch, and its last bits, do not depend on the samples'.
    ordered = sorted(pairs, key=lambda pair: (-max(len(pair[0]), len(pair[1])), pair))
    scores = {pair: NOTHING for pair in ordered if not (pair[0] and pair[1])}
    rest = [pair for pair in ordered if pair not in scores]
    for start in range(0, len(rest), batch_size):
        batch = rest[start : start + batch_size]
        texts = sorted({tokens for pair in batch for tokens in pair}, key=lambda tokens: (len(tokens), tokens))
        # Shorter and longer texts apart: less of a batch is padding.
        vectors: dict[Tokens, TokenVectors] = {}
        for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :]):
            vectors.update({one.tokens: one for one in (encoder.vectors(half) if half else [])})
        for answer, reference in batch:
            scores[answer, reference] = _match(
                vectors[answer].vectors, vectors[reference].vectors, weigh(answer), weigh(reference)
            )
    return scores


def _match(answer: torch.Tensor, reference: torch.Tensor, weights: list[float], others: list[float]) -> Triple:
    similarity = answer @ reference.T
    best = similarity.amax(dim=1).tolist()
    best_of_reference = similarity.amax(dim=0).tolist()
    precision = math.fsum(w * s for w, s in zip(weights, best, strict=True))
    recall = math.fsum(w * s for w, s in zip(others, best_of_reference, strict=True))
    # Cosines of equal vectors come out a little above 1.
    precision, recall = (max(-1.0, min(1.0, value)) for value in (precision, recall))
    if precision <= 0 or recall <= 0:
        return precision, recall, 0.0
    return precision, recall, 2 * precision * recall / (precision + recall)
