"""Checkpoints on disk: found by name and seed, there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhe.checkpoints import (
    CheckpointName,
    adopt_checkpoint,
    changed_files,
    checkpoint_seeds,
    checkpoints_dir,
    find_checkpoint,
    find_step,
    list_checkpoints,
    read_checkpoint,
    remove_work,
    write_checkpoint,
)
from mhe.documents.checkpoint import Checkpoint, TrainingCost
from mhe.documents.model import Lineage
from mhe.environment import describe_code, describe_environment
from mhe.errors import DocumentError, MheError, ModelUnusableError, UnknownNameError, UserError
from mhe.fingerprints import fingerprint_folder


def draft(name="mine", seed=0, digest="d0"):
    return Checkpoint(
        name=name, seed=seed, backend="hf", model_folder="", recipe="full", recipe_version="1", recipe_options={},
        step_digest=digest, parent="base", parent_location="/somewhere", parent_fingerprint="f",
        lineage=(Lineage(recipe="full", parent="base", parent_fingerprint="f", seed=seed, data="t@1 train"),),
        fingerprint="the recipe's claim", files={"claim": "0"}, bytes_on_disk=0, parameters=4, trainable_parameters=1,
        cost=TrainingCost(seconds=2.0), environment=describe_environment(), code=describe_code(), command="mhe tune",
        finished="2026-01-01T00:00:00+00:00",
    )  # fmt: skip


def made(folder: Path, content: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


def write(root, tmp_path, name="mine", seed=0, **changes):
    source = made(tmp_path / f"job-{name}-{seed}")
    return write_checkpoint(root / name / str(seed), source, draft(name, seed, **changes))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("mine", ("mine", None)),
        ("mine@2", ("mine", 2)),
        ("llava-kd.v1@10", ("llava-kd.v1", 10)),
        ("org/name", None),
        ("./mine", None),
        ("mine@", None),
        ("mine@x", None),
        ("mine@-1", None),
        ("../mine", None),
        ("", None),
        ("mine\n", None),
    ],
)
def test_names(text, parts):
    found = CheckpointName.parse(text)
    assert (found and (found.name, found.seed)) == parts


def test_the_core_hashes_and_the_recipe_cannot(root, tmp_path):
    written = write(root, tmp_path)
    actual = fingerprint_folder(root / "mine" / "0" / "model")
    assert written.fingerprint == actual.digest
    assert set(written.files) == {"model.safetensors", "config.json"}
    assert written.bytes_on_disk == 9
    assert read_checkpoint(root / "mine" / "0") == written


def test_found_as_a_model_with_lineage_and_seed(root, tmp_path):
    write(root, tmp_path)
    write(root, tmp_path, seed=2, digest="d2")
    spec = find_checkpoint("mine", root)
    assert (spec.name, spec.seed, spec.backend) == ("mine", 0, "hf")
    assert Path(spec.location) == (root / "mine" / "0" / "model").resolve()
    assert spec.lineage[0].parent == "base"
    assert find_checkpoint("mine@2", root).seed == 2
    assert find_checkpoint("mine", root, seed=2).seed == 2
    assert checkpoint_seeds("mine", root) == [0, 2]
    assert list_checkpoints(root) == ["mine@0", "mine@2"]


def test_not_found(root, tmp_path):
    assert find_checkpoint("mine", root) is None
    assert list_checkpoints(root) == []
    write(root, tmp_path)
    assert find_checkpoint("other", root) is None
    assert find_checkpoint("org/mine", root) is None
    with pytest.raises(UnknownNameError, match="mine@0"):
        find_checkpoint("mine@7", root)
    with pytest.raises(UserError, match="one of them"):
        find_checkpoint("mine@0", root, seed=1)


def test_the_directory_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MHE_CHECKPOINTS_DIR", str(tmp_path / "there"))
    assert checkpoints_dir() == tmp_path / "there"
    assert checkpoints_dir(tmp_path) == tmp_path
    monkeypatch.delenv("MHE_CHECKPOINTS_DIR")
    assert checkpoints_dir() == Path("checkpoints")


def test_nothing_is_replaced_unless_asked(root, tmp_path):
    write(root, tmp_path)
    other = made(tmp_path / "second", b"other weights")
    with pytest.raises(UserError, match="--replace"):
        write_checkpoint(root / "mine" / "0", other, draft())
    assert other.is_dir()
    write_checkpoint(root / "mine" / "0", other, draft(), replace=True)
    assert (root / "mine" / "0" / "model" / "model.safetensors").read_bytes() == b"other weights"
    assert [path.name for path in (root / "mine").iterdir()] == ["0"]


def test_a_result_without_weights_leaves_the_old_one(root, tmp_path):
    before = write(root, tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelUnusableError, match="no weights"):
        write_checkpoint(root / "mine" / "0", empty, draft(), replace=True)
    assert read_checkpoint(root / "mine" / "0") == before


def test_an_unfinished_folder_is_no_checkpoint(root, tmp_path):
    made(root / "mine" / ".0.new" / "model")
    (root / "mine" / ".0.new" / "checkpoint.json").write_text("{}")
    made(root / "mine" / "1" / "model")
    assert list_checkpoints(root) == []
    assert find_checkpoint("mine@1", root) is None
    write(root, tmp_path)
    assert list_checkpoints(root) == ["mine@0"]


def test_a_damaged_document_is_named(root, tmp_path):
    write(root, tmp_path)
    (root / "mine" / "0" / "checkpoint.json").write_text('{"name": "mine", "sed": 0}')
    with pytest.raises(DocumentError, match="sed: no such key"):
        find_checkpoint("mine", root)


def test_changed_files_are_seen(root, tmp_path):
    written = write(root, tmp_path)
    folder = root / "mine" / "0"
    assert changed_files(folder, written) == []
    (folder / "model" / "config.json").write_text('{"a": 1}')
    (folder / "model" / "model.safetensors").unlink()
    assert changed_files(folder, written) == ["config.json", "model.safetensors"]


def test_a_damaged_document_of_another_step_is_passed_over_and_told(root, tmp_path, caplog):
    write(root, tmp_path, digest="same")
    damaged = root / "a-broken-one" / "0"
    damaged.mkdir(parents=True)
    (damaged / "checkpoint.json").write_text("{")
    found = find_step("same", root)
    assert found is not None
    assert found[1].name == "mine"
    assert "a-broken-one" in caplog.text


def test_a_step_is_found_by_digest_and_adopted(root, tmp_path):
    write(root, tmp_path, digest="same")
    folder, found = find_step("same", root)
    assert find_step("else", root) is None
    (folder / "pruning.json").write_text("what the recipe kept")
    adopt_checkpoint(root / "second" / "0", folder, found.model_copy(update={"name": "second"}))
    assert (root / "second" / "0" / "pruning.json").read_text() == "what the recipe kept"
    assert [read_checkpoint(root / name / "0").name for name in ("mine", "second")] == ["mine", "second"]
    spec = find_checkpoint("second", root)
    assert Path(spec.location, "model.safetensors").read_bytes() == b"weights"
    with pytest.raises(UserError, match="--replace"):
        adopt_checkpoint(root / "second" / "0", folder, found)


def test_the_card_tells_lineage_and_share(root, tmp_path):
    write(root, tmp_path)
    card = (root / "mine" / "0" / "README.md").read_text()
    assert "1. full of `base` on t@1 train, seed 0" in card
    assert "4, of which 1 were trained (25.000%)" in card
    assert "mhe eval --model mine@0" in card


def test_only_work_folders_are_removed(tmp_path):
    precious = made(tmp_path / "precious")
    with pytest.raises(MheError):
        remove_work(precious)
    assert precious.is_dir()
