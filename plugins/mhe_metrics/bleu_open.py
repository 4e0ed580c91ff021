"""BLEU-1 of the answers to open questions, over all of them together.

    BLEU-1 = BP · matched words / words of the answers,   BP = exp(1 − r/c) if c < r, else 1

Sums over the open questions alone: a word of an answer is matched at most as often as the reference that has most of
it has it (clipped); c is the length of the answers, r the sum of the reference lengths closest to each answer's (the
shorter of two equally close). Which question is open and what a word is are the profile's business. It is what the
metric `bleu` gives as `bleu-1` over these questions alone, without its smoothing constants. Where no answer has a word
it is 0, and over no open question null.

Closed questions are left out because one right word there is a whole answer: over all questions BLEU-1 is close to an
accuracy. Papers differ in this: MultiMedEval's `bleu` is the mean of sentence values over open and closed questions;
for that, take the mean of the per-sample values of `bleu`. LLaVA-Med reports token recall of open answers instead
(profile `llava-med`, `accuracy.open`).

Source: Papineni et al., ACL 2002, for n = 1. Over open questions of medical question answering it is one of the usual
values, beside exact match and token F1.
Blind to: word order, negation (`not left` for `left` earns a half), synonyms, and to long answers that repeat in other
words what is right.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mhe import AnswerProfile, MetricUnavailableError, MetricValue, Part
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile

    FloatArray = NDArray[np.float64]


class BleuOpenOptions(Part):
    """There are no options."""


class BleuOpen:
    """Corpus BLEU-1 over open questions; columns: matched words, words, closest reference length, open questions."""

    Options = BleuOpenOptions
    name = "bleu-open"
    version = "1"
    kinds = frozenset({"vqa"})
    requires = frozenset({"references", "question", "profile"})
    columns = ("matched-1", "possible-1", "reference-length", "count")
    values = (MetricValue("bleu-1.open", "BLEU-1 over the answers to open questions together"),)

    def __init__(self, options: BleuOpenOptions, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 4). Raises `MetricUnavailableError` under a profile that knows no open questions."""
        import numpy as np

        if not isinstance(profile, AnswerProfile):
            raise MetricUnavailableError(f"profile {profile.name!r} does not say which questions are open")
        table = np.zeros((len(cases), len(self.columns)))
        for row, case, text in zip(table, cases, cleaned_cases(cases, profile), strict=True):
            if profile.question_type(case.sample) == "open":
                row[:] = (*_counts(text.answer.split(), [one.split() for one in text.references]), 1.0)
        return table

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """BLEU-1 from sums of shape (..., 4); NaN over no open question, 0 over answers without a word."""
        import numpy as np

        matched, words, wanted, count = np.moveaxis(sums, -1, 0)
        has_words = words > 0
        precision = np.divide(matched, words, out=np.zeros(sums.shape[:-1]), where=has_words)
        excess = np.divide(wanted, words, out=np.ones(sums.shape[:-1]), where=has_words)
        bleu = precision * np.exp(np.minimum(0.0, 1 - excess))
        return {"bleu-1.open": np.where(count > 0, bleu, np.nan)}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """Sentence BLEU-1 of each open question, NaN for the others; their mean is not the value of the whole."""
        return self.aggregate(statistics)


def _counts(answer: list[str], references: list[list[str]]) -> tuple[float, float, float]:
    allowed: Counter[str] = Counter()
    for reference in references:
        allowed |= Counter(reference)
    closest = min((abs(len(reference) - len(answer)), len(reference)) for reference in references)[1]
    return float((Counter(answer) & allowed).total()), float(len(answer)), float(closest)
