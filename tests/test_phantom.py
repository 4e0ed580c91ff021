"""Phantoms: equal on every machine, true in words and pixels, and never shared between splits."""

from __future__ import annotations

import hashlib
import io
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise

import numpy as np
import PIL.Image
import pytest

from mhe import ReadContext, Sample, UserError, open_image
from mhe_tasks.phantom.captions import write_caption
from mhe_tasks.phantom.drawing import draw_pixels
from mhe_tasks.phantom.facts import (
    INTENSITIES,
    MODALITIES,
    NUMBERS,
    POSITIONS,
    RADII,
    REGIONS,
    SHAPES,
    SIDES,
    SIZES,
    Facts,
    draw_facts,
)
from mhe_tasks.phantom.questions import ask_questions
from mhe_tasks.phantom.reader import DEFAULT_COUNTS, SPLITS, PhantomOptions, PhantomReader, image_seed
from mhe_tasks.phantom.subtle import CONTRASTS, SUBTLE_RADII, draw_subtle_facts

# Of the raw pixels: they may change only together with the version of both tasks.
DIGESTS = {
    0: "25fab9bf7877650b8f7673e29b3d87c78c5401b8972c9c5ec07e98b7ec9ca6e4",
    1: "e036c893c7f19ca8d6780b37e386cea487c9e9ddbefe08c1c0260007be12b66e",
    12345: "9f2a0764880b88e3d79bf301da51a77cbe12baee9f9774b887ccead3dc64b45b",
    2**63 + 7: "0c35809461eccd66f810841ce687dc84c48ec9bdb7be9262ac1ca7e8354583b0",
    2**64 - 1: "c9646d054a9847aa96836670ad75e4ff1f7c096d4687fa9da0d0a3b2398d7209",
}


# Likewise of the subtle phantoms.
SUBTLE_DIGESTS = {
    0: "9cf7a02cd1d47176694da7284d9287b73e6aa8b43105bc47f7db203265e3e960",
    1: "e1ac5e2e47382c09bdc6c3bfc8e8b4b8f79d367b3049bd2d54ba9e5d6b4bbe02",
    2**62 + 7: "34a64f2b0d3bb97cc6b46b88318a671222dbeee6efa89c66ea10f7e4face74ca",
    2**64 - 1: "9620fa85788fda665d5b2cd14330f0d23485f6018d53b1f758b6c8ce0a2aa129",
}
SUBTLE = {"findings": "subtle"}


def read(split: str, **options: object) -> list[Sample]:
    reader = PhantomReader(PhantomOptions.model_validate(options))
    return list(reader.read(ReadContext(split=split, data_dir=None)))


def many_facts(count: int = 400) -> list[Facts]:
    return [draw_facts(seed * 0x9E3779B97F4A7C15 % 2**64) for seed in range(count)]


@pytest.mark.parametrize(("seed", "digest"), DIGESTS.items())
def test_pixels_are_the_same_everywhere(seed, digest):
    pixels = draw_pixels(draw_facts(seed))
    assert pixels.shape == (64, 64)
    assert pixels.dtype == np.uint8
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused(seed):
    with pytest.raises(ValueError, match="64-bit"):
        draw_facts(seed)


def test_every_fact_occurs():
    facts = many_facts()
    assert {f.modality for f in facts} == set(MODALITIES)
    assert {f.region for f in facts} == set(REGIONS)
    assert {f.number for f in facts} == {0, 1, 2, 3}
    assert {f.side for f in facts} == {*SIDES, None}
    assert {f.size for f in facts} == {*SIZES, None}
    assert {f.intensity for f in facts} == {*INTENSITIES, None}


def test_lesions_lie_apart_on_their_side_and_have_their_size():
    for f in many_facts():
        assert (f.side is None) == (f.number == 0)
        for index, lesion in enumerate(f.lesions):
            radius = max(lesion.half_width, lesion.half_height)
            assert (lesion.x + radius < 0) if f.side == "left" else (lesion.x - radius > 0)
            low, high = RADII[f.size or ""]
            assert low <= min(lesion.half_width, lesion.half_height) <= radius <= high
            for other in f.lesions[index + 1 :]:
                reach = radius + max(other.half_width, other.half_height)
                assert (lesion.x - other.x) ** 2 + (lesion.y - other.y) ** 2 > reach**2


