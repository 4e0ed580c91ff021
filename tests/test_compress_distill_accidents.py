"""Accidents of distillation: kills, small disks, changed prompts, broken files, unusable students and teachers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

import distill_cases
import tune_cases
from distill_cases import step_of
from hf_models import build_llava
from mhe.errors import UserError
from mhe.pipelines import plan_step, preview_step, run_step

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from mhe_compress import teacher_cache  # noqa: E402
from mhe_compress.teacher_cache import TeacherCache, example_key  # noqa: E402

SETTINGS = {"keep_layers": 0.5, "max_steps": 4, "save_every": 2, "top_k": 8}
Disk = namedtuple("Disk", "total used free")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_llava(tmp_path_factory.mktemp("models") / "base", hidden=64, layers=2)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=6)


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def shards(cache: Path) -> list[Path]:
    return sorted(cache.glob("teacher_logits/*/*.safetensors"))


# ---------------------------------------------------------------- kills


SCRIPT = """
import sys, json, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import distill_cases, tune_cases
from mhe_compress import teacher_cache
from mhe_hf.training.watching import WatchedTrainer
teacher_cache.SHARD_EXAMPLES = 2
def slowly(kind, name):
    import time
    original = getattr(kind, name)
    setattr(kind, name, lambda *given, **named: (original(*given, **named), time.sleep(0.25))[0])
