"""SLAKE: the real annotations in both languages, made images, the archive, and the hub's snapshot."""

from __future__ import annotations

import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from mhe import DataMissingError, DocumentError, ReadContext, Sample, SampleDataError, open_image
from mhe_tasks.readers import slake
from mhe_tasks.readers.release import ArchivedImage
from mhe_tasks.readers.slake import SlakeOptions, SlakeReader
from releases import make_slake, make_slake_copy, tiny_jpeg

real = pytest.mark.skipif("MHE_TEST_DATA" not in os.environ, reason="MHE_TEST_DATA is not set: no real SLAKE here")
GOOD = {
    "qid": 5,
    "img_name": "xmlab1/source.jpg",
    "question": "What is it?",
    "answer": "Liver",
    "q_lang": "en",
    "location": "Abdomen",
    "modality": "CT",
    "answer_type": "OPEN",
    "content_type": "Organ",
}


def annotations() -> Path:
    return Path(os.environ["MHE_TEST_DATA"]) / "slake"


def read(split: str, folder: Path | None, language: str = "en", **context: object) -> list[Sample]:
    reader = SlakeReader(SlakeOptions(language=language, unanswered=("1622",)))
    return list(reader.read(ReadContext(split=split, data_dir=folder, **context)))


def write(folder: Path, entries: object) -> Path:
    (folder / "imgs" / "xmlab1").mkdir(parents=True)
    (folder / "imgs" / "xmlab1" / "source.jpg").write_bytes(tiny_jpeg(1))
    (folder / "test.json").write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    return folder


@real
@pytest.mark.parametrize(
    ("language", "counts"), [("en", (4918, 1053, 1061)), ("zh", (4916, 1046, 1033))], ids=["english", "chinese"]
)
def test_real_annotations(language: str, counts: tuple[int, ...]) -> None:
    parts = [read(s, annotations(), language, need_images=False) for s in ("train", "validation", "test")]
    assert tuple(len(part) for part in parts) == counts
    names = [{sample.images[0].id for sample in part} for part in parts]
    assert [len(part) for part in names] == [450, 96, 96]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]


@real
def test_real_english_test_split() -> None:
    samples = read("test", annotations(), need_images=False)
    assert Counter(sample.answer_type for sample in samples) == {"open": 645, "closed": 416}
    assert Counter(sample.groups["modality"] for sample in samples) == {"CT": 472, "X-Ray": 361, "MRI": 228}
    assert samples[0].id == "11934"
    assert samples[0].groups == {
        "modality": "CT",
        "organ": "Lung",
        "question_type": "Modality",
        "answer_type": "open",
    }


@real
def test_mixing_the_languages_would_leak_142_images() -> None:
    def names(split: str, language: str) -> set[str]:
        return {sample.images[0].id for sample in read(split, annotations(), language, need_images=False)}

    leaked = len(names("train", "zh") & names("test", "en")) + len(names("train", "en") & names("test", "zh"))
    assert leaked == 142


@real
def test_the_unanswered_question_is_a_problem_unless_it_is_named() -> None:
    reader = SlakeReader(SlakeOptions())
    with pytest.raises(DocumentError, match=r"entry 1623 \(qid 1622\): answer is unusable: ''"):
        list(reader.read(ReadContext(split="train", data_dir=annotations(), need_images=False)))


@real
@pytest.mark.parametrize("zipped", [False, True])
def test_made_images_are_found_under_the_642_names(tmp_path: Path, zipped: bool) -> None:
    make_slake(tmp_path, annotations(), zipped=zipped)
    samples = [sample for split in slake.FILES for sample in read(split, tmp_path)]
    assert len({sample.images[0].id for sample in samples}) == 642
    assert len({sample.images[0].source.digest() for sample in samples}) == 642
    assert open_image(samples[0].images[0]).size == (32, 32)


@real
def test_hub_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    folder = make_slake_copy(tmp_path, annotations())
    asked: list[object] = []

    def snapshot(repository: str, **options: object) -> str:
        asked.append((repository, options["revision"], options["repo_type"], "imgs.zip" in options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(slake, "refuse_unreachable_hub", lambda *_: None)
    samples = read("validation", None, hub="BoKelvin/SLAKE", revision="a9083ce")
    assert asked == [("BoKelvin/SLAKE", "a9083ce", "dataset", True)]
    assert len(samples) == 1053
    assert open_image(samples[0].images[0]).mode == "RGB"


def test_a_hub_that_fails_without_a_word_is_missing_data(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(slake, "refuse_unreachable_hub", lambda *_: None)
    with pytest.raises(DataMissingError, match=r"TimeoutError for o/n@r\.[\s\S]*--data-dir"):
        read("test", None, hub="o/n", revision="r")


def test_a_damaged_image_in_an_archive_is_an_error_of_its_sample(tmp_path: Path) -> None:
    archive = tmp_path / "imgs.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as stream:
        stream.writestr("a.jpg", b"abcdefgh" * 1000)
    content = bytearray(archive.read_bytes())
    content[36:44] = b"\xff" * 8
    archive.write_bytes(content)
    with pytest.raises(SampleDataError, match=r"a\.jpg"):
        ArchivedImage(archive, "a.jpg").read()


def test_all_problems_at_once(tmp_path: Path) -> None:
    entries = [
        GOOD,
        GOOD | {"answer": "again"},
        GOOD | {"qid": 6, "q_lang": "fr"},
        GOOD | {"qid": 7, "img_name": "/etc/passwd"},
        GOOD | {"qid": 8, "answer_type": "closed?", "question": "  "},
        3,
    ]
    with pytest.raises(DocumentError) as caught:
        read("test", write(tmp_path, entries))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "entry 2",
        "entry 3 (qid 6)",
        "entry 4 (qid 7)",
        "entry 5 (qid 8)",
        "entry 5 (qid 8)",
        "entry 6",
    ]


def test_missing_data(tmp_path: Path) -> None:
    with pytest.raises(DataMissingError, match=r"no file validate\.json or validation\.json"):
        read("validation", write(tmp_path, [GOOD]))
    with pytest.raises(DataMissingError, match=r"med-vqa[\s\S]*--data-dir[\s\S]*MHE_DATA_DIR"):
        read("test", None)
    (tmp_path / "imgs" / "xmlab1" / "source.jpg").unlink()
    sample = read("test", tmp_path)[0]
    with pytest.raises(SampleDataError):
        open_image(sample.images[0])


def test_missing_image_folder(tmp_path: Path) -> None:
    write(tmp_path, [GOOD])
    (tmp_path / "imgs").rename(tmp_path / "elsewhere")
    with pytest.raises(DataMissingError, match=r"no folder imgs/ and no imgs\.zip"):
        read("test", tmp_path)
    (tmp_path / "imgs.zip").write_bytes(b"PK, cut off")
    with pytest.raises(DocumentError, match="not a zip file"):
        read("test", tmp_path)