def test_lesions_can_be_read_from_the_pixels():
    """Bright or dark where the facts say so, and sound tissue at the mirrored place of the other side."""
    seen = 0
    for f in many_facts(200):
        pixels = draw_pixels(f, 256).astype(int)
        for lesion in f.lesions:
            column, row = (lesion.x + 512) // 4, (lesion.y + 512) // 4
            inside = np.median(pixels[row - 3 : row + 4, column - 3 : column + 4])
            assert inside > 200 if f.intensity == "bright" else inside < 50
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("intensity", INTENSITIES)
def test_number_and_size_can_be_counted_in_the_pixels(intensity):
    """Connected regions of lesion level, in scans whose anatomy has no such level inside the body."""
    checked = 0
    for f in many_facts(1500):
        if f.intensity != intensity or f.modality != "radiograph" or f.region in ("head", "pelvis"):
            continue
        pixels = draw_pixels(f, 128)
        areas = region_areas(pixels > 205 if intensity == "bright" else pixels < 42)
        assert len(areas) == f.number
        # Halfway between the discs of radius 50 and 84, in pixels of 8 units.
        assert all((area > np.pi * (67 / 8) ** 2) == (f.size == "large") for area in areas)
        checked += 1
    assert checked > 20


def region_areas(mask: np.ndarray) -> list[int]:
    """Areas of the connected regions of at least 20 pixels; less is noise."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    areas = []
    while left:
        stack, area = [left.pop()], 0
        while stack:
            y, x = stack.pop()
            area += 1
            for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if place in left:
                    left.remove(place)
                    stack.append(place)
        areas.append(area)
    return [area for area in areas if area >= 20]


def answer_from_facts(sample: Sample, f: Facts) -> str:
    """The right answer, found without the code that wrote the question."""
    text = sample.question or ""
    kind = sample.groups["question_type"]
    if kind == "presence":
        asks_for_none = "free of" in text or "normal" in text
        return "yes" if (f.number == 0) == asks_for_none else "no"
    truth = {
        "modality": f.modality,
        "region": f.region,
        "number": NUMBERS[f.number],
        "side": f.side,
        "size": f.size,
        "intensity": f.intensity,
        "position": f.position,
        "shape": f.shape,
    }[kind]
    assert truth is not None
    if sample.answer_type == "open":
        return truth
    choices = {"modality": MODALITIES, "region": REGIONS, "number": NUMBERS, "side": SIDES, "size": SIZES}
    choices |= {"intensity": INTENSITIES, "position": POSITIONS, "shape": SHAPES}
    named = [c for c in choices[kind] if f" {c} " in f"{text.rstrip('?')} "]
    assert len(named) == 1, text
    return "yes" if named[0] == truth else "no"


def test_every_answer_is_true():
    samples = read("train", count=300, per_type=2, seed=3)
    for sample in samples:
        f = draw_facts(sample.images[0].source.seed)
        assert sample.references == (answer_from_facts(sample, f),)
    kinds = {(s.groups["question_type"], s.answer_type) for s in samples}
    assert len(kinds) == 13


def test_questions_of_a_lesion_are_asked_only_where_there_is_one():
    for f in many_facts(100):
        kinds = {q.question_type for q in ask_questions(f)}
        assert ({"side", "size", "intensity"} <= kinds) == (f.number > 0)
        assert len(ask_questions(f)) == (7 if f.number else 4)


def test_no_constant_answer_is_a_good_one():
    answers = defaultdict(Counter)
    for sample in read("test"):
        answers[sample.groups["question_type"], sample.answer_type][sample.references[0]] += 1
    assert len(answers) == 13
    for key, counts in answers.items():
        assert counts.total() > 50, key
        assert max(counts.values()) / counts.total() < 0.66, (key, counts)


def test_captions_name_every_fact():
    for f in many_facts(200):
        caption = write_caption(f)
        assert f.region in caption
        assert f.modality.lower() in caption.lower()
        if f.number == 0:
            assert "no lesion" in caption or "without any lesion" in caption
            continue
        assert f" {NUMBERS[f.number]} {f.size} " in caption
        assert f" {f.side}" in caption
        bright = any(word in caption for word in ("hyperdense", "hyperintense", "radiopaque", "hyperechoic"))
        assert bright == (f.intensity == "bright")


def test_no_two_splits_share_an_image():
    """By digest, and by facts with pixels, over more images than the published splits hold."""
    by_split = {}
    for split in SPLITS:
        images = [s.images[0] for s in read(split, ask="caption", count=max(600, DEFAULT_COUNTS[split] // 2))]
        by_split[split] = {image.source.digest() for image in images}
        assert len(by_split[split]) == len(images)
    for first in SPLITS:
        for second in SPLITS:
            assert first == second or not by_split[first] & by_split[second]


def test_streams_and_splits_have_seeds_of_their_own():
    last = {(split, stream): image_seed(split, stream, 2**40 - 1) for split in SPLITS for stream in (0, 2**22 - 1)}
    first = {(split, stream): image_seed(split, stream, 0) for split in SPLITS for stream in (0, 2**22 - 1)}
    spans = sorted((first[key], last[key]) for key in first)
    assert all(a[1] < b[0] for a, b in pairwise(spans))
    assert spans[-1][1] < 2**64
    with pytest.raises(UserError, match="splits are train"):
        image_seed("dev", 0, 0)


def test_leaving_something_out_changes_nothing_else():
    whole = {s.id: s for s in read("validation", count=60)}
    part = read("validation", count=20, modalities=["CT", "MRI"], question_types=["region", "number"])
    assert part
    for sample in part:
        assert sample.groups["modality"] in ("CT", "MRI")
        assert sample.groups["question_type"] in ("region", "number")
        known = whole.get(sample.id)
        assert known is None or known == sample


def test_an_image_is_read_as_drawn():
    image = read("test", count=1)[0].images[0]
    assert PIL.Image.open(io.BytesIO(image.source.read())).mode == "L"
    pixels = np.asarray(open_image(image))
    assert (pixels == image.source.draw()[:, :, None]).all()
    assert read("test", count=1, size=128)[0].images[0].source.digest() != image.source.digest()


def many_subtle_facts(count: int = 400) -> list[Facts]:
    return [draw_subtle_facts(seed * 0x9E3779B97F4A7C15 % 2**64) for seed in range(count)]


@pytest.mark.parametrize(("seed", "digest"), SUBTLE_DIGESTS.items())
def test_subtle_pixels_are_the_same_everywhere(seed, digest):
    pixels = draw_pixels(draw_subtle_facts(seed))
    assert pixels.shape == (64, 64)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == digest


def test_every_subtle_fact_occurs():
    facts = many_subtle_facts()
    assert {f.modality for f in facts} == set(MODALITIES)
    assert {f.number for f in facts} == {0, 1, 2, 3}
    assert {f.position for f in facts} == {*POSITIONS, None}
    assert {f.shape for f in facts} == {*SHAPES, None}
    assert {f.size for f in facts} == {*SIZES, None}
    assert {f.side for f in facts} == {None}


def test_subtle_lesions_lie_apart_in_their_quadrant_and_have_their_shape():
    for f in many_subtle_facts(1000):
        assert (f.position is None) == (f.shape is None) == (f.number == 0)
        for index, lesion in enumerate(f.lesions):
            width, height = lesion.half_width, lesion.half_height
            assert (lesion.x + width < 0) if "left" in f.position else (lesion.x - width > 0)
            assert (lesion.y + height < 0) if "upper" in f.position else (lesion.y - height > 0)
            low, high = SUBTLE_RADII[f.size]
            assert low - 2 <= (width * height) ** 0.5 <= high
            ratio = max(width, height) / min(width, height)
            assert ratio == 1 if f.shape == "round" else 1.6 < ratio < 2
            for other in f.lesions[index + 1 :]:
                reach = max(width, height) + max(other.half_width, other.half_height)
                assert (lesion.x - other.x) ** 2 + (lesion.y - other.y) ** 2 > reach**2


def test_subtle_lesions_differ_from_the_same_image_without_them():
    """By their contrast, before noise: drawn twice, with and without lesions, noise and all else being equal."""
    checked = 0
    for f in many_subtle_facts(300):
        if not f.lesions or f.modality == "ultrasound":
            continue
        sound = draw_pixels(replace(f, lesions=()), 256).astype(int)
        change = draw_pixels(f, 256).astype(int) - sound
        for lesion in f.lesions:
            column, row = (lesion.x + 512) // 4, (lesion.y + 512) // 4
            inside = np.abs(change[row - 2 : row + 3, column - 2 : column + 3])
            # A level may be cut off at black or white.
            assert 15 < np.median(inside) <= CONTRASTS[1]
            sign = 1 if f.intensity == "bright" else -1
            assert np.median(change[row - 2 : row + 3, column - 2 : column + 3]) * sign > 0
        far = np.abs(change) > 2
        assert far.mean() < 0.05
        checked += 1
    assert checked > 100


def test_images_that_the_source_does_not_have_are_not_searched_for():
    with pytest.raises(ValueError, match="no ultrasound"):
        PhantomOptions(scope="source", modalities=("ultrasound",), **SUBTLE)


@pytest.mark.parametrize("scope", ["source", "target"])
def test_every_subtle_answer_is_true(scope):
    samples = read("train", count=300, per_type=2, seed=3, scope=scope, **SUBTLE)
    for sample in samples:
        assert sample.references == (answer_from_facts(sample, sample.images[0].source.facts()),)
    kinds = {(s.groups["question_type"], s.answer_type) for s in samples}
    assert len(kinds) == (13 if scope == "source" else 15)


def test_the_target_has_what_the_source_lacks():
    source = read("train", count=400, scope="source", **SUBTLE)
    target = read("train", count=400, scope="target", **SUBTLE)
    assert {s.groups["modality"] for s in source} == {"CT", "MRI", "radiograph"}
    assert "size" not in {s.groups["question_type"] for s in source}
    of_ultrasound = {s.groups["question_type"] for s in target if s.groups["modality"] == "ultrasound"}
    assert of_ultrasound == {"modality", "region", "presence", "number", "size", "intensity", "position", "shape"}
    assert {s.groups["question_type"] for s in target if s.groups["modality"] != "ultrasound"} == {"size"}
    assert not any("size" in (s.question or "") for s in source)
    captions = [s.references[0] for s in read("train", count=400, ask="caption", scope="source", **SUBTLE)]
    assert not any(word in caption for caption in captions for word in ("small", "large", "Ultrasound"))
    told = [s.references[0] for s in read("train", count=400, ask="caption", scope="target", **SUBTLE)]
    assert all("small" in c or "large" in c for c in told if "lesions" in c and "any" not in c)
    assert any("Ultrasound" in c for c in told)


def test_source_and_target_and_their_splits_share_no_image():
    seen: dict[str, tuple[str, str]] = {}
    for scope in ("source", "target"):
        for split in SPLITS:
            images = [s.images[0] for s in read(split, ask="caption", count=500, scope=scope, **SUBTLE)]
            assert len(images) == 500
            for image in images:
                digest = image.source.digest()
                assert seen.setdefault(digest, (scope, split)) == (scope, split)
    assert len(seen) == 6 * 500


@pytest.mark.parametrize("scope", ["source", "target"])
def test_no_constant_answer_is_a_good_one_for_subtle_phantoms(scope):
    answers = defaultdict(Counter)
    for sample in read("test", count=1000, scope=scope, **SUBTLE):
        answers[sample.groups["question_type"], sample.answer_type][sample.references[0]] += 1
    for (kind, answer_type), counts in answers.items():
        share = max(counts.values()) / counts.total()
        if scope == "target" and (kind, answer_type) == ("modality", "open"):
            # Of the target's modalities only ultrasound is new.
            assert set(counts) == {"ultrasound"}
            continue
        assert share < 0.66, (kind, answer_type, counts)


@pytest.mark.parametrize("scope", ["source", "target"])
def test_the_majority_answer_of_the_published_split_is_below_60_percent_when_closed(scope):
    closed = Counter(s.references[0] for s in read("test", scope=scope, **SUBTLE) if s.answer_type == "closed")
    assert closed.total() > 300
    assert set(closed) == {"yes", "no"}
    assert max(closed.values()) / closed.total() < 0.6


def test_plain_phantoms_have_no_parts():
    with pytest.raises(ValueError, match="plain phantoms have only scope 'all'"):
        PhantomOptions.model_validate({"scope": "source"})


def test_subtle_captions_name_every_fact():
    for f in many_subtle_facts(200):
        caption = write_caption(f)
        without_size = write_caption(f, names_size=False)
        if f.number:
            assert f" {NUMBERS[f.number]} {f.size} {f.shape} " in caption
            assert f" {NUMBERS[f.number]} {f.shape} " in without_size
            assert f"in the {f.position}" in caption
        else:
            assert caption == without_size
