"""What a board takes and what it refuses, with every reason at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mhe.boards.acceptance import RefusalError, check_weights, entrant_name
from mhe.boards.folders import open_board
from mhe.boards.publishing import without_paths
from mhe.documents.run import RunRecord
from mhe.errors import ModelUnusableError, UserError
from mhe.fingerprints import fingerprint_folder


def refusal(bench, board, *runs, **admission) -> str:
    with pytest.raises(RefusalError) as caught:
        bench.add(board, *runs, **admission)
    assert not list((board.path).glob("entries/*")), "nothing is written where something is refused"
    return str(caught.value)


def test_a_run_that_keeps_the_rules_is_taken_and_pins_the_digests(bench):
    board = bench.add(bench.new(), bench.make("Alpha Model/7B"))
    task = board.spec.tasks[0]
    assert (task.task_digest, task.data_digest) == ("d" * 64, "e" * 64)
    assert [e.name for e in board.spec.entrants] == ["alpha--model--7b"]
    folder = board.entry_path("alpha--model--7b", "toy-vqa", 0)
    assert sorted(p.name for p in folder.iterdir()) == ["run.json", "scores.jsonl.gz"]


def test_every_reason_is_given_at_once(bench):
    edit = {
        "status": "partial",
        "counts.answered": 58,
        "counts.system_errors": 2,
        "task.version": 2,
        "data.split": "train",
        "data.limit": 10,
        "generation.temperature": 0.5,
        "metrics.0.profile_version": "1",
        "metrics.0.provisional": True,
    }
    message = refusal(bench, bench.new(), bench.make(seed=9, edit=edit))
    for reason in ["partial: 2 of 60", "toy-vqa@1", "'train'", "limit", "generation.temperature", "profile version",
                   "provisional", "seed 9 is not one of the board's: 0, 1"]:  # fmt: skip
        assert reason in message, reason


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"data.digest": "0" * 64}, "data: the board pins"),
        ({"task.digest": "0" * 64}, "task document: the board pins"),
        ({"metrics.0.metric_version": "2"}, "version is pinned to '1'"),
        ({"metrics.0.options": {"strictness": 2}}, "options is pinned"),
        ({"metrics.0.profile": "lenient"}, "toy-accuracy under profile strict is missing"),
        ({"metrics.0.values.0.value": 0.99}, "toy.overall: the value is 0.99"),
        ({"metrics.0.values.1.low": 0.0}, "toy.closed: the lower end is 0.0"),
        ({"metrics.0.values.0.groups": {"modality": {"CT": 1.0}}}, "modality 'CT' is 1.0"),
        ({"metrics.0.file": "scores/gone.json"}, "scores/gone.json: cannot be read"),
        ({"task.name": "other"}, "task 'other' is not on board toy@v1"),
    ],
)
def test_each_rule_refuses(bench, edit, reason):
    board = bench.new()
    board.path.joinpath("board.yaml").write_text(
        board.path.joinpath("board.yaml")
        .read_text()
        .replace("task_digest: null", f"task_digest: {'d' * 64}")
        .replace("data_digest: null", f"data_digest: {'e' * 64}")
    )
    assert reason in refusal(bench, board, bench.make(edit=edit))


def test_another_encoder_is_another_metric(bench):
    board = bench.new()
    board = bench.add(board, bench.make("alpha", edit={"metrics.0.resources": {"encoder": "a" * 64}}))
    assert [pin.resources for pin in board.spec.tasks[0].pins] == [{"encoder": "a" * 64}]
    other = bench.make("beta", edit={"metrics.0.resources": {"encoder": "b" * 64}})
    for run in (other, bench.make("gamma")):
        with pytest.raises(RefusalError, match="resources is pinned to"):
            bench.add(board, run)


def test_one_refused_run_keeps_out_the_others(bench):
    board = bench.new()
    message = refusal(bench, board, bench.make("good"), bench.make("bad", edit={"status": "partial"}))
    assert "run-2" in message
    assert open_board(board.path).spec.entrants == ()


def test_a_folder_that_is_no_run_is_named(bench, tmp_path):
    assert "no run.json" in refusal(bench, bench.new(), tmp_path)


def test_an_entry_that_stands_there_is_replaced_only_when_asked(bench):
    board = bench.new()
    first, second = bench.make("alpha"), bench.make("alpha", right=0.5)
    board = bench.add(board, first)
    with pytest.raises(RefusalError, match="--replace"):
        bench.add(board, second)
    board = bench.add(board, second, replace=True, day="2025-03-04")
    assert [(c.action, c.date) for c in board.spec.changes] == [("added", "2025-02-03"), ("replaced", "2025-03-04")]


def test_adding_the_same_run_again_changes_nothing(bench):
    run = bench.make("alpha")
    board = bench.add(bench.new(), run)
    before = (board.path / "board.yaml").read_bytes()
    bench.add(board, run, day="2030-01-01")
    assert (board.path / "board.yaml").read_bytes() == before


def test_one_row_is_one_model_with_one_set_of_weights(bench):
    board = bench.add(bench.new(), bench.make("alpha"), entrant="row")
    with pytest.raises(RefusalError, match="is the model 'alpha'"):
        bench.add(board, bench.make("beta", seed=1), entrant="row")
    other = bench.make("alpha", seed=1, edit={"model.fingerprint": "9" * 64})
    with pytest.raises(RefusalError, match="other weights"):
        bench.add(board, other, entrant="row")
    with pytest.raises(UserError, match="lower-case"):
        bench.add(board, bench.make("alpha", seed=1), entrant="../escape")


def test_a_checkpoint_stands_under_its_training_seed(bench):
    runs = [
        bench.make("ckpt", seed=0, noise=s, edit={"model.seed": s, "model.fingerprint": str(s) * 64}) for s in (0, 1)
    ]
    board = bench.add(bench.new(), *runs)
    assert sorted(c.seed for c in board.spec.changes) == [0, 1]


def test_the_same_run_cannot_stand_on_two_rows(bench):
    run = bench.make("alpha")
    board = bench.add(bench.new(), run)
    with pytest.raises(RefusalError, match="the same run is the entrant alpha"):
        bench.add(board, run, entrant="again")


def test_weights_are_hashed_again_and_changed_ones_refused(bench, tmp_path):
    place = tmp_path / "weights"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"one")
    (place / "config.json").write_text("{}")
    found = fingerprint_folder(place)
    edit = {"model.location": str(place), "model.files": dict(found.files), "model.fingerprint": found.digest}
    board = bench.add(bench.new(), bench.make("alpha", edit=edit))
    assert board.spec.changes[0].weights == "hashed again"
    record = json.loads((board.entry_path("alpha", "toy-vqa", 0) / "run.json").read_text())
    assert record["model"]["location"] == "…/weights"
    (place / "model.safetensors").write_bytes(b"two")
    with pytest.raises(RefusalError, match=r"changed: model\.safetensors"):
        bench.add(board, bench.make("alpha", seed=1, edit=edit))


def test_weights_with_a_fingerprint_of_the_backends_own_are_read_file_by_file(bench, tmp_path):
    place = tmp_path / "weights"
    place.mkdir()
    (place / "model.safetensors").write_bytes(b"one")
    files = dict(fingerprint_folder(place).files)
    edit = {"model.location": str(place), "model.files": files, "model.fingerprint": "5" * 64}
    run = bench.make("alpha", edit=edit)
    assert check_weights(RunRecord.from_json(run / "run.json")) == "hashed again"
    (place / "model.safetensors").write_bytes(b"two")
    with pytest.raises(ModelUnusableError):
        check_weights(RunRecord.from_json(run / "run.json"))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({"model.verified": False}, "unverified"),
        ({"responses_from": "predictions.jsonl"}, "unverified"),
        ({"model.files": {}, "model.location": "majority"}, "no weights"),
        ({"model.files": {}, "model.location": "owner/name", "model.revision": "abc"}, "hub commit"),
        ({}, "not here"),
    ],
)
def test_what_is_known_of_weights_is_said(bench, edit, expected):
    board = bench.add(bench.new(), bench.make("alpha", edit=edit))
    assert board.spec.changes[0].weights == expected


def test_ids_that_are_texts_are_refused(bench):
    def leak(scores):
        scores["ids"][3] = "Is there a pneumothorax in the left lung, and if so, how large is it?\nNo." * 5

    assert "not text" in refusal(bench, bench.new(), bench.make(score_edit=leak))


def test_a_frozen_version_takes_nothing(bench):
    old = bench.new()
    bench.new(version=2)
    with pytest.raises(UserError, match="frozen"):
        bench.add(old, bench.make())


def test_comments_of_board_yaml_survive(bench):
    board = bench.new()
    path = board.path / "board.yaml"
    text = path.read_text().replace("seeds:", "# three would be better\nseeds:")
    path.write_text(text + "# a last word\n")
    board = bench.add(board, bench.make("alpha"))
    path.write_text(path.read_text().replace("changes:", "\n# who came when\n\nchanges:"))
    board = bench.add(board, bench.make("beta"))
    after = path.read_text()
    assert "\n# who came when\n\nchanges:" in after
    assert "# three would be better\nseeds:" in after
    assert "# a last word" in after
    assert [e.name for e in board.spec.entrants] == ["alpha", "beta"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mhe eval --model /home/me/weights/x --data-dir=/data/a b", "mhe eval --model …/x --data-dir=…/a b"),
        ("http://host:8000/v1/chat owner/name a/b/c", "http://host:8000/v1/chat owner/name a/b/c"),
        ("~/models/mine '/x y/z'", "…/mine '/x y/z'"),
    ],
)
def test_paths_of_a_machine_are_not_published(text, expected):
    assert without_paths(text) == expected
    assert without_paths(expected) == expected


def test_a_row_has_a_name_that_is_a_folder(bench):
    for name, expected in [("Org/Model_7B", "org--model_7b"), ("…", "unnamed"), ("a@2", "a-2"), ("../../x", "x")]:
        record = RunRecord.from_json(Path(bench.make("m", edit={"model.name": name})) / "run.json")
        assert entrant_name(record) == expected
