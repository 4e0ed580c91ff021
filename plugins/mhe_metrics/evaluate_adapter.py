"""Any metric of Hugging Face `evaluate`: `--metrics evaluate:rouge --set metrics.evaluate:rouge.column=rouge1`.

    value = mean over samples of the metric computed on each sample alone

That is what a leaderboard needs for intervals, groups and paired tests. For a metric that is a mean over samples
(`meteor`, `bertscore` without IDF) it is the metric's own value; for one of the whole corpus (`bleu`, `ter`, a
correlation) it is another number. A metric that takes a list of references gets all of a sample's; one that
takes a single text is computed with each, and the highest counts, the lowest with `higher_is_better=false`. Texts are
given as the profile leaves them. A result of NaN, or none for a sample, makes the metric null with the reason.

`NAME` is a metric's name on the hub (`rouge`, `owner/name`), never a folder: the current directory is not looked at.
The script is downloaded from the hub **and run**, as `evaluate.load` does; without a network the copy in `evaluate`'s
cache is used. `--set metrics.evaluate:NAME.folder=PATH` runs `PATH/NAME.py` instead. The digest of the script is part
of the score's key and record. Options: `column` (which key of the result; needed where it has several numbers),
`kwargs` (handed to `compute`, such as `metrics.evaluate:rouge.kwargs.use_stemmer=true`), `config`, `folder`,
`higher_is_better`.

Range and direction are the metric's own and not known here: values are neither ranked nor bounded until
`higher_is_better` is set. Source: the package `evaluate`, and the authors of each script. Blind to: whatever the metric
is blind to.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import MetricUnavailableError, MetricValue, Part
from mhe_metrics.texts import cleaned_cases

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from mhe import Case, MetricContext, Profile
    from mhe_metrics.evaluate_modules import EvaluationModule
    from mhe_metrics.texts import CleanedCase

    FloatArray = NDArray[np.float64]

FAMILY = "evaluate:"
PLACEHOLDER = "NAME"
"""Stands for the name in lists and in the documentation."""


class EvaluateOptions(Part):
    """Which number of which script, and how it is computed."""

    column: str | None = None
    """The key of the result; where left out the result must hold one number."""
    kwargs: dict[str, object] = {}
    """Further arguments of the metric's `compute`."""
    config: str | None = None
    """The metric's configuration, for one that has several."""
    folder: str | None = None
    """A folder with NAME.py, run in place of the hub's script."""
    higher_is_better: bool | None = None
    """Whether more is better; neither ranked nor compared where left out."""


class EvaluateFactory:
    """A metric of `evaluate` by its name on the hub."""

    Options = EvaluateOptions

    def __init__(self, name: str) -> None:
        """Raises `UserError` for what cannot be a name on the hub."""
        from mhe_metrics.evaluate_modules import check_hub_name

        check_hub_name(name)
        self._name = name

    def __call__(self, options: EvaluateOptions, context: MetricContext, /) -> EvaluateMetric:
        """The metric; nothing is looked up yet."""
        return EvaluateMetric(self._name, options, context)


class EvaluateMetric:
    """Mean over samples of one number; columns: the number, and 1."""

    version = "1"
    kinds = frozenset({"caption", "vqa"})
    # Such a metric may read a model of its own: it is not asked about samples without an answer.
    requires = frozenset({"references", "encoder"})
    columns = ("value", "count")

    def __init__(self, hub_name: str, options: EvaluateOptions, context: MetricContext) -> None:
        self.name = f"{FAMILY}{hub_name}"
        value = f"{self.name}.{options.column}" if options.column else self.name
        self.values = (
            MetricValue(
                value,
                f"mean of what {hub_name} of the package evaluate gives for each sample alone",
                floor=None,
                ceiling=None,
                higher_is_better=options.higher_is_better,
            ),
        )
        self._hub_name = hub_name
        self._options = options
        self._cache_dir = context.cache_dir
        self._script: Path | None = None
        self._module: EvaluationModule | None = None

    @property
    def resources(self) -> Mapping[str, str]:
        """The digest of the script and of what lies beside it. Raises `MetricUnavailableError`."""
        from mhe_metrics.evaluate_modules import script_digest

        return {"script": script_digest(self._find())}

    def statistics(self, cases: Sequence[Case], profile: Profile) -> FloatArray:
        """Shape (len(cases), 2). Raises `MetricUnavailableError` where the script cannot be had, fails or gives NaN."""
        import numpy as np

        module = self._open()
        values = [
            self._value(module, texts, case.sample.id)
            for case, texts in zip(cases, cleaned_cases(cases, profile), strict=True)
        ]
        return np.array([(value, 1.0) for value in values], dtype=np.float64).reshape(-1, 2)

    def aggregate(self, sums: FloatArray) -> Mapping[str, FloatArray]:
        """The mean from sums of shape (..., 2); NaN over no sample."""
        from mhe_metrics.means import mean

        return {self.values[0].name: mean(sums[..., 0], sums[..., 1])}

    def per_sample(self, statistics: FloatArray) -> Mapping[str, FloatArray]:
        """Each sample's number."""
        return self.aggregate(statistics)

    def _find(self) -> Path:
        if self._hub_name == PLACEHOLDER and self._options.folder is None:
            raise MetricUnavailableError("NAME stands for the name of a metric: --metrics evaluate:rouge")
        if self._script is None:
            from mhe_metrics.evaluate_modules import find_script

            self._script = find_script(self._hub_name, self._options.folder)
        return self._script

    def _open(self) -> EvaluationModule:
        if self._module is None:
            from mhe_metrics.evaluate_modules import open_module

            self._module = open_module(self._find(), config=self._options.config, cache_dir=self._cache_dir)
        return self._module

    def _value(self, module: EvaluationModule, texts: CleanedCase, sample: str) -> float:
        from mhe_metrics.evaluate_modules import takes_lists

        given: list[object] = [[*texts.references]] if takes_lists(module) else [*texts.references]
        found = [self._compute(module, texts.answer, references, sample) for references in given]
        return min(found) if self._options.higher_is_better is False else max(found)

    def _compute(self, module: EvaluationModule, answer: str, references: object, sample: str) -> float:
        try:
            result = module.compute(predictions=[answer], references=[references], **self._options.kwargs)
        except Exception as error:
            told = " ".join(str(error).split())[:300]
            raise MetricUnavailableError(
                f"{self.name} raised {type(error).__name__} for sample {sample}: {told}"
            ) from error
        number = self._chosen(dict(_numbers(result)), result)
        if not math.isfinite(number):
            raise MetricUnavailableError(f"{self.name} gives {number} for sample {sample}, which has no mean")
        return number

    def _chosen(self, numbers: Mapping[str, float], result: object) -> float:
        """The number asked for. Raises `MetricUnavailableError` with those that there are."""
        column = self._options.column
        if column is None and len(numbers) == 1:
            return next(iter(numbers.values()))
        if column is not None and column in numbers:
            return numbers[column]
        if not numbers:
            raise MetricUnavailableError(f"{self.name} gives no number for one sample, but {str(result)[:200]}")
        asked = f"has no number named {column!r}" if column is not None else "gives several numbers"
        raise MetricUnavailableError(
            f"{self.name} {asked}: --set metrics.{self.name}.column=… one of {', '.join(sorted(numbers))}"
        )


def _numbers(result: object) -> Iterator[tuple[str, float]]:
    """The keys of a result that hold a number, or a list with one."""
    import numpy as np

    for key, value in result.items() if isinstance(result, dict) else ():
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            continue
        if array.size == 1 and not isinstance(value, str):
            yield str(key), float(array.reshape(()))
