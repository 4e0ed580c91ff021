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

Source: Zhang et al., ICLR 2020.
Blind to: negation and numbers to a large part (`no effusion` is close to `effusion`),
and to text beyond the encoder's limit, often 512 tokens. Unrelated captions seldom score below .3.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from mhe import MetricUnavailableError, MetricValue
from mhe_metrics.texts import cleaned_cases
from mhe_metrics.token_matching import ChosenEncoder, EncoderOptions, WeightedText, mean_values, with_counts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile
    from mhe_metrics.encoders import Encoder

    FloatArray = NDArray[np.float64]
    Tokens = tuple[int, ...]


class BertScoreOptions(EncoderOptions):
    """Which encoder, and how tokens are weighed."""

    idf: bool = False
    """Weigh tokens by how few of all references have them."""


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
        self._encoder = ChosenEncoder(self.name, options, context.device)

    @property
    def resources(self) -> Mapping[str, str]:
        """The content digest of the encoder. Raises `MetricUnavailableError` where it cannot be had."""
        return {"encoder": self._encoder.digest()}

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 4). Raises `MetricUnavailableError` without an encoder, or without a basis for IDF."""
        import numpy as np

        self._encoder.find()
        if not cases:
            return np.zeros((0, len(self.columns)))
        encoder = self._encoder.load()
        texts = cleaned_cases(cases, profile)
        tokens = {text: encoder.tokens(text) for case in texts for text in (case.answer, *case.references)}
        references = [tokens[reference] for case in texts for reference in case.references]
        weigh = _weights(encoder, references if self._options.idf else None)
        weighted = {text: WeightedText(found, weigh(found)) for text, found in tokens.items()}
        sides = [(weighted[case.answer], [weighted[reference] for reference in case.references]) for case in texts]
        return with_counts(self._encoder.best_scores(sides, match_special=True))

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The means from sums of shape (..., 4); NaN over no sample."""
        return mean_values(sums, [value.name for value in self.values])

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """The three of each sample."""
        return self.aggregate(statistics)


def _weights(encoder: Encoder, references: Sequence[Tokens] | None) -> Callable[[Tokens], tuple[float, ...]]:
    """From the tokens of a text to their weights; by IDF where references are given."""
    found = Counter(number for tokens in references or () for number in set(tokens))
    total = len(references or ())
    if references is not None and len(set(references)) < 2:
        raise MetricUnavailableError(
            "IDF weights need two different references or more: leave out metrics.bertscore.idf, or score more samples"
        )

    def weigh(tokens: Tokens) -> tuple[float, ...]:
        plain = encoder.plain_weights(tokens)
        if references is None:
            return plain
        weights = tuple(w * math.log((total + 1) / (found[n] + 1)) for n, w in zip(tokens, plain, strict=True))
        return weights if sum(weights) > 0 else plain

    return weigh
