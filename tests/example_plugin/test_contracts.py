"""The tests that a plugin has of its own: each thing keeps its contract. Run where mhe-example is installed."""

from __future__ import annotations

from pathlib import Path

import mhe_example
from mhe_example.backend import BrightnessBackend, write_threshold
from mhe_example.metric import FirstWord
from mhe_example.profile import LENIENT
from mhe_example.reader import SquaresReader
from mhe_example.recipe import FitThreshold
from mhe_example.tagger import GreysTagger

from mhe import ModelSpec
from mhe.testing import check_backend, check_metric, check_profile, check_reader, check_recipe, check_tagger


def test_backend(tmp_path: Path) -> None:
    write_threshold(tmp_path, 100)
    model = ModelSpec(name="mine", backend="example", location=str(tmp_path))
    responses = check_backend(BrightnessBackend, model=model)
    assert {response.text for response in responses} <= {"yes", "no"}


def test_metric() -> None:
    assert check_metric(FirstWord)["example-first-word"] > 0


def test_profile() -> None:
    check_profile(LENIENT)


def test_reader() -> None:
    assert len(check_reader(SquaresReader, options={"count": 5}, is_generated=True)) == 5


def test_tagger() -> None:
    assert check_tagger(GreysTagger)


def test_recipe() -> None:
    check_recipe(FitThreshold, options={"step": 2})


def test_hooks_are_light() -> None:
    assert Path(mhe_example.__file__).read_text().count("import numpy") == 0
