"""One kept example of every document in every version that was ever written: all of them must load for ever."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mhe.documents.base import Document
from mhe.documents.board import BoardSpec
from mhe.documents.checkpoint import Checkpoint
from mhe.documents.measurement import Measurement
from mhe.documents.model import ModelSpec
from mhe.documents.pipeline import PipelineSpec, PipelineVariant
from mhe.documents.run import RunRecord
from mhe.documents.task import TaskSpec
from mhe.errors import DocumentError
from mhe.task_files import read_document

KINDS = (TaskSpec, ModelSpec, PipelineSpec, PipelineVariant, Checkpoint, RunRecord, BoardSpec, Measurement)
EXAMPLES = sorted((Path(__file__).parent / "data" / "documents").iterdir())


def kind_and_version(path: Path) -> tuple[type[Document], int]:
    name, version = re.fullmatch(r"(\w+)-(\d+)\.(?:json|yaml)", path.name).groups()
    return next(kind for kind in KINDS if kind.__name__ == name), int(version)


def read(path: Path) -> Document:
    kind, _ = kind_and_version(path)
    return kind.from_json(path) if path.suffix == ".json" else read_document(kind, path)


def test_every_version_of_every_document_has_an_example():
    there = {(kind, version) for kind, version in map(kind_and_version, EXAMPLES)}
    assert there == {(kind, version) for kind in KINDS for version in range(1, kind.current_version + 1)}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_example_loads_and_survives_its_own_dump(path):
    kind, version = kind_and_version(path)
    assert f'schema_version": {version}' in path.read_text() or f"schema_version: {version}" in path.read_text()
    document = read(path)
    assert document.schema_version == kind.current_version
    assert kind.from_data(json.loads(document.to_json()), "dump") == document


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_unknown_key_is_refused(path):
    kind, _ = kind_and_version(path)
    data = json.loads(read(path).to_json())
    with pytest.raises(DocumentError, match="surprise: no such key"):
        kind.from_data({**data, "surprise": 1}, "example")
