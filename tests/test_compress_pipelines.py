"""The entrants of Neto et al. as pipelines: at true size planned anywhere, on small models run to the end."""

from __future__ import annotations

import json

import pytest

from command import mhe
from mhe.pipeline_runs import check_pipeline, find_pipeline
from mhe.pipelines import StepPlace
from mhe.previews import preview_pipeline
from releases import make_rocov2

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

ENTRANTS = {
    "qwen-qlora": ("qwen2-vl-2b", "qlora"),
    "qwen-qlora-pruned": ("qwen2-vl-2b", "qlora merge prune"),
    "llama-qlora": ("llama-3.2-11b-vision", "qlora"),
    "llama-qlora-pruned": ("llama-3.2-11b-vision", "qlora merge prune"),
    "llava-kd": ("llava-1.5-7b", "distill"),
    "llava-kd-qlora": ("llava-1.5-7b", "distill qlora"),
    "llava-kd-pruned": ("llava-1.5-7b", "distill qlora merge prune"),
}
"""With the two base models, the nine rows of Table I."""


@pytest.mark.parametrize("name", ENTRANTS)
def test_each_entrant_and_its_small_twin_are_the_same_steps(catalog, name):
    large, small = find_pipeline(name, catalog), find_pipeline(f"tiny-{name}", catalog)
    base, recipes = ENTRANTS[name]
    assert large.base == base
    assert catalog.models[base].tiny_twin == small.base
    for spec in (large, small):
        check_pipeline(catalog, spec)
        assert " ".join(step.recipe for step in spec.steps) == recipes
        assert all(step.data == () for step in spec.steps if step.recipe in ("merge", "prune"))
    assert [step.options.get("preset") for step in large.steps] == [step.options.get("preset") for step in small.steps]
    assert {choice.task for choice in large.data} == {"roco-327"}
    assert {choice.task for choice in small.data} == {"phantom-caption"}


def test_pipelines_share_their_first_steps(catalog):
    """Equal options on an equal base are one step, known by its digest."""
    for short, long in (("llava-kd", "llava-kd-qlora"), ("llava-kd-qlora", "llava-kd-pruned"),
                        ("qwen-qlora", "qwen-qlora-pruned"), ("llama-qlora", "llama-qlora-pruned")):  # fmt: skip
        for prefix in ("", "tiny-"):
            one, other = find_pipeline(prefix + short, catalog), find_pipeline(prefix + long, catalog)
            assert one.base == other.base
            assert one.data == other.data
            assert one.steps == other.steps[: len(one.steps)]


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """A folder with no data of any task."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MHE_DATA_DIR", raising=False)


def plan(catalog, name, tmp_path):
    place = StepPlace(directory=tmp_path / "checkpoints", offline=True)
    return {found.plan.step.recipe: found for found in preview_pipeline(catalog, find_pipeline(name, catalog), place)}


def test_the_true_size_is_planned_with_no_weights_and_no_data(catalog, tmp_path):
    whole = 7_063_427_072
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    steps = plan(catalog, "llava-kd-pruned", tmp_path)
    assert steps["distill"].result.parameters == whole - 16 * layer
    assert steps["merge"].result.parameters == steps["distill"].result.parameters
    # Ten heads of 32, and about 30 % of the neurons: the nearest width that GPUs are fast with.
    gone = 16 * (4 * 10 / 32 * 4096 * 4096 + 3 * 0.3 * 4096 * 11008)
    assert steps["prune"].result.parameters == pytest.approx(whole - 16 * layer - gone, rel=0.005)
    assert all(found.result.needed_bytes > 2**30 for found in steps.values())
    assert steps["qlora"].result.needed_bytes < 0.25 * steps["merge"].result.needed_bytes
    assert "59,958 rows" in " ".join(steps["distill"].result.notes)
    assert not (tmp_path / "checkpoints").exists()


def test_the_plan_says_which_entrant_needs_a_class_of_ours(catalog, tmp_path):
    pruned = plan(catalog, "qwen-qlora-pruned", tmp_path)["prune"].result
    assert pruned.needs_class == "mhe_compress.PrunedQwen2VLForConditionalGeneration"
    assert pruned.parameters < 2_208_985_600


SENTENCE = ("eval", "--model", "llava-kd-pruned", "--task", "roco")


def test_the_sentence_that_the_product_was_asked_for(tmp_path):
    """Word for word, on a small release in ROCOv2's layout, with a small model as teacher and student alike."""
    release = make_rocov2(tmp_path / "data" / "rocov2", {"train": 24, "valid": 8, "test": 40})
    here = {"MHE_DATA_DIR": str(release.parent), "MHE_CHECKPOINTS_DIR": str(tmp_path / "checkpoints")}
    early = mhe(*SENTENCE, cwd=tmp_path, **here)
    assert early.code == 2
    assert "'llava-kd-pruned' is a pipeline that has not been run yet: mhe tune llava-kd-pruned" in early.err
    few = [f"{step}.{key}" for step in ("kd", "qlora") for key in ("max_steps=2", "batch_size=4", "evaluate_every=2")]
    settings = [part for setting in few for part in ("--set", setting)]
    tuned = mhe(
        "tune", "llava-kd-pruned", "--set", "base=tiny-llava", *settings, "--offline", "--json", cwd=tmp_path, **here
    )
    assert tuned.code == 0, tuned.err
    made = {document["name"]: document for document in tuned.document["checkpoints"]}
    assert [step["recipe"] for step in made["llava-kd-pruned"]["lineage"]] == ["prune", "merge", "qlora", "distill"]
    parameters = [document["parameters"] for document in made.values()]
    assert parameters[0] == parameters[2] > parameters[3], "distilled, with adapters, merged, pruned"
    assert made["llava-kd-pruned"]["loads_in"][0] == "transformers"
    tree = tuned.document["tree"]
    assert [row["depth"] for row in tree] == [0, 1, 2, 3, 4]
    asked = mhe(*SENTENCE, cwd=tmp_path, **here)
    assert asked.code == 0, asked.err
    (path,) = (tmp_path / "runs").glob("roco/*/*/run.json")
    record = json.loads(path.read_text())
    assert record["counts"]["answered"] == 40
    assert record["model"]["parameters"] == parameters[3]
    assert [step["recipe"] for step in record["model"]["lineage"]] == ["prune", "merge", "qlora", "distill"]
