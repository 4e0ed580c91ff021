"""Documents on disk: strict, versioned, and every problem at once with its line."""

from __future__ import annotations

import pytest

from mhe.documents.base import Document
from mhe.documents.migrations import MIGRATIONS
from mhe.documents.task import TaskSpec
from mhe.errors import DocumentError
from mhe.task_files import read_task_file

GOOD = """\
schema_version: 1
name: toy
version: 1
title: Toy
kind: vqa
summary: A toy
source: {homepage: here, licence: CC0, citation: none}
reader: {name: toy}
splits:
  train: {}
  test: {}
prompt:
  user: "{question}"
metrics: [accuracy]
primary: accuracy
profile: strict
"""


def write(tmp_path, text):
    path = tmp_path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_good_task_reads_from_file_and_folder(tmp_path):
    path = write(tmp_path, GOOD)
    assert read_task_file(path) == read_task_file(tmp_path)
    assert read_task_file(path).key == "toy@1"


def test_all_problems_come_at_once_with_their_lines(tmp_path):
    text = (
        GOOD.replace("version: 1\ntitle", "version: zero\ntitle")
        .replace("kind: vqa", "kind: guess")
        .replace("metrics: [accuracy]", "metrics: []\nmetric: accuracy")
        .replace("primary: accuracy\n", "")
    )
    with pytest.raises(DocumentError) as caught:
        read_task_file(write(tmp_path, text))
    shown = str(caught.value)
    assert "task.yaml: 5 problems" in shown
    assert "line 3: version:" in shown
    assert "'zero'" in shown
    assert "line 5: kind:" in shown
    assert "line 14: metrics:" in shown
    assert "line 15: metric: no such key" in shown
    assert "primary: required, and missing" in shown


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [unclosed", "line 2: not valid YAML"),
        ("- a\n- b\n", "expected a mapping at the top, found list"),
        ("", "expected a mapping"),
        (GOOD + "name: again\n", r"line 17: name: given twice \(first on line 2\)"),
        (GOOD.replace("schema_version: 1", "schema_version: 99"), "newer than this mhe"),
        (GOOD.replace("schema_version: 1", "schema_version: 0"), "no migration"),
        (GOOD.replace('"{question}"', "no place for it"), r"must contain \{question\}"),
        (GOOD + "default_split: exam\n", "default_split 'exam' is not one of splits: train, test"),
        (GOOD.replace("citation: none", "citation: none, hub: a/b"), "revision"),
    ],
)
def test_malformed_tasks_are_explained(tmp_path, text, says):
    with pytest.raises(DocumentError, match=says):
        read_task_file(write(tmp_path, text))


def test_a_file_that_is_no_text_is_explained(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DocumentError, match="cannot be read"):
        read_task_file(path)


def test_an_old_document_is_migrated_step_by_step(monkeypatch):
    class Note(Document):
        current_version = 3
        text: str

    monkeypatch.setitem(MIGRATIONS, ("Note", 1), lambda data: {"body": data.pop("words"), **data})
    monkeypatch.setitem(MIGRATIONS, ("Note", 2), lambda data: {"text": data.pop("body"), **data})
    note = Note.from_data({"schema_version": 1, "words": "kept"}, "note")
    assert (note.text, note.schema_version) == ("kept", 3)


def test_task_documents_survive_their_own_dump(tmp_path):
    task = read_task_file(write(tmp_path, GOOD))
    assert TaskSpec.from_data(task.model_dump(mode="json"), "again") == task
