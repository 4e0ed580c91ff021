from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhe import Sample, UserError
from mhe.documents.task import Subset
from mhe.subsets import allot_places, draw_subset


def samples(count=1000):
    kinds = ["ct"] * 6 + ["mri"] * 3 + ["us"]
    return [Sample(f"id{i}", (), ("x",), groups={"modality": kinds[i % 10]}) for i in range(count)]


def test_the_rule_is_over_ids_alone():
    subset = Subset(size=327, stratify_by="modality", salt="roco-327")
    drawn = draw_subset(samples(), subset)
    shuffled = samples()
    random.Random(1).shuffle(shuffled)
    assert {s.id for s in draw_subset(shuffled, subset)} == {s.id for s in drawn}
    assert [s.id for s in drawn] == [s.id for s in samples() if s in drawn], "in the order of publication"
    shares = [sum(s.groups["modality"] == kind for s in drawn) for kind in ("ct", "mri", "us")]
    assert shares == [196, 98, 33]


def test_too_few_samples_are_not_drawn_in_silence():
    with pytest.raises(UserError, match=r"needs 327 samples.*has 300"):
        draw_subset(samples(300), Subset(size=327))


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 10_000), min_size=1), st.data())
def test_places_are_proportional_and_add_up(sizes, data):
    places = data.draw(st.integers(1, sum(sizes.values())))
    allotted = allot_places(sizes, places)
    assert sum(allotted.values()) == places
    for name, size in sizes.items():
        exact = size * places / sum(sizes.values())
        assert exact - 1 < allotted[name] < exact + 1
        assert allotted[name] <= size
