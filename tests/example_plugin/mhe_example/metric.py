"""Metric `answer-length`: words of the answers, without a word about their truth."""

from __future__ import annotations

from mhe import MetricValue, Part


class AnswerLength:
    class Options(Part):
        pass

    name = "answer-length"
    version = "1"
    kinds = frozenset({"caption", "vqa"})
    requires = frozenset()
    columns = ("words", "answers")
    values = (MetricValue("answer-length", "mean words of an answer", floor=0, ceiling=None),)

    def __init__(self, options, context):
        del options, context

    def statistics(self, cases, profile):
        import numpy as np

        del profile
        rows = [(len(case.answer.split()), 1) for case in cases]
        return np.array(rows, dtype=np.float64).reshape(len(rows), 2)

    def aggregate(self, sums):
        import numpy as np

        with np.errstate(invalid="ignore"):
            return {"answer-length": sums[..., 0] / sums[..., 1]}

    def per_sample(self, statistics):
        return self.aggregate(statistics)
