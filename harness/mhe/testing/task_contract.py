"""What every task folder and every registered model must keep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from mhe.documents.base import problems_of
from mhe.protocols import MetricContext
from mhe.testing.contracts import require

if TYPE_CHECKING:
    from mhe.catalog import Catalog
    from mhe.documents.model import ModelSpec
    from mhe.documents.task import TaskSpec

README_LENGTH = 200


def check_task(name: str, catalog: Catalog) -> TaskSpec:
    """A registered task: its file, its README, and that all it names is registered. Returns it."""
    task = catalog.task(name)
    folder = catalog.task_folders[name]
    readme = folder / "README.md"
    require(readme.is_file(), f"{name}: the folder holds a README.md (source, licence, splits, known problems)")
    require(len(readme.read_text(encoding="utf-8")) > README_LENGTH, f"{name}: the README says something")
    reader = catalog.reader(task.reader.name)
    try:
        reader.Options.model_validate(task.reader.options)
    except ValidationError as error:
        raise AssertionError(f"{name}: reader.options: {'; '.join(problems_of(error))}") from None
    profile = catalog.profile(task.profile)
    require(profile.kind == task.kind, f"{name}: a {task.kind} task has a profile of its kind, not {profile.kind}")
    values = []
    for metric_name in task.metrics:
        factory = catalog.metric(metric_name)
        metric = factory(factory.Options(), MetricContext(cache_dir=Path()))
        require(task.kind in metric.kinds, f"{name}: the metric {metric_name} is not for {task.kind} tasks")
        values += [value.name for value in metric.values]
    require(task.primary in values, f"{name}: primary {task.primary!r} is one of {', '.join(values)}")
    return task


def check_model(spec: ModelSpec, catalog: Catalog) -> None:
    """A registered model: its backend is registered and knows its options; it is described."""
    factory = catalog.backend(spec.backend)
    try:
        factory.Options.model_validate(spec.options)
    except ValidationError as error:
        raise AssertionError(f"{spec.name}: options: {'; '.join(problems_of(error))}") from None
    require(bool(spec.summary), f"{spec.name}: a model has a summary")
    require(bool(spec.location), f"{spec.name}: a model has a location")
