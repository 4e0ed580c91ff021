"""Share of right answers by the profile's verdict: overall, closed, open, and yes/no questions apart.

    accuracy        = credit of all answers / all questions
    accuracy.closed = credit of the answers to closed questions / closed questions,   .open and .yes-no likewise

The credit of an answer is 1 or 0 under most profiles, and a part of 1 under `llava-med`. Overall is right answers
over all questions, never the mean of closed and open. What is right and which question is closed is the profile's
business (`AnswerProfile.credit`, `question_type`); a yes/no question is one all of whose references are plainly yes
or no, in English or Chinese, whatever its type: data sets call other questions closed too.

Compare with the baseline that gives the most frequent training answer (`--model majority`): it is far from 0.

Source: closed, open and overall accuracy as the papers of VQA-RAD and SLAKE report them; the rules are the profile's.
Blind to: how wrong a wrong answer is, and how likely a right one is by guessing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import AnswerProfile, MetricUnavailableError, MetricValue, Part

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile, Sample

    FloatArray = NDArray[np.float64]

YES_OR_NO = frozenset({"yes", "no", "是", "是的", "不是", "否", "有", "没有"})
KINDS = ("all", "closed", "open", "yes-no")


class AccuracyOptions(Part):
    """Accuracy has no options."""


class Accuracy:
    """Accuracy; columns: credit and count of all, closed, open and yes/no questions."""

    Options = AccuracyOptions
    name = "accuracy"
    version = "1"
    kinds = frozenset({"vqa"})
    requires = frozenset({"references", "question", "profile"})
    columns = tuple(f"{column}.{kind}" for kind in KINDS for column in ("credit", "count"))
    values = (
        MetricValue("accuracy", "share of right answers"),
        MetricValue("accuracy.closed", "share of right answers to closed questions"),
        MetricValue("accuracy.open", "share of right answers to open questions"),
        MetricValue("accuracy.yes-no", "share of right answers to questions answered by yes or no"),
    )

    def __init__(self, options: AccuracyOptions, context: MetricContext) -> None:
        del options, context

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 8). Raises `MetricUnavailableError` under a profile that judges no answers."""
        import numpy as np

        if not isinstance(profile, AnswerProfile):
            raise MetricUnavailableError(f"profile {profile.name!r} does not say when an answer is right")
        table = np.zeros((len(cases), len(self.columns)))
        for row, case in zip(table, cases, strict=True):
            credit = profile.credit(case.answer, case.sample)
            counted = {"all", profile.question_type(case.sample)}
            if _is_yes_or_no(case.sample):
                counted.add("yes-no")
            for place, kind in enumerate(KINDS):
                if kind in counted:
                    row[2 * place : 2 * place + 2] = credit, 1.0
        return table

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The four shares from sums of shape (..., 8); NaN over no question."""
        from mhe_metrics.means import mean

        return {
            value.name: mean(sums[..., 2 * place], sums[..., 2 * place + 1]) for place, value in enumerate(self.values)
        }

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """The credit of each sample; NaN for kinds that it is not of."""
        return self.aggregate(statistics)


def _is_yes_or_no(sample: Sample) -> bool:
    return all(reference.strip(" .。").lower() in YES_OR_NO for reference in sample.references)
