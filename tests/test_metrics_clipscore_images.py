"""CLIPScore with images: each encoded once and kept, and given to `mhe.score` and `mhe score`."""

from __future__ import annotations

import json
import sqlite3
import warnings
from pathlib import Path

import numpy as np
import pytest

import mhe
from command import Done
from command import mhe as run_mhe
from mhe import (
    Case,
    FileSource,
    Image,
    MetricUnavailableError,
    Sample,
    UserError,
)
from mhe.image_folders import ImageFolder
from mhe_metrics import image_features
from mhe_metrics.profiles.plain import PLAIN

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from clip_cases import ANSWERS, REFERENCES, build_clip, by_hand, make, make_cases, picture  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread", "own_image_stores")


@pytest.fixture
def encoded(monkeypatch):
    """Every image that is encoded, one entry an image."""
    from mhe_metrics.clip_encoder import ClipEncoder

    seen = []
    own = ClipEncoder.encode_images
    monkeypatch.setattr(
        ClipEncoder, "encode_images", lambda self, pixels: seen.extend([1] * len(pixels)) or own(self, pixels)
    )
    return seen


# ---------------------------------------------------------------- images encoded once


def test_each_distinct_image_is_encoded_once_and_kept(clip, tmp_path, encoded, monkeypatch):
    cases = make_cases()
    first = make(clip, tmp_path).statistics(cases, PLAIN)
    assert len(encoded) == 4, "six samples, four images"
    again = make(clip, tmp_path).statistics([Case(case.sample, "another model's answer") for case in cases], PLAIN)
    assert again[0, 0] != first[0, 0]
    # Another process: nothing but the file is left.
    monkeypatch.setattr(image_features, "_stores", {})
    assert make(clip, tmp_path, batch_size=3).statistics(cases, PLAIN) == pytest.approx(first, abs=1e-7)
    assert len(encoded) == 4
    make(clip, tmp_path).statistics(make_cases(images=[picture(seed) for seed in range(6)]), PLAIN)
    assert len(encoded) == 6


def test_another_encoder_has_features_of_its_own(clip, tmp_path, encoded):
    cases = make_cases()
    one = make(clip, tmp_path).statistics(cases, PLAIN)
    other = build_clip(tmp_path / "other", seed=10)
    assert np.abs(make(other, tmp_path).statistics(cases, PLAIN)[:, 0] - one[:, 0]).max() > 1e-3
    assert len(encoded) == 8


def test_a_cache_that_is_broken_or_absent_costs_time_only(clip, tmp_path, encoded):
    cases = make_cases()
    expected = make(clip, tmp_path / "fine").statistics(cases, PLAIN)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "image-features.sqlite").write_bytes(b"not a database" * 1000)
    (tmp_path / "file").write_text("in the way of a folder")
    for place in (broken, tmp_path / "file"):
        encoded.clear()
        for _ in range(2):
            assert make(clip, place).statistics(cases, PLAIN).tolist() == expected.tolist()
        assert len(encoded) == 4, "kept for this process"


def test_a_kept_vector_that_is_damaged_is_computed_again(clip, tmp_path, encoded):
    cases = make_cases()
    expected = make(clip, tmp_path).statistics(cases, PLAIN)
    with sqlite3.connect(tmp_path / "image-features.sqlite") as connection:
        (image,) = connection.execute("SELECT image FROM features LIMIT 1").fetchone()
        connection.execute("UPDATE features SET vector = ? WHERE image = ?", (b"\0" * 96, image))
    encoded.clear()
    np.testing.assert_allclose(make(clip, tmp_path).statistics(cases, PLAIN), expected, rtol=0, atol=1e-6)
    assert len(encoded) == 1


