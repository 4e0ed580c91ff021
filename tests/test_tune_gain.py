"""Tuning helps: on the held-out target phantoms each recipe beats its base and the majority answer, by a paired test.

The base was trained on the source phantoms, which have no ultrasound and no question of size.
"""

from __future__ import annotations

import pytest

from command import mhe
from mhe_tiny import MODELS

pytest.importorskip("torch")
pytest.importorskip("peft")

BASE = "tiny-blip-vqa"
TASK = "phantom-vqa-target"
SETTINGS = {
    "full": {"learning_rate": 5e-4},
    "lora": {"learning_rate": 3e-3, "vision": "adapter", "fusion": "adapter", "dropout": 0},
    "qlora": {"learning_rate": 2e-3, "vision": "adapter", "fusion": "adapter", "dropout": 0},
}
COMMON = {"batch_size": 32, "epochs": 4, "keep": "last"}
CHANCE = 0.01


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder for runs and checkpoints, with the base's and the baseline's runs."""
    folder = tmp_path_factory.mktemp("gain")
    for model in (BASE, "majority"):
        evaluate(folder, model)
    return folder


def evaluate(folder, model):
    done = mhe("eval", "--model", model, "--task", TASK, "--limit", 450, "--json", cwd=folder)
    assert done.code == 0, done.err
    return done.document["runs"][0]["folder"]


@pytest.mark.skipif(not (MODELS / BASE / "model.safetensors").is_file(), reason=f"{BASE} is not trained yet")
@pytest.mark.parametrize("recipe", SETTINGS)
def test_a_tuned_model_beats_its_base_and_the_majority_answer(bench, recipe):
    chosen = {**COMMON, **SETTINGS[recipe]}
    settings = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    done = mhe(
        "tune", "--model", BASE, "--recipe", recipe, "--task", TASK, "--limit", 1200, "--name", recipe, *settings,
        cwd=bench,
    )  # fmt: skip
    assert done.code == 0, done.err
    runs = [evaluate(bench, model) for model in (recipe, BASE, "majority")]
    compared = mhe("compare", *runs, "--json", cwd=bench)
    assert compared.code == 0, compared.err
    accuracy = next(value for value in compared.document["values"] if value["name"] == "accuracy")
    assert [other["side"] for other in accuracy["differences"]] == ["B", "C"]
    for other in accuracy["differences"]:
        told = {key: other[key] for key in ("side", "difference", "p_holm", "counts")}
        assert other["difference"] < 0, told
        assert other["p_holm"] < CHANCE, told
