"""One suite over every registered provider of every kind; each asserts how many it found."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from mhe import DataMissingError, MetricUnavailableError, open_catalog
from mhe.testing import (
    check_backend,
    check_engine,
    check_metric,
    check_model,
    check_profile,
    check_reader,
    check_recipe,
    check_tagger,
    check_task,
    tiny_png,
    toy_cases,
)

ROOT = Path(__file__).parents[2]
CATALOG = open_catalog()
KINDS = (
    "backends", "models", "architectures", "task_folders", "readers", "metrics", "profiles", "taggers", "recipes",
    "engines",
)  # fmt: skip
SKIPPED_WITHOUT_WEIGHTS = {"hf", "vllm", "server"}
PROFILE_OF = {"caption": "plain", "vqa": "strict"}


def over(names):
    return pytest.mark.parametrize("name", sorted(names))


def test_the_catalogue_is_whole():
    assert CATALOG.check_all() == []
    counts = {kind: len(getattr(CATALOG, kind)) for kind in KINDS}
    at_least = {
        "backends": 4,
        "models": 10,
        "architectures": 7,
        "task_folders": 7,
        "readers": 5,
        "metrics": 14,
        "profiles": 11,
        "taggers": 2,
        "recipes": 1,
        "engines": 1,
    }
    short = {kind: counts[kind] for kind, number in at_least.items() if counts[kind] < number}
    assert not short, f"fewer than {at_least}"
    assert set(counts) == set(at_least)


NAMED = re.compile(r"^    name(?:: str)? = \"([a-z0-9.-]+)\"$", flags=re.MULTILINE)


def names_in(folder: Path) -> set[str]:
    """The names that the classes of a folder's modules give themselves."""
    found = {name for path in folder.glob("*.py") for name in NAMED.findall(path.read_text(encoding="utf-8"))}
    assert found, f"no named class in {folder}"
    return found


def test_what_lies_in_the_folders_is_registered():
    """A module that was written and never registered would be found by no other test here."""
    metrics = ROOT / "plugins" / "mhe_metrics"
    assert {name for name in CATALOG.metrics if ":" not in name} >= names_in(metrics) - set(CATALOG.taggers)
    assert set(CATALOG.profiles) == names_in(metrics / "profiles")
    tasks = {path.parent.name.replace("_", "-") for path in (ROOT / "tasks" / "mhe_tasks").glob("*/task.yaml")}
    assert set(CATALOG.task_folders) == tasks


@over(CATALOG.backends)
def test_backend(name):
    if name in SKIPPED_WITHOUT_WEIGHTS:
        pytest.skip("needs weights or a server: checked in the tests of its plugin")
    responses = check_backend(CATALOG.backend(name))
    assert len(responses) == 8
    assert all(response.text for response in responses)


@over(set(CATALOG.backends) & SKIPPED_WITHOUT_WEIGHTS)
def test_backend_that_needs_weights_has_options_and_loads_lightly(name):
    from mhe.testing.contracts import checked_options

    factory = CATALOG.backend(name)
    assert checked_options(factory, None).model_dump(mode="json")


@over(CATALOG.engines)
def test_engine(name):
    if name == "ray":
        pytest.skip("starts a cluster: checked in its own tests")
    check_engine(lambda: CATALOG.engine(name))


@over(CATALOG.metrics)
def test_metric(name):
    metric_factory = CATALOG.metric(name)
    try:
        kinds = _kinds_of(metric_factory)
        for kind in kinds:
            values = check_metric(metric_factory, CATALOG.profile(PROFILE_OF[kind]), cases=toy_cases(12, kind))
            assert values
    except MetricUnavailableError as error:
        pytest.skip(str(error))


def _kinds_of(factory):
    from mhe.protocols import MetricContext

    return sorted(factory(factory.Options(), MetricContext(cache_dir=Path())).kinds)


