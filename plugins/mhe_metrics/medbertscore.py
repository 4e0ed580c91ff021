"""MedBERTScore: BERTScore in which the tokens of medical entities weigh twice as much as the others.

    P = Σ w(x) · max over y of cos(x, y) / Σ w(x)   over the answer's tokens x,   R the same from the reference's side,
    F1 = 2 P R / (P + R);   w = 2 for a token of an entity, 1 for any other

As published: `microsoft/deberta-xlarge-mnli`, layer 40, entities found by MedCAT with a UMLS model, weights by their
sum, no IDF, no rescaling; and, unlike BERTScore, the tokens that open and close a text are left out of the matching
(`match_special=true` puts them back: with no entity the values are then BERTScore's). A token is of an entity where it
begins with it or lies inside it. The entities are looked for in the text that the encoder sees, after the profile's
cleaning: `plain`, which drops punctuation, may hide some from a tagger.

Neither an encoder nor a tagger is chosen for you: values are comparable only where both are the same. The published
metric is `--set metrics.medbertscore.encoder=microsoft/deberta-xlarge-mnli --set metrics.medbertscore.layer=40
--set metrics.medbertscore.tagger=medcat --set metrics.medbertscore.tagger_options.model_pack=PACK`, with a model pack
of your own (UMLS needs a licence). With another tagger, such as `phrases`, say so beside the number. The digests of
encoder and tagger are part of the score's key and record.

The authors' program differs in one place that is mended here: an entity at the very beginning of a text weighs 2 too.

Source: Ben Abacha et al., An Investigation of Evaluation Metrics for Automated Medical Note Generation, Findings of
ACL 2023, and its program (abachaa/EvaluationMetrics-ACL23). Blind to: what BERTScore is blind to, and to entities
that the tagger does not know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mhe import MetricUnavailableError, MetricValue
from mhe_metrics.texts import cleaned_cases
from mhe_metrics.token_matching import ChosenEncoder, EncoderOptions, WeightedText, mean_values, with_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, EntityTagger, MetricContext, Profile
    from mhe_metrics.encoders import Encoder

    FloatArray = NDArray[np.float64]
    Span = tuple[int, int]

ENTITY_WEIGHT = 2.0
NO_TAGGER = (
    "no tagger of entities is set: --set metrics.medbertscore.tagger=medcat with "
    "metrics.medbertscore.tagger_options.model_pack=PACK, or another of `mhe show taggers`"
)


class MedBertScoreOptions(EncoderOptions):
    """Which encoder, and which tagger of entities."""

    tagger: str | None = None
    """A registered tagger. Required to compute anything."""
    tagger_options: dict[str, object] = Field(default_factory=dict)
    """The tagger's own options: `tagger_options.NAME=VALUE`."""
    match_special: bool = False
    """Let tokens match those that open and close the other text, as BERTScore does."""


class MedBertScore:
    """Mean MedBERTScore; columns: precision, recall, F1, and 1."""

    Options = MedBertScoreOptions
    name = "medbertscore"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires = frozenset({"references", "encoder", "entities"})
    columns = ("precision", "recall", "f1", "count")
    values = (
        MetricValue("medbertscore-precision", "how well the reference covers the answer's tokens", floor=-1.0),
        MetricValue("medbertscore-recall", "how well the answer covers the reference's tokens", floor=-1.0),
        MetricValue("medbertscore-f1", "harmonic mean of MedBERTScore's precision and recall"),
    )

    def __init__(self, options: MedBertScoreOptions, context: MetricContext) -> None:
        """Raises `UserError` for a tagger, or an option of it, that does not exist."""
        self._options = options
        self._encoder = ChosenEncoder(self.name, options, context.device)
        self._tagger: EntityTagger | None = None
        self._reason = NO_TAGGER
        if options.tagger is not None:
            try:
                self._tagger = context.open_tagger(options.tagger, options.tagger_options)
            except MetricUnavailableError as error:
                # Statistics that are there can be summed up without it.
                self._reason = str(error)

    @property
    def resources(self) -> Mapping[str, str]:
        """Digests of encoder and tagger. Raises `MetricUnavailableError` where they cannot be had."""
        tagger = self._found_tagger()
        files = {f"tagger {name}": digest for name, digest in tagger.resources.items()}
        return {"encoder": self._encoder.digest(), "tagger": f"{tagger.name} {tagger.version}", **files}

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 4). Raises `MetricUnavailableError` without an encoder or a tagger."""
        import numpy as np

        tagger = self._found_tagger()
        self._encoder.find()
        if not cases:
            return np.zeros((0, len(self.columns)))
        texts = cleaned_cases(cases, profile)
        different = sorted({text for case in texts for text in (case.answer, *case.references)})
        encoder = self._encoder.load()
        weighted = {
            text: _weighted(encoder, text, spans)
            for text, spans in zip(different, tagger.spans(different), strict=True)
        }
        sides = [(weighted[case.answer], [weighted[reference] for reference in case.references]) for case in texts]
        return with_counts(self._encoder.best_scores(sides, match_special=self._options.match_special))

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The means from sums of shape (..., 4); NaN over no sample."""
        return mean_values(sums, [value.name for value in self.values])

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """The three of each sample."""
        return self.aggregate(statistics)

    def _found_tagger(self) -> EntityTagger:
        if self._tagger is None:
            raise MetricUnavailableError(self._reason)
        return self._tagger


def _weighted(encoder: Encoder, text: str, spans: Sequence[Span]) -> WeightedText:
    tokens = encoder.tokens(text)
    weights = tuple(
        weight * (ENTITY_WEIGHT if any(_is_of(place, span) for span in spans) else 1.0)
        for weight, place in zip(encoder.plain_weights(tokens), encoder.places(text), strict=True)
    )
    return WeightedText(tokens, weights)


def _is_of(place: Span, entity: Span) -> bool:
    """The authors' rule. A token that runs on beyond the entity belongs to it where both begin together."""
    start, end = place
    return start < end and (start == entity[0] or (entity[0] < start and end <= entity[1]))