def test_what_could_be_read_is_kept_when_something_could_not(clip, tmp_path, encoded):
    cases = make_cases(images=[*(picture(seed) for seed in range(5)), b"no image"])
    with pytest.raises(
        MetricUnavailableError, match=r"1 of 6 samples have an image that cannot be read: 's5'; .*i5: not"
    ):
        make(clip, tmp_path).statistics(cases, PLAIN)
    assert len(encoded) == 5
    make(clip, tmp_path).statistics(cases[:5], PLAIN)
    assert len(encoded) == 5


def test_a_scoring_that_dies_loses_one_batch(clip, tmp_path, monkeypatch):
    from mhe_metrics.clip_encoder import ClipEncoder

    own, batches = ClipEncoder.encode_images, []

    def die_at_third(self, pixels):
        batches.append(len(pixels))
        if len(batches) == 3:
            raise SystemExit("killed")
        return own(self, pixels)

    cases = make_cases(images=[picture(seed) for seed in range(6)])
    with monkeypatch.context() as patch:
        patch.setattr(ClipEncoder, "encode_images", die_at_third)
        with pytest.raises(SystemExit):
            make(clip, tmp_path, batch_size=2).statistics(cases, PLAIN)
        # Another process: nothing but the file is left.
        patch.setattr(image_features, "_stores", {})
        make(clip, tmp_path, batch_size=2).statistics(cases, PLAIN)
    assert batches == [2, 2, 2, 2], "the third batch again, the first two never"


def test_an_image_that_changes_while_it_is_read_is_not_kept(clip, tmp_path):
    class Changing:
        digests = iter(["before", "after"])

        def read(self):
            return picture(0)

        def digest(self):
            return next(self.digests)

    case = Case(Sample("s", (Image("i", Changing()),), ("a",)), "b")
    with pytest.raises(MetricUnavailableError, match="image i: it changed while it was read"):
        make(clip, tmp_path).statistics([case], PLAIN)
    with sqlite3.connect(tmp_path / "image-features.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM features").fetchone() == (0,)


# ---------------------------------------------------------------- mhe.score and mhe score


def test_mhe_score_takes_images_by_position_and_by_id(clip, tmp_path, monkeypatch):
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))
    places = []
    for number, case in enumerate(make_cases()):
        places.append(tmp_path / f"{number}.png")
        places[-1].write_bytes(case.sample.images[0].source.read())
    options = {"metrics": "clipscore", "metric_options": {"clipscore": {"encoder": str(clip), "device": "cpu"}}}
    expected = np.mean(by_hand(clip, make_cases()), axis=0)
    found = mhe.score(ANSWERS, REFERENCES, images=places, **options)
    assert [found[name].value for name in ("clipscore", "refclipscore")] == pytest.approx(expected, abs=1e-6)
    answers, references, images = (dict(zip("abcdef", given, strict=True)) for given in (ANSWERS, REFERENCES, places))
    named = mhe.score(answers, references, images={name: str(place) for name, place in images.items()}, **options)
    assert named["clipscore"].value == found["clipscore"].value
    del images["c"]
    gap = mhe.score(answers, references, images=images, **{**options, "metrics": ["clipscore", "rouge-l"]})
    assert gap["clipscore"].value is None
    assert "1 of 6 samples have no image: 'c'" in gap["clipscore"].reason
    assert gap["rouge-l"].value is not None
    for wrong, told in [
        (places[:2], "2 images for 6 texts"),
        (str(places[0]), "images must be files by id"),
        ([*places[:5], 3], "no path: '5'"),
    ]:
        with pytest.raises(UserError, match=told):
            mhe.score(ANSWERS, REFERENCES, images=wrong, **options)
    with pytest.raises(UserError, match="1 without a text: 'z'"):
        mhe.score(answers, references, images={"z": "z.png"}, **options)


