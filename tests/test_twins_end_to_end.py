"""Every base model of the papers has a tiny twin of the same classes, which `mhe eval` takes through the paper's task.

The twins are random, as `mhe_tiny.build` makes them: what is tested is the way, not what a model knows. The data sets
are small ones in their publishers' layouts.
"""

from __future__ import annotations

import json

import pytest

from mhe import open_catalog
from mhe.cli.main import main
from mhe_hf.models import MODELS
from mhe_tiny.build import BUILDERS, build_folder
from mhe_tiny.lessons import read_lessons
from releases import make_rocov2
from tune_cases import write_release

SAMPLES = 12
TASKS = {
    "tiny-llava": "roco",
    "tiny-llava-base": "roco",
    "tiny-llava-next": "roco",
    "tiny-qwen2-vl": "roco",
    "tiny-mllama": "roco",
    "tiny-visiongpt2": "roco",
    "tiny-blip": "roco",
    "tiny-blip2": "roco",
    "tiny-blip-vqa": "vqa-rad",
}
"""Of each twin, the task of the paper that its base model is from."""
VALUES = {"roco": {"bleu-4", "rouge-l", "cider"}, "vqa-rad": {"accuracy", "accuracy.open"}}
SHORT = ("--set", "generation.max_new_tokens=8", "--set", "backend.num_threads=1", "--batch-size", "4", "--json")


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    return {
        "roco": make_rocov2(place / "rocov2", {"train": 3, "valid": 3, "test": SAMPLES}),
        "vqa-rad": write_release(place / "vqa_rad", tests=SAMPLES, repeat=False),
    }


@pytest.fixture(scope="module", autouse=True)
def _short_lessons():
    """A tokenizer of few texts is built in a tenth of the time."""
    known = {}

    def few(curriculum, stream, _count):
        if curriculum not in known:
            known[curriculum] = read_lessons(curriculum, stream, 64)
        return known[curriculum]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mhe_tiny.build.read_lessons", few)
        yield


@pytest.fixture
def mhe(capsys, tmp_path, monkeypatch):
    """Run `mhe` in this process: exit code and the document on stdout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))

    def run(*arguments):
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return done.value.code, captured.out, captured.err

    return run


def test_every_base_model_is_listed_with_its_twin(mhe):
    assert all(spec.tiny_twin for spec in MODELS)
    assert {spec.tiny_twin for spec in MODELS} <= set(BUILDERS)
    code, out, _ = mhe("show", "models", "--json")
    assert code == 0
    rows = {row["name"]: row for row in json.loads(out)["models"]}
    assert {name: rows[name]["tiny twin"] for name in (spec.name for spec in MODELS)} == {
        "llava-1.5-7b": "tiny-llava",
        "llava-1.6-mistral-7b": "tiny-llava-next",
        "qwen2-vl-2b": "tiny-qwen2-vl",
        "llama-3.2-11b-vision": "tiny-mllama",
        "visiongpt2": "tiny-visiongpt2",
        "vit-gpt2-coco": "tiny-visiongpt2",
        "blip-captioning": "tiny-blip",
        "blip-vqa": "tiny-blip-vqa",
        "blip2-opt-2.7b": "tiny-blip2",
        "miss": "tiny-blip-vqa",
    }
    code, out, _ = mhe("show", "models")
    header, _, *lines = out.splitlines()
    assert "tiny twin" in header
    place = header.index("tiny twin")
    shown = {line.split()[0]: line[place:].split()[0] for line in lines if line.split()[0] in {s.name for s in MODELS}}
    assert shown == {spec.name: spec.tiny_twin for spec in MODELS}


def test_no_twin_is_left_out():
    assert set(TASKS) == set(BUILDERS)
    assert {name for name in open_catalog().models if name in BUILDERS} <= set(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_a_twin_goes_through_its_papers_task(mhe, tmp_path, releases, name):
    task = TASKS[name]
    folder = build_folder(name, tmp_path / name, seed=3)
    arguments = ("eval", "--model", folder, "--task", task, "--data-dir", releases[task], *SHORT)
    code, out, err = mhe(*arguments)
    assert code == 0, err
    (run,) = json.loads(out)["runs"]
    assert (run["status"], run["counts"]["answered"]) == ("complete", SAMPLES)
    assert run["model"]["verified"]
    found = {value["name"]: value for metric in run["metrics"] for value in metric["values"]}
    assert VALUES[task] <= set(found)
    assert all(found[value]["value"] is not None for value in VALUES[task])
    lines = [json.loads(line) for line in (tmp_path / run["folder"] / "samples.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in lines}) == SAMPLES
    assert len({line["text"] for line in lines}) > 1, "it should look at what it is shown"
    code, out, err = mhe(*arguments)
    assert code == 0, err
    assert json.loads(out)["runs"][0]["was_done"]