@over(CATALOG.profiles)
def test_profile(name):
    try:
        check_profile(CATALOG.profile(name))
    except MetricUnavailableError as error:
        pytest.skip(str(error))


@over(CATALOG.taggers)
def test_tagger(name, tmp_path):
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("pleural effusion\neffusion\n")
    options = {"phrases": {"file": str(phrases)}}
    try:
        assert any(check_tagger(CATALOG.tagger(name), options=options.get(name)))
    except MetricUnavailableError as error:
        pytest.skip(str(error))


@over(CATALOG.recipes)
def test_recipe(name):
    check_recipe(CATALOG.recipe(name))


@over(CATALOG.task_folders)
def test_task(name):
    assert check_task(name, CATALOG).name == name


@over(CATALOG.models)
def test_model(name):
    check_model(CATALOG.models[name], CATALOG)


# ---------------------------------------------------------------- readers


def rocov2_release(folder):
    """Two samples in the layout of ROCOv2's release."""
    images = folder / "test_images" / "test"
    for place in (images, folder / "test"):
        place.mkdir(parents=True)
    ids = ["ROCOv2_2023_test_000001", "ROCOv2_2023_test_000003", "ROCOv2_2023_test_000004"]
    for number, image in enumerate(ids):
        (folder / "test" / f"{image}.jpg").write_bytes(tiny_png(40 * number))
        (images / f"{image}.jpg").write_bytes(tiny_png(40 * number))
    captions = "".join(f'{image}," A scan, number {n}."\n' for n, image in enumerate(ids))
    (folder / "test_captions.csv").write_text("ID,Caption\n" + captions)
    (folder / "test_concepts_manual.csv").write_text("ID,CUIs\n" + "".join(f"{image},C0040405\n" for image in ids))
    (folder / "test_concepts.csv").write_text("ID,CUIs\n" + "".join(f"{image},C0040405;C0817096\n" for image in ids))
    return folder


def slake_release(folder):
    """Three questions in the layout of SLAKE's release."""
    rows = []
    for number in range(3):
        image = f"xmlab{number}/source.jpg"
        place = folder / "imgs" / image
        place.parent.mkdir(parents=True)
        place.write_bytes(tiny_png(30 * number))
        rows.append(
            {
                "img_id": number,
                "img_name": image,
                "question": "Is this a CT?",
                "answer": "Yes" if number % 2 else "No",
                "q_lang": "en",
                "location": "Lung",
                "modality": "CT",
                "answer_type": "CLOSED",
                "base_type": "vqa",
                "content_type": "Modality",
                "triple": ["vhead", "_", "_"],
                "qid": number,
            }
        )
    (folder / "test.json").write_text(json.dumps(rows))
    return folder


RELEASES = {"rocov2": rocov2_release, "slake": slake_release}
GENERATED = {"phantom", "toy"}


@over(CATALOG.readers)
def test_reader(name, tmp_path):
    if name in GENERATED:
        options = {"count": 4} if name == "phantom" else {}
        assert check_reader(CATALOG.reader(name), options=options, is_generated=True)
        return
    if name == "vqa-rad":
        root = os.environ.get("MHE_TEST_DATA")
        if not root:
            pytest.skip("MHE_TEST_DATA is not set")
        folder = Path(root) / "vqa_rad"
    else:
        folder = RELEASES[name](tmp_path)
    samples = check_reader(CATALOG.reader(name), data_dir=folder)
    assert len(samples) == (451 if name == "vqa-rad" else 3)


def test_every_reader_is_reached():
    assert set(CATALOG.readers) == {*RELEASES, *GENERATED, "vqa-rad"}


def test_readers_say_what_to_download(tmp_path):
    from mhe.protocols import ReadContext

    factory = CATALOG.reader("slake")
    with pytest.raises(DataMissingError):
        list(factory(factory.Options()).read(ReadContext(split="test", data_dir=tmp_path, offline=True)))