slowly(teacher_cache.TeacherCache, "_write")
slowly(WatchedTrainer, "training_step")
from mhe.catalog import open_catalog
from mhe.pipelines import run_step
step = distill_cases.step_of(Path(sys.argv[2]), **json.loads(sys.argv[5]))
run_step(open_catalog(), step, tune_cases.place_at(Path(sys.argv[3]), Path(sys.argv[4])))
"""


def killed_when(is_time, base, root, release):
    """Start the step in a process of its own, where every part takes a moment, and kill it -9 when `is_time()`."""
    arguments = [Path(__file__).parent, base, root, release, json.dumps(SETTINGS)]
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as worker:
        deadline = time.monotonic() + 240
        while not is_time() and time.monotonic() < deadline:
            assert worker.poll() is None, "it ended by itself"
            time.sleep(0.001)
        worker.send_signal(signal.SIGKILL)
        worker.wait()


def test_killed_while_the_teacher_reads_and_while_the_student_learns(
    catalog, base, release, place, own_cache, monkeypatch, tmp_path
):
    """Both kills fall into one step; what the teacher read is not read again, and the result is the same bytes."""
    root = tmp_path / "killed"
    step = step_of(base, **SETTINGS)
    killed_when(lambda: len(shards(own_cache)) >= 2, base, root, release)
    kept = {path: path.read_bytes() for path in shards(own_cache)}
    total = len(distill_cases.examples_of(catalog, step, place))
    assert 4 <= 2 * len(kept) < total
    killed_when(lambda: list(root.glob(".work/*/job/checkpoint-2/mhe_saved.json")), base, root, release)
    assert all(path.read_bytes() == content for path, content in kept.items()), "nothing is computed twice"
    assert not (root / "student").exists()

    from mhe_compress import distill

    asked = []
    original = distill.open_teacher
    monkeypatch.setattr(distill, "open_teacher", lambda *given: (asked.append(1), original(*given))[1])
    said = []
    done = run_step(catalog, step, tune_cases.place_at(root, release, say=said.append))
    assert any("continuing" in line for line in said)
    assert not asked, "the teacher had read everything"

    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "calm"))
    calm = run_step(catalog, step, place)
    assert asked
    ours, theirs = ((one.folder / "model" / "model.safetensors").read_bytes() for one in (done, calm))
    assert ours == theirs


# ---------------------------------------------------------------- the cache


def test_a_teacher_is_read_once_for_other_seeds_temperatures_and_divergences(
    catalog, base, place, own_cache, monkeypatch
):
    run_step(catalog, step_of(base, **SETTINGS), place)
    before = {path: path.read_bytes() for path in shards(own_cache)}
    from mhe_compress import distill

    asked = []
    monkeypatch.setattr(distill, "open_teacher", lambda *given: asked.append(given))
    for name, changes in {"hot": {"temperature": 4.0}, "back": {"divergence": "reverse_kl"}}.items():
        run_step(catalog, step_of(base, name=name, **{**SETTINGS, **changes}), place)
    assert not asked
    assert {path: path.read_bytes() for path in shards(own_cache)} == before


def test_a_prompt_of_another_version_finds_nothing_that_was_kept(catalog, base, place, own_cache):
    step = step_of(base, **SETTINGS)
    run_step(catalog, step, place)
    (folder,) = {path.parent for path in shards(own_cache)}
    about = json.loads((folder / "about.json").read_text())
    cache = TeacherCache({key: value for key, value in about.items() if key != "format"})
    assert cache.folder == folder
    examples = distill_cases.examples_of(catalog, step, place)
    assert all(example_key(example) in cache for example in examples)

    spec = catalog.task("vqa-rad")
    prompt = spec.prompt.model_copy(update={"user": spec.prompt.user + " Be brief."})
    newer = spec.model_copy(update={"prompt": prompt, "version": spec.version + 1})
    from mhe.prompting import build_request

    asked_anew = [replace(e, request=build_request(newer, e.sample, e.request.generation, seed=0)) for e in examples]
    asked_again = [replace(e, request=build_request(spec, e.sample, e.request.generation, seed=9)) for e in examples]
    assert not any(example_key(example) in cache for example in asked_anew)
    assert all(example_key(example) in cache for example in asked_again), "the seed is in no prompt"
    other_answers = [replace(example, answer=example.answer + "s") for example in examples]
    assert not any(example_key(example) in cache for example in other_answers)


def test_another_teacher_another_k_and_other_bits_are_other_folders():
    about = {"teacher": "a", "options": {"quantization": "none"}, "top_k": 8, "vocabulary": 100}
    others = [
        {**about, "teacher": "b"}, {**about, "top_k": 9}, {**about, "options": {"quantization": "nf4"}},
        {**about, "vocabulary": 99},
    ]  # fmt: skip
    assert len({TeacherCache(one).folder for one in [about, *others]}) == 5


def test_a_disk_that_is_too_small_is_told_before_anything_is_computed(catalog, base, place, own_cache, monkeypatch):
    from mhe_compress import distill

    monkeypatch.setattr(distill, "open_teacher", lambda *_: pytest.fail("the teacher was loaded"))
    monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda _: Disk(10_000, 9_000, 1_000))
    with pytest.raises(UserError, match=r"has room for 0\.00 MiB.*MHE_CACHE_DIR.*teacher_logits=online"):
        run_step(catalog, step_of(base, **SETTINGS), place)
    assert not shards(own_cache)
    plan = plan_step(catalog, step_of(base, **SETTINGS), place)
    assert any("it will be refused" in note for note in preview_step(catalog, plan, place).notes)


def test_what_is_announced_is_no_less_than_what_is_written(catalog, base, place, own_cache):
    step = step_of(base, **SETTINGS)
    numbers = {}
    report = lambda phase, found: numbers.update(found) if phase == "plan" else None  # noqa: E731 - one line says it
    run_step(catalog, step, replace(place, report=report))
    (shard,) = shards(own_cache)
    from safetensors.torch import load_file

    stored = load_file(shard)
    written = sum(stored[name].numel() * 4 for name in ("tokens", "ids", "logits", "rest"))
    assert written <= numbers["cache bytes"] <= 1.5 * written


def test_a_broken_file_of_the_cache_is_named(catalog, base, place, own_cache):
    run_step(catalog, step_of(base, **SETTINGS), place)
    (shard,) = shards(own_cache)
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{shard.name} is no part of a teacher's cache.*Delete this file"):
        run_step(catalog, step_of(base, name="second", **{**SETTINGS, "alpha": 0.4}), place)
    shard.unlink()
    run_step(catalog, step_of(base, name="second", **{**SETTINGS, "alpha": 0.4}), place)


def test_answers_that_are_other_tokens_to_the_teacher_are_refused(catalog, base, tmp_path, place):
    """One tokenizer, and a template that ends answers in another way: every sample would be out of step."""
    import shutil

    shutil.copytree(base, tmp_path / "teacher")
    template = tmp_path / "teacher" / "chat_template.jinja"
    text = template.read_text()
    assert "assistant" in text.lower()
    template.write_text(text.replace("{{ eos_token }}", "{{ ' yes' + eos_token }}").replace("</s>", " yes</s>"))
    assert template.read_text() != text
    for teacher_logits in ("cached", "online"):
        step = step_of(base, tmp_path / "teacher", name=teacher_logits, teacher_logits=teacher_logits)
        with pytest.raises(UserError, match=r"training sample .*its answer is the tokens .*mode=sequence"):
            run_step(catalog, step, place)


# ---------------------------------------------------------------- students and teachers that cannot be


def test_a_quantised_student_is_refused(catalog, base, place):
    for settings in ({}, {"keep_layers": 0.5}):
        step = distill_cases.with_options(step_of(base, base, **settings), quantization="nf4")
        with pytest.raises(UserError, match=r"quantised .nf4"):
            run_step(catalog, step, place)


def test_an_adapter_as_student_is_merged_or_refused(catalog, base, place):
    lora = replace(step_of(base, name="lora"), recipe="lora", inputs={}, settings={"max_steps": 1, "rank": 2})
    adapted = run_step(catalog, lora, place).model
    onto = replace(step_of(base, base, language="adapter"), base=adapted)
    with pytest.raises(UserError, match=r"is an adapter on .*recipe full"):
        run_step(catalog, onto, place)
    merged = run_step(catalog, replace(step_of(base, base), base=adapted), place)
    assert not any("lora" in name for name in distill_cases.weights_of(merged.folder))


def test_an_adapter_teaches_with_its_base(catalog, base, place):
    lora = replace(
        step_of(base, name="lora"), recipe="lora", inputs={}, settings={"max_steps": 2, "rank": 2, "learning_rate": 0.1}
    )
    adapted = run_step(catalog, lora, place).model
    taught = [
        run_step(
            catalog, replace(step_of(base, name=name, max_steps=1, keep_layers=0.5), inputs={"teacher": teacher}), place
        )
        for name, teacher in (("a", adapted), ("b", tune_cases.model_at(base)))
    ]
    losses = [one.checkpoint.history[0]["loss"] for one in taught]
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)


def test_no_data_no_teacher_and_strange_roles_are_told(catalog, base, place):
    with pytest.raises(UserError, match=r"no training data was given"):
        run_step(catalog, replace(step_of(base, base), data=()), place)
    with pytest.raises(UserError, match=r"--input teacher=MODEL.*keep_layers=0\.5"):
        run_step(catalog, step_of(base), place)
    strange = replace(step_of(base, base), inputs={"master": tune_cases.model_at(base)})
    with pytest.raises(UserError, match=r"in the role teacher; given: master"):
        run_step(catalog, strange, place)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_layers": 0.01}, "would leave 0 of 2 language layers"),
        ({"keep_layers": 0.99}, "would leave 2 of 2 language layers"),
        ({"keep_layers": 2}, "a number from 1 to 1"),
        ({"student": {"text_config": {"num_hiden_layers": 1}}}, "Did you mean num_hidden_layers"),
        ({"student": {"text_config": {"num_hidden_layers": "two"}}}, "makes no model"),
        ({"student": {"text_config": {"vocab_size": 4}}}, "mode=sequence"),
        ({"student": {"vision_config": {"image_size": 96}}}, "makes no model"),
    ],
)
def test_students_that_cannot_be_are_refused_before_the_teacher_reads(
    catalog, base, place, own_cache, settings, message
):
    with pytest.raises(UserError, match=message):
        run_step(catalog, step_of(base, **settings), place)
    assert not (place.directory / "student").exists()


def test_a_teacher_that_answers_nothing_teaches_nothing(catalog, base, place, monkeypatch):
    from mhe import Response
    from mhe_compress import teacher_answers

    class Silent(teacher_answers.HfBackend):
        def load(self):
            pass

        def generate(self, requests, pending):
            return (Response(request.sample_id, text=" ") for request in requests if request.sample_id in pending)

    monkeypatch.setattr(teacher_answers, "HfBackend", Silent)
    with pytest.raises(UserError, match=r"answered nothing to all .* training prompts"):
        run_step(catalog, step_of(base, base, mode="sequence"), place)
