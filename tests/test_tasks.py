"""Every task that comes with mhe: its files agree with what is registered and with the published data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mhe import TaskSpec, open_catalog
from mhe.samples import load_samples
from releases import make_rocov2, rocov2_rows

CATALOG = open_catalog()
OURS = [
    "phantom-caption",
    "phantom-caption-source",
    "phantom-caption-target",
    "phantom-vqa",
    "phantom-vqa-source",
    "phantom-vqa-target",
    "roco",
    "roco-327",
    "slake",
    "slake-zh",
    "vqa-rad",
]
real = pytest.mark.skipif("MHE_TEST_DATA" not in os.environ, reason="MHE_TEST_DATA is not set: no real data here")


def test_all_tasks_are_registered() -> None:
    assert set(OURS) <= set(CATALOG.task_folders)
    assert [problem for problem in CATALOG.problems if problem.plugin == "tasks"] == []


@pytest.mark.parametrize("name", OURS)
def test_task_agrees_with_what_it_names(name: str) -> None:
    task = CATALOG.task(name)
    assert task.name == name
    assert task.version == 1
    assert task.reader.name in CATALOG.readers
    factory = CATALOG.reader(task.reader.name)
    factory(factory.Options.model_validate(dict(task.reader.options)))
    assert set(task.metrics) <= set(CATALOG.metrics)
    assert task.profile in CATALOG.profiles
    assert CATALOG.profile(task.profile).kind == task.kind
    assert task.phantom == name.startswith("phantom")


@pytest.mark.parametrize("name", OURS)
def test_primary_is_a_value_of_one_of_the_metrics(name: str) -> None:
    from mhe.protocols import MetricContext

    task = CATALOG.task(name)
    values: list[str] = []
    for metric in task.metrics:
        factory = CATALOG.metric(metric)
        made = factory(factory.Options(), MetricContext(cache_dir=Path("unused")))
        assert task.kind in made.kinds
        values += [value.name for value in made.values]
    assert task.primary in values


@pytest.mark.parametrize("name", OURS)
def test_readme_tells_source_licence_and_metric(name: str) -> None:
    folder = CATALOG.task_folders[name]
    text = (folder / "README.md").read_text(encoding="utf-8")
    task = CATALOG.task(name)
    assert task.primary.casefold() in text.casefold()
    if task.phantom:
        return
    assert "## Known problems" in text
    if task.source.hub:
        twin = "slake" if name == "slake-zh" else name
        told = (CATALOG.task_folders[twin] / "README.md").read_text(encoding="utf-8")
        assert task.source.hub in told
        assert str(task.source.revision) in told
        assert len(str(task.source.revision)) == 40


def subset_ids(task: TaskSpec, folder: Path) -> tuple[str, ...]:
    ids = load_samples(CATALOG, task, data_dir=folder, need_images=False).record.subset_ids
    assert ids is not None
    return ids


def test_roco_327_is_the_same_for_everyone(tmp_path: Path) -> None:
    task = CATALOG.task("roco-327")
    first = subset_ids(task, make_rocov2(tmp_path / "a", {"test": 420}))
    again = subset_ids(task, make_rocov2(tmp_path / "b", {"test": 420}, layout="{split}", zipped=False))
    assert first == again
    assert len(set(first)) == 327
    modality = {name: kind for name, _, kind in rocov2_rows("test", 420)}
    for kind in set(modality.values()):
        whole = sum(value == kind for value in modality.values())
        drawn = sum(modality[name] == kind for name in first)
        assert abs(drawn - whole * 327 / 420) < 1


def test_roco_327_has_the_papers_preprocessing(tmp_path: Path) -> None:
    task = CATALOG.task("roco-327")
    assert task.images.resize == (224, 224)
    assert (task.generation.max_new_tokens, task.generation.temperature) == (128, 0.7)
    found = load_samples(CATALOG, task, data_dir=make_rocov2(tmp_path, {"test": 330}), limit=20)
    assert len(found.samples) == 20
    assert all(text == text.lower() for sample in found.samples for text in sample.references)
    assert found.record.subset_ids is not None
    assert len(found.record.subset_ids) == 327


@real
@pytest.mark.parametrize(("name", "folder"), [("vqa-rad", "vqa_rad"), ("slake", "slake"), ("slake-zh", "slake")])
def test_published_counts_are_those_of_the_data(name: str, folder: str) -> None:
    task = CATALOG.task(name)
    for split, expected in task.splits.items():
        found = load_samples(
            CATALOG, task, split=split, data_dir=Path(os.environ["MHE_TEST_DATA"]) / folder, need_images=False
        )
        assert len(found.samples) == expected.samples
        known = set(found.samples[0].groups)
        assert set(task.groups) <= known
