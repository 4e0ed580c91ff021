"""The audit against data whose overlaps are known, and against all of VQA-RAD."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from mhe import BytesSource, DataMissingError, FileSource, Image, Part, ReadContext, Sample, TaskSpec, open_catalog
from mhe.audit import audit, count_splits, find_unreferenced
from mhe.errors import UnknownNameError
from mhe.image_hashes import near_pairs, near_pairs_within, perceptual_hash, read_facts
from releases import make_rocov2, make_slake, tiny_jpeg

real = pytest.mark.skipif("MHE_TEST_DATA" not in os.environ, reason="MHE_TEST_DATA is not set: no real data here")


def task(**changes: object) -> TaskSpec:
    content: dict[str, object] = {
        "name": "made",
        "version": 1,
        "title": "Made",
        "kind": "vqa",
        "summary": "made",
        "source": {"homepage": "x", "licence": "x", "citation": "x"},
        "reader": {"name": "made"},
        "splits": {"train": {}, "test": {}},
        "prompt": {"user": "{question}"},
        "metrics": ["accuracy"],
        "primary": "accuracy",
        "profile": "strict",
    }
    return TaskSpec.from_data(content | changes, "test")


@dataclass
class MadeCatalog:
    """A catalogue with one reader, which returns the samples it was given."""

    samples: dict[str, list[Sample] | Exception] = field(default_factory=dict)

    class Options(Part):
        pass

    def reader(self, _name: str) -> MadeCatalog:
        return self

    def __call__(self, _options: object) -> MadeCatalog:
        return self

    def read(self, context: ReadContext) -> Iterator[Sample]:
        found = self.samples[context.split]
        if isinstance(found, Exception):
            raise found
        yield from found


def sample(name: str, image: str, data: bytes | Path, question: str = "what?", answer: str = "this") -> Sample:
    source = FileSource(data) if isinstance(data, Path) else BytesSource(data)
    return Sample(id=name, images=(Image(image, source),), references=(answer,), question=question)


def reencoded(data: bytes, quality: int) -> bytes:
    buffer = BytesIO()
    PIL.Image.open(BytesIO(data)).resize((64, 64)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_exact_and_near_duplicates_between_splits() -> None:
    same, similar, alone = tiny_jpeg(1), tiny_jpeg(2), tiny_jpeg(3)
    catalog = MadeCatalog(
        {
            "train": [sample("a", "one", same), sample("b", "two", similar), sample("c", "one", same, "why?")],
            "test": [
                sample("d", "another-name", same),
                sample("e", "copy", reencoded(similar, 70), "WHAT? ", "This"),
                sample("f", "alone", alone, "who?"),
            ],
        }
    )
    report = audit(catalog, task())
    (shared,) = report.shared
    assert report.compared_by == "content"
    assert (shared.images, shared.images_of, shared.samples) == (1, (2, 3), (2, 1))
    assert shared.near_images == (1, 1)
    assert (shared.near_examples[0].first, shared.near_examples[0].second) == ("two", "copy")
    assert (shared.repeated_samples, shared.repeated_texts) == (1, 2)
    assert shared.examples == ("another-name",)
    assert report.undeclared == [shared]


def test_declared_sharing_is_not_undeclared() -> None:
    data = tiny_jpeg(1)
    catalog = MadeCatalog({"train": [sample("a", "x", data)], "test": [sample("b", "x", data)]})
    declared = task(shared_images=[{"splits": ["test", "train"], "reason": "by question"}])
    report = audit(catalog, declared)
    assert report.shared[0].declared == "by question"
    assert report.undeclared == []


def test_duplicates_and_contradictions_within_a_split() -> None:
    data = tiny_jpeg(1)
    rows = [
        sample("a", "x", data),
        sample("b", "y", data),
        sample("c", "x", data, "what?", "that"),
        sample("d", "z", reencoded(data, 60)),
    ]
    within = audit(MadeCatalog({"train": rows, "test": [sample("e", "q", tiny_jpeg(9))]}), task()).within["train"]
    assert within.duplicate_images == 1
    assert within.duplicate_examples == (("x", "y"),)
    assert within.near_pairs == 1
    assert within.repeated_samples == 1
    assert within.contradictions == 1


def test_unreadable_images_are_listed_and_match_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(tiny_jpeg(1)[:300])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "fine.jpg").write_bytes(tiny_jpeg(2))
    (tmp_path / "left-over.jpg").write_bytes(tiny_jpeg(3))
    (tmp_path / "notes.txt").write_text("not an image file")
    names = ["broken.jpg", "text.jpg", "absent.jpg", "fine.jpg"]
    rows = [sample(name, name, tmp_path / name) for name in names]
    report = audit(MadeCatalog({"train": rows[:2], "test": rows[2:]}), task())
    assert set(report.unreadable) == {"broken.jpg", "text.jpg", "absent.jpg"}
    assert "not an image" in report.unreadable["text.jpg"]
    assert report.unreferenced == ("left-over.jpg",)
    assert report.shared[0].images == 0


def test_without_any_image_names_are_compared(tmp_path: Path) -> None:
    train = [sample("a", "one.jpg", tmp_path / "one.jpg")]
    test = [sample("b", "one.jpg", tmp_path / "one.jpg"), sample("c", "two.jpg", tmp_path / "two.jpg")]
    report = audit(MadeCatalog({"train": train, "test": test}), task())
    assert report.compared_by == "name"
    assert report.shared[0].images == 1
    assert report.unreadable == {}


def test_a_split_that_is_not_here_is_reported_and_the_rest_audited() -> None:
    missing = DataMissingError("the train file is not here.\nmore")
    catalog = MadeCatalog({"train": missing, "test": [sample("a", "x", tiny_jpeg(1))]})
    report = audit(catalog, task())
    assert report.splits["train"].missing == "the train file is not here."
    assert report.splits["test"].samples == 1
    assert report.shared == ()
    with pytest.raises(DataMissingError):
        audit(MadeCatalog({"train": missing, "test": missing}), task())
    with pytest.raises(UnknownNameError, match="no split named 'tset'"):
        count_splits(catalog, task(), splits=["tset"])


def test_sources_that_cannot_be_hashed_are_told_apart() -> None:
    @dataclass
    class Plain:
        data: bytes

        def read(self) -> bytes:
            return self.data

        def digest(self) -> str:
            return "x"

    images = [Image("a", Plain(tiny_jpeg(1))), Image("b", Plain(tiny_jpeg(2)))]
    assert len({facts.digest for facts in read_facts(images).values()}) == 2


def test_unreferenced_files_are_looked_for_in_the_images_folder_only(tmp_path: Path) -> None:
    assert find_unreferenced([Image("a", BytesSource(b"x"))]) == []
    (tmp_path / "imgs" / "n1").mkdir(parents=True)
    for name in ("imgs/n1/source.jpg", "imgs/n1/mask.png", "elsewhere.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert find_unreferenced([Image("a", FileSource(tmp_path / "imgs/n1/source.jpg"))]) == []


# ---------------------------------------------------------------- hashes


def test_hash_survives_scaling_and_compression_and_separates_images() -> None:
    first, second = perceptual_hash(tiny_jpeg(1)), perceptual_hash(tiny_jpeg(2))
    assert first is not None
    assert second is not None
    again = perceptual_hash(reencoded(tiny_jpeg(1), 50))
    assert again is not None
    assert (first ^ again).bit_count() <= 4
    assert (first ^ second).bit_count() > 12


def test_hash_of_every_mode_of_one_picture_is_the_same() -> None:
    grey = PIL.Image.open(BytesIO(tiny_jpeg(5))).convert("L")
    sixteen = PIL.Image.fromarray((np.asarray(grey).astype(np.uint16)) * 257)
    hashes = []
    for picture in (grey, grey.convert("RGB"), grey.convert("RGBA"), grey.convert("P"), sixteen):
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        hashes.append(perceptual_hash(buffer.getvalue()))
    assert all(value is not None and (value ^ hashes[0]).bit_count() <= 2 for value in hashes)


def test_plain_images_have_no_hash() -> None:
    buffer = BytesIO()
    PIL.Image.new("L", (50, 50), 200).save(buffer, "PNG")
    assert perceptual_hash(buffer.getvalue()) is None


def test_pairs_equal_the_naive_ones() -> None:
    draw = np.random.default_rng(0)
    left = draw.integers(0, 2**64, 700, dtype=np.uint64)
    right = np.concatenate([left[::50] ^ np.uint64(0b1011), draw.integers(0, 2**64, 600, dtype=np.uint64)])
    naive = {
        (i, j, (int(a) ^ int(b)).bit_count())
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if (int(a) ^ int(b)).bit_count() <= 14
    }
    assert set(near_pairs(left, right, 14)) == naive
    assert len(naive) >= 14
    within = set(near_pairs_within(np.concatenate([left, right]), 4))
    assert {(i, j - len(left)) for i, j, _ in within if i < len(left) <= j} >= {(50 * k, k) for k in range(14)}
    assert all(i < j for i, j, _ in within)
    assert list(near_pairs(left, np.array([], dtype=np.uint64), 4)) == []


def test_counting_bits_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).integers(0, 2**64, 100, dtype=np.uint64)
    modern = list(near_pairs_within(values, 24))
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert list(near_pairs_within(values, 24)) == modern
    assert modern


# ---------------------------------------------------------------- published data


@real
def test_vqa_rad_shares_202_of_its_203_test_images() -> None:
    catalog = open_catalog()
    folder = Path(os.environ["MHE_TEST_DATA"]) / "vqa_rad"
    report = audit(catalog, catalog.task("vqa-rad"), data_dir=folder)
    (shared,) = report.shared
    assert shared.splits == ("train", "test")
    assert (shared.images, shared.images_of, shared.samples) == (202, (313, 203), (1063, 446))
    assert shared.near_images == (0, 0)
    assert (shared.repeated_samples, shared.repeated_texts) == (1, 54)
    assert shared.declared is not None
    assert report.undeclared == []
    assert report.unreadable == {}
    assert report.unreferenced == ("synpic35356.jpg",)
    assert report.within["train"].repeated_samples == 3


@real
def test_slake_shares_no_image_by_name_and_by_content(tmp_path: Path) -> None:
    catalog = open_catalog()
    annotations = Path(os.environ["MHE_TEST_DATA"]) / "slake"
    bare = audit(catalog, catalog.task("slake"), data_dir=annotations)
    made = audit(catalog, catalog.task("slake"), data_dir=make_slake(tmp_path, annotations))
    assert (bare.compared_by, made.compared_by) == ("name", "content")
    for report in (bare, made):
        assert [shared.images for shared in report.shared] == [0, 0, 0]
        assert [shared.repeated_texts for shared in report.shared] == [955, 937, 786]
        assert report.unreferenced == ()


def test_a_leak_planted_in_a_release_is_found(tmp_path: Path) -> None:
    folder = make_rocov2(tmp_path, {"train": 20, "valid": 8, "test": 12})
    source = sorted((folder / "train_images" / "train").iterdir())[3]
    target = sorted((folder / "test_images" / "test").iterdir())[5]
    target.write_bytes(source.read_bytes())
    catalog = open_catalog()
    report = audit(catalog, catalog.task("roco"), data_dir=folder)
    leak = {shared.splits: shared.images for shared in report.shared}
    assert leak == {("train", "validation"): 0, ("train", "test"): 1, ("validation", "test"): 0}
    assert report.undeclared[0].examples == (target.stem,)