def test_images_are_found_by_name_inside_the_folder(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ["a.png", "a.txt", "b.jpg", "b.PNG", "c", "c.png", "below/d.v1.tif", "below/e.jpeg"]:
        (tmp_path / name).write_bytes(b"x")
    folder = ImageFolder(tmp_path)

    def found(name):
        source = folder.source(name)
        return source.path.relative_to(tmp_path).as_posix() if isinstance(source, FileSource) else source.reason

    assert [found(name) for name in ["a", "a.png", "b.jpg", "c", "below/d.v1", "below/e.jpeg"]] == [
        "a.png", "a.png", "b.jpg", "c", "below/d.v1.tif", "below/e.jpeg",
    ]  # fmt: skip
    assert "more than one image 'b'" in found("b")
    assert found("b").endswith(": b.PNG, b.jpg")
    for gone in ["d", "below", "nowhere/a", "nul\0", "x" * 5000]:
        assert found(gone).startswith("no image ")
    for outside in ["../a", str(tmp_path / "a.png"), ".", ""]:
        assert "names no file inside" in found(outside)
    with pytest.raises(UserError, match="is no folder"):
        ImageFolder(tmp_path / "a.png")


@pytest.fixture
def files(tmp_path):
    """Predictions, references and images; the last two samples share an image through the field `image`."""
    images = tmp_path / "images"
    images.mkdir()
    names = ["s0", "s1", "s2", "s3", "shared.png", "shared"]
    for seed, name in enumerate(names[:5]):
        (images / f"{Path(name).stem}.png").write_bytes(picture(seed))
    rows = [
        {"id": f"s{n}", "references": list(refs), **({"image": name} if n > 3 else {})}
        for n, (refs, name) in enumerate(zip(REFERENCES, names, strict=True))
    ]
    lines = [{"id": f"s{n}", "prediction": answer} for n, answer in enumerate(ANSWERS)]
    for name, content in (("predictions.jsonl", lines), ("references.jsonl", rows)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return tmp_path


def arguments_of(clip, *more):
    return (
        "score", "predictions.jsonl", "--references", "references.jsonl", "--metrics", "clipscore,rouge-l",
        "--set", f"metrics.clipscore.encoder={clip}", "--set", "metrics.clipscore.device=cpu", "--json", *more,
    )  # fmt: skip


@pytest.fixture
def call(files, monkeypatch, capsys):
    """`mhe` in this process, in the folder of the files, which saves importing torch each time."""
    from mhe.cli.main import main

    monkeypatch.chdir(files)
    monkeypatch.setenv("MHE_CACHE_DIR", str(files / ".cache"))

    def run(*arguments):
        with pytest.raises(SystemExit) as leaving:
            main([*map(str, arguments)])
        captured = capsys.readouterr()
        return Done(leaving.value.code, captured.out, captured.err)

    return run


def values_of(done):
    return {value["name"]: value for metric in done.document["metrics"] for value in metric["values"]}


def test_the_command_scores_a_folder_of_images(files, clip, call):
    done = call(*arguments_of(clip, "--images", "images", "--out", "kept"))
    assert done.code == 0, done.err
    images = [picture(seed) for seed in (0, 1, 2, 3, 4, 4)]
    expected = np.mean(by_hand(clip, make_cases(images=images)), axis=0)
    found = values_of(done)
    assert [found[name]["value"] for name in ("clipscore", "refclipscore")] == pytest.approx(expected, abs=1e-6)
    assert done.document["images"] == "images"
    with sqlite3.connect(files / ".cache" / "image-features.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM features").fetchone() == (5,)
    # An image that changed is another score, also where scores are kept.
    (files / "images" / "s0.png").write_bytes(picture(99))
    changed = call(*arguments_of(clip, "--images", "images", "--out", "kept"))
    assert values_of(changed)["clipscore"]["value"] != found["clipscore"]["value"]
    assert values_of(changed)["rouge-l"]["value"] == found["rouge-l"]["value"]


def test_the_command_tells_gaps_and_doubles_and_loses_nothing_else(files, clip):
    (files / "images" / "s1.png").unlink()
    (files / "images" / "s2.jpg").write_bytes(picture(9))
    (files / "images" / "s3.png").write_bytes(b"cut off")
    done = run_mhe(*arguments_of(clip, "--images", "images"), cwd=files)
    assert done.code == 3
    assert "2 of 6 samples have no image in images:" in done.err
    assert "'s1': no image 's1' in images" in done.err
    assert "'s2': more than one image 's2' in images: s2.jpg, s2.png" in done.err
    found = values_of(done)
    assert found["rouge-l"]["value"] is not None
    for name in ("clipscore", "refclipscore"):
        assert found[name]["value"] is None
        assert "3 of 6 samples have an image that cannot be read: 's1', 's2', 's3'" in found[name]["reason"]


def test_the_command_without_images_says_how_to_give_them(clip, call):
    done = call(*arguments_of(clip))
    assert done.code == 3
    assert "6 of 6 samples have no image" in values_of(done)["clipscore"]["reason"]
    assert "--images FOLDER" in values_of(done)["clipscore"]["reason"]
    assert values_of(done)["rouge-l"]["value"] is not None
    wrong = call(*arguments_of(clip, "--images", "nowhere"))
    assert wrong.code == 2
    assert "nowhere is no folder" in wrong.err
    with_task = call("score", "predictions.jsonl", "--task", "roco", "--images", "images")
    assert with_task.code == 2
    assert "--images goes with --references" in with_task.err


def test_a_task_brings_its_own_images(files, clip, call):
    samples = mhe.read_samples("phantom-caption", "test", limit=3)
    lines = [json.dumps({"id": sample.id, "prediction": "a round shape"}) + "\n" for sample in samples]
    (files / "phantom.jsonl").write_text("".join(lines))
    done = call(
        "score", "phantom.jsonl", "--task", "phantom-caption", "--limit", 3, "--metrics", "clipscore", "--json",
        "--set", f"metrics.clipscore.encoder={clip}", "--set", "metrics.clipscore.device=cpu",
    )  # fmt: skip
    assert done.code == 0, done.err
    expected = by_hand(clip, [Case(sample, "a round shape") for sample in samples])
    found = values_of(done)
    assert [found["clipscore"]["value"], found["refclipscore"]["value"]] == pytest.approx(
        np.mean(expected, axis=0), abs=1e-6
    )
    assert not done.document["data"]["digest"].startswith("text-only:")


@pytest.mark.parametrize("there", ["nothing", "one"])
def test_a_task_without_its_images_loses_nothing_else(files, clip, call, there):
    """A release of ROCOv2 of two samples, without its images or without one of them."""
    release = files / "release"
    ids = ["ROCOv2_2023_test_000001", "ROCOv2_2023_test_000003"]
    release.mkdir()
    (release / "test_captions.csv").write_text("ID,Caption\n" + "".join(f"{name},a CT scan\n" for name in ids))
    (release / "test_concepts_manual.csv").write_text("ID,CUIs\n" + "".join(f"{name},C0040405\n" for name in ids))
    if there == "one":
        (release / "test_images").mkdir()
        (release / "test_images" / f"{ids[0]}.jpg").write_bytes(picture(0))
    (files / "roco.csv").write_text("ID,Caption\n" + "".join(f"{name},an MRI scan\n" for name in ids))
    done = call(
        "score", "roco.csv", "--task", "roco", "--data-dir", release, "--metrics", "clipscore,rouge-l", "--json",
        "--set", f"metrics.clipscore.encoder={clip}", "--set", "metrics.clipscore.device=cpu", "--profile", "plain",
    )  # fmt: skip
    assert done.code == 3, done.err
    found = values_of(done)
    assert found["rouge-l"]["value"] > 0
    assert found["clipscore"]["value"] is None
    missing = ids if there == "nothing" else ids[1:]
    assert (
        f"{len(missing)} of 2 samples have an image that cannot be read: {missing[0]!r}" in found["clipscore"]["reason"]
    )
    assert ("Scored without the images" in done.err) == (there == "nothing")


def test_nothing_warns(clip, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = make(clip, tmp_path).statistics(make_cases(), PLAIN)
    assert len(rows) == len(make_cases())
