"""`mhe data info`, `list` and `audit`: people's text, one JSON document, exit codes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mhe.cli.main import cli
from mhe.errors import MheError
from releases import make_rocov2

real = pytest.mark.skipif("MHE_TEST_DATA" not in os.environ, reason="MHE_TEST_DATA is not set: no real data here")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["data", *arguments])


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_rocov2(tmp_path_factory.mktemp("rocov2"), {"train": 10, "valid": 5, "test": 330}))


def vqa_rad() -> str:
    return str(Path(os.environ["MHE_TEST_DATA"]) / "vqa_rad")


@real
def test_audit_warns_in_its_first_lines() -> None:
    result = run("audit", "vqa-rad", "--data-dir", vqa_rad())
    lines = result.stdout.splitlines()
    assert result.exit_code == 0
    assert lines[0].startswith("WARNING: 202 of the 203 images of 'test' are also in 'train' (446 samples")
    assert lines[1].startswith("  task.yaml declares it: ")
    assert "Image files that no sample shows: 1 (synpic35356.jpg)" in lines
    assert run("audit", "vqa-rad", "--data-dir", vqa_rad(), "--strict").exit_code == 0


@real
def test_audit_as_json_is_one_document() -> None:
    document = json.loads(run("audit", "vqa-rad", "--data-dir", vqa_rad(), "--json").stdout)
    assert document["shared"][0]["images"] == 202
    assert document["splits"]["test"]["answer_types"] == {"closed": 272, "open": 179}


@real
def test_audit_without_images_says_so() -> None:
    result = run("audit", "slake", "--data-dir", str(Path(os.environ["MHE_TEST_DATA"]) / "slake"))
    assert result.stdout.splitlines()[0].startswith(
        "NOTE: no image could be read here: images are compared by their names"
    )
    assert "No image is in two of the splits read (by name)." in result.stdout


@real
def test_info_counts_by_split_and_group() -> None:
    result = run("info", "vqa-rad", "--data-dir", vqa_rad())
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["test", "451", "203", "451", "272", "closed,", "179", "open"] in rows
    assert ["question_type", "size", "129", "46"] in rows
    document = json.loads(run("info", "vqa-rad", "--data-dir", vqa_rad(), "--json").stdout)
    assert document["splits"]["train"]["samples"] == 1797
    assert document["deviations"] == []


def test_strict_audit_fails_on_an_undeclared_leak(tmp_path: Path) -> None:
    folder = make_rocov2(tmp_path, {"train": 6, "valid": 4, "test": 6})
    leaked = min((folder / "train_images" / "train").iterdir())
    min((folder / "test_images" / "test").iterdir()).write_bytes(leaked.read_bytes())
    calm = run("audit", "roco", "--data-dir", str(folder))
    assert calm.exit_code == 0
    assert calm.stdout.startswith("WARNING: 1 of the 6 images of 'test' are also in 'train' (1 samples of 'test'")
    assert "task.yaml does not declare it" in calm.stdout
    assert run("audit", "roco", "--data-dir", str(folder), "--strict").exit_code == 2


def test_info_of_an_incomplete_release_leaves_with_2(release: str) -> None:
    result = run("info", "roco", "--data-dir", release)
    assert result.exit_code == 2
    assert "split 'test' has 330 samples, the publisher counts 9927" in result.stderr


def test_subset_is_listed(release: str) -> None:
    result = run("list", "roco-327", "--data-dir", release, "--json")
    document = json.loads(result.stdout)
    assert len(document["samples"]) == 327
    assert (
        "fixed subset of 327 samples, stratified by modality"
        in run("info", "roco-327", "--data-dir", release, "--split", "test").stdout
    )
    table = run("list", "roco-327", "--data-dir", release, "--limit", "3").stdout.splitlines()
    assert len(table) == 5
    assert table[2].startswith("ROCOv2_2023_test_000001")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audit", "vqa-rd"], r"Did you mean 'vqa-rad'"),
        (["audit", "roco-327", "--offline"], r"zenodo"),
        (["info", "roco", "--split", "valid", "--offline"], r"no split named 'valid'"),
        (["info", "roco", "--data-dir", "/no/such/folder"], r"no such folder"),
        (["audit", "vqa-rad", "--threshold", "99"], r"threshold"),
    ],
)
def test_mistakes(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MHE_DATA_DIR", raising=False)
    result = run(*arguments)
    if isinstance(result.exception, MheError):
        assert result.exception.exit_code == 2
        text = str(result.exception)
    else:
        assert result.exit_code == 2
        text = result.stderr
    assert re.search(message, text)
