"""What an answer to a validation sample is worth: scored as an evaluation of the task would score it.

For recipes that choose weights, or stop, by a metric. The requests are those of evaluation, decoded greedily; answers
are taken from responses by the task's own rule, and scored with its metrics under its default profile.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mhe.answers import answer_of
from mhe.digests import cache_dir, digest_of
from mhe.documents.base import parse_options
from mhe.errors import UnknownNameError, UserError
from mhe.protocols import MetricContext
from mhe.scoring import score_cases
from mhe.values import Case

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.catalog import Catalog
    from mhe.documents.task import TaskSpec
    from mhe.protocols import Metric, TrainingExample
    from mhe.values import MetricValue, Request, Response


class TaskScorer:
    """The `mhe.ValidationScorer` of a step."""

    def __init__(
        self, catalog: Catalog, tasks: Mapping[str, TaskSpec], validation: Sequence[TrainingExample], seed: int
    ) -> None:
        self._catalog = catalog
        self._tasks = tuple({task.key: task for task in tasks.values()}.values())
        self._validation = {example.sample.id: example for example in validation}
        self._seed = seed

    def value(self, name: str) -> MetricValue:
        """One of the values of the task's metrics; see `mhe.ValidationScorer.value`."""
        if not self._validation:
            raise UserError(f"{name!r} is over answers to validation samples, and this training has none.")
        return self._find(name)[1]

    def requests(self, at_most: int | None = None) -> list[Request]:
        """See `mhe.ValidationScorer.requests`."""
        examples = list(self._validation.values())
        if at_most is not None and at_most < len(examples):
            ranked = sorted(self._validation, key=lambda name: digest_of([self._seed, "answers", name]))
            chosen = set(ranked[:at_most])
            examples = [example for example in examples if example.sample.id in chosen]
        return [_greedy(example.request) for example in examples]

    def score(self, name: str, responses: Sequence[Response]) -> float:
        """See `mhe.ValidationScorer.score`."""
        task = self._task(name)
        metric, _ = self._find(name)
        by_id = {response.sample_id: response for response in responses}
        for response in responses:
            if response.error is not None:
                raise UserError(
                    f"validation sample {response.sample_id} was not answered: {response.error.message}\n"
                    "Mend it, or list it under `broken` in the task's task.yaml to leave it out."
                )
        samples = [example.sample for key, example in self._validation.items() if key in by_id]
        records = score_cases(
            self._catalog,
            task,
            [Case(sample, answer_of(task, by_id[sample.id]), by_id[sample.id]) for sample in samples],
            all_samples=samples,
            metrics=[metric.name],
            profiles=[task.profile],
            run_key=digest_of(["validation", self._seed]),
            with_intervals=False,
        )
        (found,) = (value for value in records[0].values if value.name == name)
        if found.value is None:
            raise UserError(f"{name!r} cannot be computed over {len(samples)} validation samples: {found.reason}")
        return found.value

    def _task(self, name: str) -> TaskSpec:
        if len(self._tasks) != 1:
            mixed = ", ".join(task.name for task in self._tasks) or "none"
            raise UserError(
                f"{name!r} is the value of one task's metric, and this training mixes {mixed}, each with its own "
                "rules and metrics. Choose by the validation loss, or train on one task."
            )
        return self._tasks[0]

    def _find(self, name: str) -> tuple[Metric, MetricValue]:
        """The metric that has the value, and the value. Raises `UserError` for one without a direction."""
        task = self._task(name)
        known: dict[str, tuple[Metric, MetricValue]] = {}
        context = MetricContext(cache_dir=cache_dir(), open_tagger=self._catalog.open_tagger)
        for key in task.metrics:
            factory = self._catalog.metric(key)
            metric = factory(parse_options(factory.Options, {}, f"options of metric {key!r}"), context)
            for value in metric.values:
                known.setdefault(value.name, (metric, value))
        ranked = [key for key, (_, value) in known.items() if value.higher_is_better is not None]
        if name not in known:
            raise UnknownNameError("value", name, ranked, hint=f"These are the values of the metrics of {task.name}.")
        if name not in ranked:
            raise UserError(
                f"neither more nor less of {name!r} is better, so nothing can be chosen by it. "
                f"Values that can: {', '.join(ranked)}."
            )
        return known[name]


def _greedy(request: Request) -> Request:
    return replace(request, generation=request.generation.model_copy(update={"temperature": 0.0, "top_p": 1.0}))
