"""ROCOv2: releases made in the official layout with its traps, and the hub copy."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mhe import DataMissingError, DocumentError, ReadContext, Sample, open_image
from mhe_tasks.readers import hub
from mhe_tasks.readers.rocov2 import Rocov2Options, Rocov2Reader, modality_of
from releases import MODALITY_CONCEPTS, make_rocov2, make_rocov2_copy, rocov2_rows

SIZES = {"train": 12, "valid": 6, "test": 70}


def read(split: str, folder: Path | None, **context: object) -> list[Sample]:
    return list(Rocov2Reader(Rocov2Options()).read(ReadContext(split=split, data_dir=folder, **context)))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rocov2(tmp_path_factory.mktemp("rocov2"), SIZES)


def test_captions_ids_and_modalities(release: Path) -> None:
    samples = read("test", release)
    rows = rocov2_rows("test", 70)
    assert [sample.id for sample in samples] == [name for name, _, _ in rows]
    assert [sample.references for sample in samples] == [(caption.strip(),) for _, caption, _ in rows]
    assert [sample.groups["modality"] for sample in samples] == [modality for _, _, modality in rows]
    assert set(Counter(sample.groups["modality"] for sample in samples)) == {*MODALITY_CONCEPTS, "unknown"}
    assert any("\n" in sample.references[0] for sample in samples)
    assert any('"two views"' in sample.references[0] for sample in samples)
    assert samples[0].question is None
    assert samples[0].answer_type is None
    assert open_image(samples[-1].images[0]).size == (32, 32)


@pytest.mark.parametrize(
    ("layout", "zipped"),
    [("{split}", False), ("{split}_images", False), ("images/{split}", False), ("{split}_images/{split}", True)],
)
def test_image_folders_wherever_usual(tmp_path: Path, layout: str, zipped: bool) -> None:
    make_rocov2(tmp_path, {"valid": 5}, layout=layout, zipped=zipped)
    assert all(open_image(sample.images[0]) for sample in read("valid", tmp_path))


def test_an_empty_folder_of_the_usual_name_does_not_hide_the_images(tmp_path: Path) -> None:
    make_rocov2(tmp_path, {"valid": 5}, layout="{split}")
    (tmp_path / "valid_images" / "valid").mkdir(parents=True)
    assert open_image(read("valid", tmp_path)[0].images[0])


def test_modality_is_the_first_one_named() -> None:
    assert modality_of(["C0817096", " C0024485 ", "C0040405"]) == "mri"
    assert modality_of([]) == "unknown"


def test_all_problems_with_their_lines(tmp_path: Path) -> None:
    make_rocov2(tmp_path, {"test": 3})
    (tmp_path / "test_captions.csv").write_text(
        'ID,Caption\na,"two\nlines"\na,again\nb,unquoted, comma\nc,"  "\n,nameless\n../d,outside\n\ne,fine\n'
    )
    with pytest.raises(DocumentError) as caught:
        read("test", tmp_path)
    assert caught.value.problems == [
        "line 4: the id 'a' stands at line 2 as well",
        "line 5: expected 2 columns, found 3 (text with a comma must be quoted)",
        "line 6: c has an empty Caption",
        "line 7: '' is no image id",
        "line 8: '../d' is no image id",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'ID,Caption\na,"open\nb,c\n', r"line 2: .*quotation mark"),
        (b"ID,Text\na,b\n", "line 1: expected the header ID,Caption, found 'ID,Text'"),
        (b"", "line 1: expected the header"),
        (b"ID,Caption\na,caf\xe9\n", "not UTF-8"),
    ],
)
def test_damaged_csv(tmp_path: Path, content: bytes, message: str) -> None:
    make_rocov2(tmp_path, {"test": 3})
    (tmp_path / "test_captions.csv").write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        read("test", tmp_path)


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    make_rocov2(tmp_path, {"test": 3})
    path = tmp_path / "test_captions.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read("test", tmp_path)) == 3


def test_missing_parts(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"zenodo[\s\S]*--data-dir[\s\S]*MHE_DATA_DIR/rocov2"):
        read("test", None)
    with pytest.raises(DataMissingError, match=r"no file test_captions\.csv"):
        read("test", tmp_path)
    make_rocov2(tmp_path, {"test": 3})
    (tmp_path / "test_images").rename(tmp_path / "elsewhere")
    with pytest.raises(DataMissingError, match="no folder test_images/test/"):
        read("test", tmp_path)
    assert len(read("test", tmp_path, need_images=False)) == 3
    (tmp_path / "test_concepts_manual.csv").unlink()
    with pytest.raises(DataMissingError, match=r"test_concepts_manual\.csv, which tells the modality"):
        read("test", tmp_path)
    with pytest.raises(DocumentError, match="no split 'validation'"):
        read("validation", tmp_path)


@pytest.mark.parametrize("limit", [None, 4])
def test_hub_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub, "refuse_unreachable_hub", lambda *_: None)
    hub._open_table.cache_clear()
    copy = make_rocov2_copy(tmp_path / "copy", {"valid": 9})
    load = datasets.load_dataset
    asked: list[object] = []

    def answer(path: str, *, revision: str | None, split: str, streaming: bool) -> object:
        asked.append((path, revision, split, streaming))
        return load(str(copy), split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    samples = read("valid", None, hub="eltorio/ROCOv2-radiology", revision="80ffeef", limit=limit)
    assert asked == [("eltorio/ROCOv2-radiology", "80ffeef", "validation", limit is not None)]
    rows = rocov2_rows("valid", 9)[:limit]
    assert [(sample.id, sample.groups["modality"]) for sample in samples] == [(row[0], row[2]) for row in rows]
    assert [sample.references[0] for sample in samples] == [row[1].strip() for row in rows]
    assert open_image(samples[-1].images[0]).size == (32, 32)
