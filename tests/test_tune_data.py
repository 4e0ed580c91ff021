"""Training data: prompts are evaluation's, and nothing that boards evaluate is trained on."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import yaml

import tune_cases
from mhe.documents.pipeline import TrainingChoice
from mhe.errors import UnknownNameError, UserError
from mhe.prompting import build_request
from mhe.samples import load_samples
from mhe.training_data import load_training_set, normalised_question


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad")


def load(catalog, release, seed=0, **choice):
    return load_training_set(
        catalog, [TrainingChoice(task="vqa-rad", **choice)], seed=seed, data_dir=release, offline=True
    )


def undeclared_task(catalog, folder: Path) -> Path:
    """VQA-RAD's task without its declaration of shared images."""
    content = json.loads(catalog.task("vqa-rad").model_dump_json(exclude={"shared_images"}))
    content["name"] = "undeclared"
    folder.mkdir()
    (folder / "task.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "task.yaml"


def test_prompts_are_those_of_evaluation(catalog, release):
    task = catalog.task("vqa-rad")
    samples = {s.id: s for s in load_samples(catalog, task, split="train", data_dir=release).samples}
    for example in load(catalog, release).train:
        sample = samples[example.sample.id]
        asked = build_request(task, sample, task.generation, 0)
        assert example.request.messages == asked.messages
        assert example.request.digest == asked.digest
        assert example.answer == sample.references[0]


def test_a_repeated_pair_is_dropped_and_counted(catalog, release):
    found = load(catalog, release)
    assert found.guard.dropped_pairs == 1
    assert found.guard.shared_images == 3
    kept = {e.sample.question for e in (*found.train, *found.validation)}
    assert "where is the lung 0" not in kept
    assert "where is the lung 1" in kept
    assert len(found.train) + len(found.validation) == 23


@pytest.mark.parametrize(
    ("one", "other"),
    [("Is  it\nnormal?", "is it normal"), ("ＣＴ?", "ct"), ("Où?", "où"), ("What.", "what ?")],
)
def test_questions_are_compared_without_their_spelling(one, other):
    assert normalised_question(one) == normalised_question(other)


def test_different_questions_stay_different():
    assert normalised_question("is it left?") != normalised_question("is it right?")
    assert normalised_question(None) == ""


def test_the_evaluated_split_is_refused(catalog, release):
    with pytest.raises(UserError, match="what boards evaluate"):
        load(catalog, release, split="test")
    with pytest.raises(UserError, match="what boards evaluate"):
        load(catalog, release, validation_split="test")


def test_the_training_split_validates_nothing(catalog, release):
    with pytest.raises(UserError, match="'train' is the split that is trained on"):
        load(catalog, release, validation_split="train")


def test_an_unknown_split_names_the_known_ones(catalog, release):
    with pytest.raises(UnknownNameError, match="train"):
        load(catalog, release, split="trian")


def test_undeclared_shared_images_are_refused(catalog, release, tmp_path):
    task = undeclared_task(catalog, tmp_path / "task")
    with pytest.raises(UserError, match=r"3 image\(s\) of undeclared.*shared_images"):
        load_training_set(catalog, [TrainingChoice(task=str(task))], seed=0, data_dir=release, offline=True)


def test_a_mixture_is_guarded_against_each_evaluated_split(catalog, release, tmp_path):
    task = undeclared_task(catalog, tmp_path / "task")
    choices = [TrainingChoice(task="vqa-rad"), TrainingChoice(task=str(task))]
    with pytest.raises(UserError, match="are also in"):
        load_training_set(catalog, choices, seed=0, data_dir=release, offline=True)


def test_validation_shares_no_image_with_training(catalog, release):
    found = load(catalog, release)
    images = [{i.source.digest() for e in part for i in e.sample.images} for part in (found.train, found.validation)]
    assert images[1]
    assert not images[0] & images[1]


def test_seeds_draw_the_validation_part(catalog, release):
    parts = [{e.sample.id for e in load(catalog, release, seed=seed).validation} for seed in range(6)]
    assert parts[0] == {e.sample.id for e in load(catalog, release, seed=0).validation}
    assert len({frozenset(part) for part in parts}) > 1


def test_the_digest_follows_the_data(catalog, release, tmp_path):
    first = load(catalog, release)
    assert first.digest == load(catalog, release).digest
    assert first.digest != load(catalog, release, limit=20).digest
    other = tune_cases.write_release(tmp_path / "other")
    path = other / "images" / "image5.png"
    path.write_bytes((other / "images" / "image4.png").read_bytes())
    assert first.digest != load(catalog, other).digest


def test_fractions_and_weights(catalog, release):
    whole = load(catalog, release)
    half = load(catalog, release, fraction=0.5)
    assert len(half.train) + len(half.validation) in (11, 12)
    assert {e.sample.id for e in half.train} < {e.sample.id for e in (*whole.train, *whole.validation)}
    twice = load(catalog, release, weight=2.5)
    assert len(twice.train) == 2 * len(whole.train) + round(0.5 * len(whole.train))
    assert {e.sample.id for e in twice.train} == {e.sample.id for e in whole.train}


def test_shares_of_a_thousandth_and_a_hundredth_lie_in_one_another(catalog, tmp_path):
    data = tune_cases.write_release(tmp_path / "vqa_rad", images=500, repeat=False)

    def drawn(fraction, seed=0):
        found = load(catalog, data, seed=seed, fraction=fraction)
        return {e.sample.id for e in (*found.train, *found.validation)}

    thousandth, hundredth, whole = (drawn(fraction) for fraction in (0.001, 0.01, 1.0))
    assert (len(thousandth), len(hundredth), len(whole)) == (1, 10, 1000)
    assert thousandth < hundredth < whole
    assert drawn(0.01) == hundredth
    assert drawn(0.01, seed=1) != hundredth


def test_tasks_are_mixed_by_weight(catalog, tmp_path):
    data = tune_cases.write_release(tmp_path / "vqa_rad", repeat=False)
    path = data / "VQA_RAD Dataset Public.json"
    rows = json.loads(path.read_text())
    for row in rows:
        # Evaluated on images of their own, so that the one task's test is not the other's training.
        if row["phrase_type"] == "test_freeform":
            other = (data / "images" / row["image_name"]).read_bytes() + row["qid"].encode()
            row["image_name"] = f"test{row['qid']}.png"
            (data / "images" / row["image_name"]).write_bytes(other)
    path.write_text(json.dumps(rows))
    content = catalog.task("vqa-rad").model_dump(mode="json")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({**content, "name": "other"}), encoding="utf-8")
    choices = [TrainingChoice(task="vqa-rad", weight=2), TrainingChoice(task=str(tmp_path / "task.yaml"), weight=0.5)]
    mixed = load_training_set(catalog, choices, seed=0, data_dir=data, offline=True)
    alone = load_training_set(catalog, choices[:1], seed=0, data_dir=data, offline=True)
    assert len(mixed.train) == len(alone.train) + round(len(alone.train) / 4)
    assert set(mixed.tasks) == {"vqa-rad", str(tmp_path / "task.yaml")}
    counts = Counter(example.sample.id for example in mixed.train)
    quarter = round(len(alone.train) / 4)
    assert Counter(counts.values()) == {2: len(alone.train) // 2 - quarter, 3: quarter}
    assert mixed.train_record.task == "vqa-rad@1 + other@1"


def test_nothing_left_is_an_error(catalog, release):
    with pytest.raises(UserError, match="no training example is left"):
        load(catalog, release, limit=1)


def test_broken_samples_are_left_out(catalog, release, tmp_path):
    content = json.loads(catalog.task("vqa-rad").model_dump_json())
    content["broken"] = [{"id": load(catalog, release).train[0].sample.id, "reason": "torn page"}]
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    found = load_training_set(
        catalog, [TrainingChoice(task=str(tmp_path / "task.yaml"))], seed=0, data_dir=release, offline=True
    )
    assert content["broken"][0]["id"] not in {e.sample.id for e in (*found.train, *found.validation)}


@pytest.mark.skipif(not os.environ.get("MHE_TEST_DATA"), reason="MHE_TEST_DATA is not set: no real data here")
def test_vqa_rad_itself(catalog):
    found = load(catalog, Path(os.environ["MHE_TEST_DATA"]) / "vqa_rad")
    assert len(found.train) + len(found.validation) + found.guard.dropped_pairs == 1797
    assert found.guard.dropped_pairs >= 1
    assert found.guard.shared_images == 202
    test = load_samples(
        catalog, catalog.task("vqa-rad"), split="test", data_dir=Path(os.environ["MHE_TEST_DATA"]) / "vqa_rad"
    )
    evaluated = {(s.images[0].source.digest(), normalised_question(s.question)) for s in test.samples}
    trained = {(e.sample.images[0].source.digest(), normalised_question(e.sample.question)) for e in found.train}
    assert not trained & evaluated
