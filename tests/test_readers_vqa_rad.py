"""VQA-RAD: the real release, its published mistakes, other people's mistakes, and the hub copy."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mhe import DataMissingError, DocumentError, ReadContext, Sample, open_image
from mhe_tasks.readers import hub
from mhe_tasks.readers.vqa_rad import ANNOTATIONS, VqaRadOptions, VqaRadReader, main_question_type
from releases import make_vqa_rad_copy, tiny_jpeg

real = pytest.mark.skipif("MHE_TEST_DATA" not in os.environ, reason="MHE_TEST_DATA is not set: no real VQA-RAD here")
GOOD = {
    "qid": "1",
    "phrase_type": "test_freeform",
    "image_name": "a.jpg",
    "image_organ": "HEAD",
    "question": "Is it?",
    "question_type": "PRES",
    "answer": "Yes",
    "answer_type": "CLOSED",
}


def read(split: str, folder: Path | None, **context: object) -> list[Sample]:
    return list(VqaRadReader(VqaRadOptions()).read(ReadContext(split=split, data_dir=folder, **context)))


def write(folder: Path, entries: object) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / "a.jpg").write_bytes(tiny_jpeg(1))
    (folder / ANNOTATIONS).write_text(json.dumps(entries), encoding="utf-8")
    return folder


@real
def test_real_release_has_the_published_counts() -> None:
    folder = Path(os.environ["MHE_TEST_DATA"]) / "vqa_rad"
    test, train = read("test", folder), read("train", folder)
    assert (len(test), len(train)) == (451, 1797)
    assert Counter(sample.answer_type for sample in test) == {"closed": 272, "open": 179}
    assert len({sample.images[0].id for sample in test}) == 203
    assert len({sample.id for sample in [*test, *train]}) == 2248
    assert {type(sample.id) for sample in [*test, *train]} == {str}
    assert {sample.groups["organ"] for sample in test} == {"head", "chest", "abd"}
    assert sum(sample.groups["question_type"] == "pres" for sample in [*test, *train]) == 813
    assert "unknown" not in {sample.groups["question_type"] for sample in [*test, *train]}
    assert sorted(s.references[0] for s in [*test, *train] if s.references[0].isdigit())[:2] == ["12", "12"]
    assert open_image(test[0].images[0]).mode == "RGB"


def test_published_mistakes_are_mended(tmp_path: Path) -> None:
    entries = [
        GOOD,
        GOOD | {"qid": 2, "answer_type": "CLOSED ", "answer": 12, "question_type": "PRSE", "question": " Is it? "},
        GOOD | {"qid": 3, "question_type": "Size, COLOR", "phrase_type": "test_para", "answer_type": "OPEN"},
    ]
    first, second, third = read("test", write(tmp_path, entries))
    assert (second.id, second.references, second.answer_type, second.question) == ("2", ("12",), "closed", "Is it?")
    assert second.groups == {"organ": "head", "question_type": "pres", "phrasing": "freeform"}
    assert third.groups["question_type"] == "size"
    assert third.groups["phrasing"] == "paraphrase"
    assert first.resampling_unit == "a.jpg"


def test_question_types() -> None:
    assert main_question_type("ATRIB") == "attrib"
    assert main_question_type("POS, PRES") == "pos"
    assert main_question_type("NONSENSE") is None


def test_all_problems_at_once_with_their_entry(tmp_path: Path) -> None:
    entries = [
        GOOD,
        GOOD,
        GOOD | {"qid": 7, "answer": ""},
        GOOD | {"qid": 8, "answer_type": "MAYBE"},
        GOOD | {"qid": 9, "image_name": "../../etc/passwd"},
        GOOD | {"qid": 10, "phrase_type": "other"},
        GOOD | {"qid": 11, "question_type": "XYZ"},
        GOOD | {"qid": 12, "question": None},
        "no mapping",
        {"qid": 13},
    ]
    with pytest.raises(DocumentError) as caught:
        read("test", write(tmp_path, entries))
    text = str(caught.value)
    for wanted in [
        "entry 2: qid 1 stands at entry 1 as well",
        "entry 3 (qid 7): answer is unusable: ''",
        "entry 4 (qid 8): answer_type is 'MAYBE', allowed are CLOSED and OPEN",
        "entry 5 (qid 9): image_name '../../etc/passwd' leaves the image folder",
        "entry 6 (qid 10): phrase_type is 'other'",
        "entry 7 (qid 11): question_type is 'XYZ'",
        "entry 8 (qid 12): question is unusable: None",
        "entry 9: expected a mapping, found str",
        "entry 10 (qid 13): answer is missing",
        ANNOTATIONS,
    ]:
        assert wanted in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"qid": 1,\n "x"', "line 2"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b'{"a": 1}', "expected a list of questions, found dict"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    write(tmp_path, [])
    (tmp_path / ANNOTATIONS).write_bytes(content)
    with pytest.raises(DocumentError, match=message):
        read("test", tmp_path)


def test_a_flood_of_problems_is_cut_and_counted(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="and 400 more") as caught:
        read("test", write(tmp_path, ["x"] * 500))
    assert len(caught.value.problems) == 101


def test_missing_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError) as caught:
        read("test", None)
    for wanted in ["osf.io/89kps", ANNOTATIONS, "--data-dir", "$MHE_DATA_DIR/vqa_rad"]:
        assert wanted in str(caught.value)
    with pytest.raises(DataMissingError, match=f"no file '{ANNOTATIONS}'"):
        read("test", tmp_path)
    with pytest.raises(DataMissingError, match="--offline"):
        read("test", None, hub="flaviagiammarino/vqa-rad", revision="x", offline=True)


def test_a_missing_image_folder_is_an_error_only_where_images_are_needed(tmp_path: Path) -> None:
    write(tmp_path, [GOOD])
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(DataMissingError, match="no folder images/"):
        read("test", tmp_path)
    assert len(read("test", tmp_path, need_images=False)) == 1


def test_a_missing_image_is_the_samples_own_error(tmp_path: Path) -> None:
    from mhe import SampleDataError

    _, absent = read("test", write(tmp_path, [GOOD, GOOD | {"qid": 2, "image_name": "b.jpg"}]))
    with pytest.raises(SampleDataError, match=r"b\.jpg"):
        open_image(absent.images[0])


def test_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no split 'validation'; it has: train, test"):
        read("validation", write(tmp_path, [GOOD]))


# ---------------------------------------------------------------- the hub copy

PICTURE, OTHER = tiny_jpeg(1), tiny_jpeg(2)
ROWS = {
    "train": [(PICTURE, "is it?", "yes"), (OTHER, "what?", "liver")],
    "test": [(PICTURE, "where?", "left"), (PICTURE, "is it?", "No"), (OTHER, "when?", "now ")],
}


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub._open_table.cache_clear()
    return make_vqa_rad_copy(tmp_path / "copy", ROWS)


@pytest.fixture
def asked(copy: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The hub, played by the local copy; what was asked of it."""
    import datasets

    calls: list[tuple[object, ...]] = []
    load = datasets.load_dataset

    def answer(path: str, *, revision: str | None, split: str, streaming: bool) -> object:
        calls.append((path, revision, split, streaming))
        return load(str(copy), split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", answer)
    monkeypatch.setattr(hub, "refuse_unreachable_hub", lambda *_: None)
    return calls


@pytest.mark.parametrize("limit", [None, 2])
def test_hub_copy(asked: list[tuple[object, ...]], limit: int | None) -> None:
    samples = read("test", None, hub="flaviagiammarino/vqa-rad", revision="bcf91e7", limit=limit)
    assert asked == [("flaviagiammarino/vqa-rad", "bcf91e7", "test", limit is not None)]
    assert [sample.id for sample in samples] == ["test-0", "test-1", "test-2"][:limit]
    assert [sample.answer_type for sample in samples] == ["open", "closed", "open"][:limit]
    assert samples[0].resampling_unit == samples[1].resampling_unit
    assert samples[0].images[0].source.read() == PICTURE
    if limit is None:
        assert samples[2].references == ("now",)
        assert samples[2].resampling_unit != samples[0].resampling_unit


def test_a_fetched_image_survives_pickling(asked: list[tuple[object, ...]]) -> None:
    sample = read("test", None, hub="flaviagiammarino/vqa-rad", revision="bcf91e7")[0]
    data = pickle.dumps(sample.images[0].source)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert again.read() == PICTURE
    assert again.digest() == sample.images[0].source.digest()


def test_parquet_files_in_the_data_folder_do_as_well(copy: Path) -> None:
    assert [sample.references for sample in read("train", copy)] == [("yes",), ("liver",)]


def test_hub_copy_with_other_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_dict({"question": ["a"], "reply": ["b"]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    monkeypatch.setattr(hub, "refuse_unreachable_hub", lambda *_: None)
    hub._open_table.cache_clear()
    with pytest.raises(DocumentError) as caught:
        read("test", None, hub="o/n", revision="r")
    assert "no column 'image'; found: question, reply" in str(caught.value)
    assert "no column 'answer'" in str(caught.value)


def test_a_hub_that_fails_is_missing_data(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(hub, "refuse_unreachable_hub", lambda *_: None)
    hub._open_table.cache_clear()
    with pytest.raises(DataMissingError, match=r"ConnectionError for o/n@r, split test: no route[\s\S]*--data-dir"):
        read("test", None, hub="o/n", revision="r")


def test_a_hub_that_fails_in_the_middle_is_missing_data(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    class Broken:
        column_names = ("image", "question", "answer")

        def cast_column(self, *_: object) -> Broken:
            return self

        def __iter__(self) -> Iterator[dict[str, object]]:
            yield {"image": {"bytes": b"x"}, "question": "Is it?", "answer": "yes"}
            raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Broken())
    monkeypatch.setattr(hub, "refuse_unreachable_hub", lambda *_: None)
    with pytest.raises(DataMissingError, match=r"ConnectionError for o/n@r, split test\.[\s\S]*--data-dir"):
        read("test", None, hub="o/n", revision="r", limit=2)


def test_an_unknown_host_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError("name not known")

    monkeypatch.setattr(hub.socket, "getaddrinfo", unknown)
    monkeypatch.setattr(hub, "getproxies", dict)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(DataMissingError, match="is not known here"):
        read("test", None, hub="o/n", revision="r")


def test_without_datasets_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    from mhe import MissingExtraError

    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(hub, "refuse_unreachable_hub", lambda *_: None)
    hub._open_table.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'mhe\[data\]'"):
        read("test", None, hub="o/n", revision="r")
