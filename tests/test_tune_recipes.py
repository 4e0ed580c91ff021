"""`mhe show recipes` names every recipe of the papers, its source, and its presets."""

from __future__ import annotations

import re
from fnmatch import fnmatch

import pytest

NAMES = {
    "full",
    "lora",
    "qlora",
    "dora",
    "ia3",
    "prefix",
    "ptuning-v2",
    "bitfit",
    "staged",
    "instruction",
    "distill",
    "prune",
}


def test_every_method_is_there(catalog):
    assert catalog.recipes.keys() >= NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_summary_names_the_presets_that_there_are(catalog, name):
    pytest.importorskip("torch")
    summary = catalog.recipes[name].summary
    told = re.search(r"presets? ([^)]+)\)", summary)
    patterns = told[1].split(", ") if told else []
    presets = list(getattr(catalog.recipe(name).Options, "presets", {}))
    for preset in presets:
        assert any(fnmatch(preset, pattern) for pattern in patterns), f"{preset} is not told of"
    for pattern in patterns:
        assert any(fnmatch(preset, pattern) for preset in presets), f"there is no preset {pattern}"
    assert len(summary) < 115


@pytest.mark.parametrize("name", sorted(NAMES - {"full", "staged"}))
def test_a_published_method_names_its_paper(catalog, name):
    assert re.search(r"[A-Z][a-z]+ .*20\d\d", catalog.recipes[name].summary)
