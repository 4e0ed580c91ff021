"""BLEURT: a regression model's judgement of how well an answer says what the reference says, averaged over samples.

    score = w · tanh(W h + b) + c,   h the last state of [CLS] in   [CLS] reference [SEP] answer [SEP]

The reference comes first, and the two texts have segments 0 and 1: exchanged, the score is another. A pair of more
than 512 tokens is cut as BLEURT cuts it: the longer of the two loses its last token, the answer where they are as
long, until they fit. Of several references the highest score counts.

There is no default checkpoint, and values of different checkpoints cannot be compared:
`--set metrics.bleurt.checkpoint=FOLDER or owner/name`. `Elron/bleurt-large-512` and its like (BERT with one label) and
`lucadiliello/BLEURT-20` and its like (`model_type: bleurt`) can be read; BLEURT-20 is what its authors recommend.
Checkpoints trained on 128 tokens want `metrics.bleurt.tokens=128`. Without a checkpoint BLEURT is null. Its content
digest is part of the score's key and record. Texts are read as the profile leaves them, an empty one as an empty one:
the model has a score for it, which is not 0.

Range: none that is sure; BLEURT-20 was trained to about 0 to 1, earlier ones go below 0 and above 1. Higher is better.
Source: Sellam et al., ACL 2020, and Pu et al., EMNLP 2021; google-research/bleurt, whose BERT has the GELU's tanh
approximation where the conversions have the exact one. Blind to: what the raters of its training data, news
translations, did not see: sides, measures, negation of findings; and to text beyond its limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from mhe import MetricUnavailableError, MetricValue, Part
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile
    from mhe_metrics.bleurt_model import BleurtModel

    FloatArray = NDArray[np.float64]
    Pair = tuple[tuple[int, ...], tuple[int, ...]]


class BleurtOptions(Part):
    """Which checkpoint, and how it is run."""

    checkpoint: str | None = None
    """A folder, or owner/name on the hub. Required to compute anything."""
    revision: str | None = None
    """Commit, tag or branch of a hub checkpoint."""
    tokens: int = Field(default=512, ge=8)
    """The most tokens of a pair, or as many as the model allows."""
    batch_size: int = Field(default=32, ge=1)
    """Pairs that are scored together."""
    device: str | None = None
    """Such as cpu or cuda:0; the first GPU where there is one."""


class Bleurt:
    """Mean BLEURT; columns: score, and 1."""

    Options = BleurtOptions
    name = "bleurt"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires = frozenset({"references", "encoder"})
    columns = ("score", "count")
    values: tuple[MetricValue, ...] = (
        MetricValue("bleurt", "a trained model's judgement of answer and reference", floor=None, ceiling=None),
    )

    def __init__(self, options: BleurtOptions, context: MetricContext) -> None:
        self._options = options
        self._device = options.device or context.device
        self._folder: Path | None = None
        self._model: BleurtModel | None = None

    @property
    def resources(self) -> Mapping[str, str]:
        """The content digest of the checkpoint. Raises `MetricUnavailableError` where it cannot be had."""
        from mhe_metrics.encoders import encoder_digest

        return {"checkpoint": encoder_digest(self._find())}

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 2). Raises `MetricUnavailableError` without a checkpoint that can be used."""
        import numpy as np

        self._find()
        if not cases:
            return np.zeros((0, len(self.columns)))
        model = self._load()
        texts = cleaned_cases(cases, profile)
        tokens = {text: model.tokens(text) for case in texts for text in (case.answer, *case.references)}
        scores = self._score(
            model, {(tokens[reference], tokens[case.answer]) for case in texts for reference in case.references}
        )
        best = [max(scores[tokens[reference], tokens[case.answer]] for reference in case.references) for case in texts]
        return np.column_stack([np.array(best, dtype=np.float64), np.ones(len(cases))])

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The mean from sums of shape (..., 2); NaN over no sample."""
        from mhe_metrics.means import mean

        return {self.values[0].name: mean(sums[..., 0], sums[..., 1])}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """Each sample's score."""
        return self.aggregate(statistics)

    def _score(self, model: BleurtModel, pairs: set[Pair]) -> dict[Pair, float]:
        # The order depends on nothing but the texts, so that a batch, and its last bits, do not depend on the samples'.
        # Long ones first: a lack of memory shows at once.
        ordered = sorted(pairs, key=lambda pair: (-len(pair[0]) - len(pair[1]), pair))
        scores: dict[Pair, float] = {}
        for start in range(0, len(ordered), self._options.batch_size):
            batch = ordered[start : start + self._options.batch_size]
            scores.update(zip(batch, model.scores(batch), strict=True))
        return scores

    def _find(self) -> Path:
        if self._options.checkpoint is None:
            raise MetricUnavailableError(self._missing())
        if self._folder is None:
            from mhe_metrics.encoders import find_encoder

            self._folder = find_encoder(self._options.checkpoint, self._options.revision)
        return self._folder

    def _missing(self) -> str:
        return (
            f"no checkpoint is set: --set metrics.{self.name}.checkpoint=FOLDER or owner/name, such as "
            "lucadiliello/BLEURT-20"
        )

    def _load(self) -> BleurtModel:
        if self._model is None:
            from mhe_metrics.bleurt_model import BleurtModel
            from mhe_metrics.encoders import first_device

            device = self._device or first_device()
            self._model = BleurtModel(self._find(), most_tokens=self._options.tokens, device=device)
        return self._model
