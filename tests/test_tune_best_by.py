"""Weights chosen by a metric of answers: the same answers as evaluation's, kept through kills, told before training."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tune_cases
from mhe.documents.pipeline import TrainingChoice
from mhe.errors import MetricUnavailableError, UserError
from mhe.pipelines import Step, plan_step, preview_step, run_plan, run_step
from mhe.protocols import BackendContext
from mhe.training_data import load_training_set
from mhe.validation_scores import TaskScorer
from mhe.values import Failure, Response
from mhe_hf.training.curves import draw_curve
from mhe_hf.training.yardsticks import Yardstick, is_out_of_patience
from mhe_tiny import MODELS

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

WEIGHTS = "model/model.safetensors"
# A high rate, so that the metric moves from step to step.
SETTINGS = {
    "learning_rate": 2e-3, "scheduler": "constant", "warmup": 0, "batch_size": 4, "max_steps": 4, "evaluate_every": 1,
    "save_every": 1, "vision": "frozen", "best_by": "token-f1", "best_by_samples": 6,
}  # fmt: skip
DATA = (TrainingChoice(task="vqa-rad"),)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    # Six images, of twelve questions, are validated on.
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=120)


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def step_of(recipe="full", base=MODELS / "tiny-llava", data=DATA, **changes) -> Step:
    return Step("best", recipe, tune_cases.model_at(base), settings={**SETTINGS, **changes}, data=data)


@pytest.fixture(scope="module")
def tuned(catalog, release, tmp_path_factory):
    """A finished training, shared by the tests that look at it; with what it reported."""
    told = []
    root = tmp_path_factory.mktemp("tuned")
    where = tune_cases.place_at(root, release, report=lambda phase, numbers: told.append(dict(numbers)))
    return run_step(catalog, step_of(), where), told


def scores_of(history) -> dict[int, float]:
    return {int(entry["step"]): entry["eval_token-f1"] for entry in history if "eval_token-f1" in entry}


def test_the_kept_weights_are_those_of_the_highest_value(tuned):
    done, told = tuned
    scores = scores_of(json.loads((done.folder / "history.json").read_text()))
    assert sorted(scores) == [1, 2, 3, 4]
    assert len(set(scores.values())) > 1, "a metric that never moves proves nothing"
    best = max(scores, key=lambda step: (scores[step], step))
    (note,) = [note for note in done.checkpoint.notes if note.startswith("weights of step")]
    assert note == (
        f"weights of step {best} of 4, with the highest token-f1 of answers to 6 validation samples, {scores[best]:.4f}"
    )
    assert told[-1]["validation_token-f1"] in scores.values()
    curve = (done.folder / "curve.svg").read_text()
    assert "validation token-f1" in curve
    assert note in (done.folder / "README.md").read_text()


def test_evaluating_the_checkpoint_finds_the_value_that_it_was_kept_for(tuned, catalog, release, tmp_path):
    """The backend's own answers to the same samples, from the written files, scored by `mhe.scoring` itself."""
    from mhe.answers import answer_of
    from mhe.scoring import score_cases
    from mhe.values import Case
    from mhe_hf import HfBackend, HfOptions

    done, _ = tuned
    data = load_training_set(catalog, DATA, seed=0, data_dir=release, offline=True)
    task = data.tasks["vqa-rad"]
    requests = TaskScorer(catalog, data.tasks, data.validation, 0).requests(6)
    context = BackendContext(offline=True, cache_dir=tmp_path, training_samples=list)
    backend = HfBackend(done.model, HfOptions(batch_size=8, device="cpu"), context)
    backend.load()
    responses = {r.sample_id: r for r in backend.generate(requests, {r.sample_id for r in requests})}
    backend.close()
    cases = [
        Case(e.sample, answer_of(task, responses[e.sample.id]), responses[e.sample.id])
        for e in data.validation
        if e.sample.id in responses
    ]
    assert len(cases) == 6
    records = score_cases(
        catalog, task, cases, all_samples=[case.sample for case in cases], metrics=["token-f1"],
        profiles=[task.profile], run_key="0", with_intervals=False,
    )  # fmt: skip
    found = {value.name: value.value for value in records[0].values}
    assert found["token-f1"] == pytest.approx(max(scores_of(done.checkpoint.history).values()), abs=1e-9)


def test_asking_for_answers_does_not_change_the_training(tuned, catalog, place):
    """The losses are those of a training that generates nothing: no random number is drawn, no state is left."""
    plain = run_step(catalog, step_of(best_by="loss"), place)
    ours, theirs = ([e["loss"] for e in d.checkpoint.history if "loss" in e] for d in (tuned[0], plain))
    assert ours == theirs
    settings = [json.loads((d.folder / "model" / "generation_config.json").read_text()) for d in (tuned[0], plain)]
    assert settings[0] == settings[1]


def test_killed_and_continued_it_keeps_the_same_weights(tuned, catalog, release, tmp_path):
    root = tmp_path / "checkpoints"
    script = (
        "import sys, torch; torch.set_num_threads(1); sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; import tune_cases; from test_tune_best_by import step_of\n"
        "from mhe.catalog import open_catalog; from mhe.pipelines import run_step\n"
        "run_step(open_catalog(), step_of(), tune_cases.place_at(Path(sys.argv[2]), Path(sys.argv[3])))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(root), str(release)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as worker:  # fmt: skip
        deadline = time.monotonic() + 120
        while not list(root.glob(".work/*/job/checkpoint-2/mhe_saved.json")) and time.monotonic() < deadline:
            assert worker.poll() is None, "it ended by itself"
            time.sleep(0.002)
        worker.send_signal(signal.SIGKILL)
    done = run_step(catalog, step_of(), tune_cases.place_at(root, release))
    assert scores_of(done.checkpoint.history) == scores_of(tuned[0].checkpoint.history)
    assert (done.folder / WEIGHTS).read_bytes() == (tuned[0].folder / WEIGHTS).read_bytes()
    assert [n for n in done.checkpoint.notes if "weights of" in n] == [
        n for n in tuned[0].checkpoint.notes if "weights of" in n
    ]


def test_patience_counts_validations_without_a_better_value(catalog, place, monkeypatch):
    from mhe_hf.training import answering

    values = iter([0.2, 0.5, 0.5, 0.4, 0.9, 0.9])
    monkeypatch.setattr(answering.ValidationAnswers, "measure", lambda _self, _trainer: next(values))
    done = run_step(catalog, step_of(patience=2, max_steps=6, batch_size=1, save_every=6), place)
    assert list(scores_of(done.checkpoint.history).values()) == [0.2, 0.5, 0.5, 0.4]
    assert any(note.startswith("weights of step 3 of 4") for note in done.checkpoint.notes), "of equals the last"


@pytest.mark.parametrize("best_by", ["cider", "bleu-4"])
def test_captions_are_chosen_by_their_metrics(catalog, place, best_by):
    data = (TrainingChoice(task="phantom-caption", limit=16),)
    done = run_step(catalog, step_of(data=data, best_by=best_by, best_by_samples=4, max_steps=1), place)
    (value,) = [e[f"eval_{best_by}"] for e in done.checkpoint.history if f"eval_{best_by}" in e]
    assert value > 0
    assert any(f"highest {best_by} of answers to 4 validation samples" in note for note in done.checkpoint.notes)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("qlora", "tiny-llava"), ("prefix", "tiny-llava"), ("lora", "tiny-qwen2-vl"), ("full", "tiny-mllama"),
        ("staged", "tiny-visiongpt2"), ("lora", "tiny-blip-vqa"), ("bitfit", "tiny-blip-vqa"),
    ],
)  # fmt: skip
def test_every_kind_of_training_goes_on_after_its_answers(catalog, random_twins, place, recipe, name):
    """Generating leaves nothing behind that a backward pass could not go through."""
    own = {"qlora": {}, "prefix": {}, "lora": {}, "full": {"vision": "full"}}.get(recipe, {})
    settings = {key: value for key, value in SETTINGS.items() if key not in ("vision", "scheduler", "warmup")}
    if recipe == "staged":
        own = {"stages": [{"trains": ["fusion"]}, {"trains": ["fusion", "language"]}]}
    settings |= {"max_steps": 3, "learning_rate": 1e-3, "best_by_samples": 2, **own}
    done = run_step(catalog, replace(step_of(recipe, random_twins(name)), settings=settings), place)
    assert len(scores_of(done.checkpoint.history)) == 3
    losses = [entry["loss"] for entry in done.checkpoint.history if "loss" in entry]
    assert len(set(losses)) == 3, "each step changed the model"


def test_instructions_are_not_what_is_answered(catalog, release, place, monkeypatch):
    """Validation of the recipe `instruction` asks the task's own prompts, which have no candidates."""
    from mhe_hf.training import answering

    asked = []
    original = answering.ValidationAnswers.answer
    monkeypatch.setattr(
        answering.ValidationAnswers,
        "answer",
        lambda self, model, requests: (asked.extend(requests), original(self, model, requests))[1],
    )
    run_step(catalog, step_of("instruction", best_by="accuracy", max_steps=1), place)
    plan = plan_step(catalog, step_of("instruction"), place)
    assert asked
    assert {r.digest for r in asked} <= {e.request.digest for e in plan.data.validation}


# ---------------------------------------------------------------- what cannot be, told before training


@pytest.fixture
def untrained(monkeypatch):
    from mhe_hf.training import watching

    def train(*_arguments, **_more):
        raise AssertionError("training began")

    monkeypatch.setattr(watching.WatchedTrainer, "train", train)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("run", [preview_step, run_plan])
def test_an_unknown_value_is_suggested_before_training(catalog, place, run):
    plan = plan_step(catalog, step_of(best_by="acuracy"), place)
    with pytest.raises(UserError, match=r"best_by=acuracy.*Did you mean 'accuracy'\?") as found:
        run(catalog, plan, place)
    assert "accuracy.closed" in str(found.value)
    assert "metrics of vqa-rad" in str(found.value)


def test_tasks_that_are_mixed_have_no_metric_in_common(catalog, scorer):
    tasks = {name: catalog.task(name) for name in ("vqa-rad", "slake")}
    with pytest.raises(UserError, match=r"'accuracy'.*mixes vqa-rad, slake.*validation loss, or train on one task"):
        TaskScorer(catalog, tasks, scorer[1].validation, 0).value("accuracy")
    assert scorer[0].value("accuracy").higher_is_better


@pytest.mark.usefixtures("untrained")
def test_no_validation_samples_no_metric(catalog, tmp_path):
    data = tune_cases.write_release(tmp_path / "vqa_rad", images=1, tests=1, repeat=False)
    where = tune_cases.place_at(tmp_path / "c", data)
    with pytest.raises(UserError, match=r"best_by=accuracy.*this training has none"):
        run_step(catalog, step_of(best_by="accuracy"), where)


@pytest.mark.usefixtures("untrained")
def test_a_metric_that_cannot_be_computed_is_found_out_first(catalog, place, monkeypatch):
    factory = catalog.metric("token-f1")

    def refuse(*_arguments):
        raise MetricUnavailableError("it needs Java, and there is none")

    monkeypatch.setattr(factory, "statistics", refuse)
    with pytest.raises(UserError, match=r"best_by=token-f1: .*needs Java.*(?s:.*)best_by=loss"):
        run_step(catalog, step_of(), place)


@pytest.fixture(scope="module")
def scorer(catalog, release):
    data = load_training_set(catalog, DATA, seed=0, data_dir=release, offline=True)
    return TaskScorer(catalog, data.tasks, data.validation, 0), data


def test_a_draw_is_seeded_greedy_and_in_order(catalog, scorer):
    whole = scorer[0].requests()
    places = {request.sample_id: place for place, request in enumerate(whole)}
    drawn = scorer[0].requests(5)
    assert len(drawn) == 5 < len(whole) == len(scorer[1].validation)
    assert [places[r.sample_id] for r in drawn] == sorted(places[r.sample_id] for r in drawn)
    assert all(request.generation.temperature == 0 for request in whole)
    other = TaskScorer(catalog, scorer[1].tasks, scorer[1].validation, 1).requests(5)
    assert {r.sample_id for r in other} != {r.sample_id for r in drawn}
    assert scorer[0].requests(10_000) == whole


def test_a_sample_without_an_answer_is_no_zero(scorer):
    requests = scorer[0].requests(2)
    responses = [Response(requests[0].sample_id, error=Failure("data", "torn")), Response(requests[1].sample_id, "yes")]
    with pytest.raises(UserError, match=rf"{requests[0].sample_id} was not answered: torn"):
        scorer[0].score("accuracy", responses)


def test_a_value_over_nothing_says_so(scorer):
    found, data = scorer
    (open_one, *_) = [e for e in data.validation if e.sample.answer_type == "open"]
    with pytest.raises(UserError, match=r"'accuracy.closed' cannot be computed over 1 validation samples: no answered"):
        found.score("accuracy.closed", [Response(open_one.sample.id, text="left")])


# ---------------------------------------------------------------- yardsticks and curves


def history_of(key, values):
    return [{"step": step, "loss": 1.0} for step in range(3)] + [
        {"step": float(step), key: value} for step, value in enumerate(values, 1)
    ]


def test_the_direction_is_the_metrics():
    up, down = Yardstick("accuracy", higher_is_better=True, samples=8), Yardstick()
    values = [0.2, math.nan, 0.7, 0.5]
    assert up.costs(history_of("eval_accuracy", values)) == [(1, -0.2), (2, math.inf), (3, -0.7), (4, -0.5)]
    assert down.costs(history_of("eval_loss", values)) == [(1, 0.2), (2, math.inf), (3, 0.7), (4, 0.5)]
    assert up.value_of(-0.7) == 0.7
    assert up.best == "highest"
    assert down.best == "lowest"
    for chosen, key in ((up, "eval_accuracy"), (down, "eval_loss")):
        costs = chosen.costs(history_of(key, values))
        assert is_out_of_patience(costs, 1 if chosen is up else 3)
        assert not is_out_of_patience(costs, 2 if chosen is up else 4)


def test_the_curve_draws_a_metric_on_its_own_scale():
    history = [{"step": 1.0, "loss": 4.0}, {"step": 2.0, "eval_loss": 2.0, "eval_a<b": 0.25}]
    history += [{"step": 4.0, "eval_loss": 1.0, "eval_a<b": 0.5}, {"step": 4.0, "eval_a<b": math.inf}]
    drawn = draw_curve(history, Yardstick("a<b", higher_is_better=True, samples=3))
    assert "validation a&lt;b" in drawn
    lines = [line.split('"')[1] for line in drawn.splitlines() if line.startswith("<polyline")]
    assert len(lines) == 3
    assert lines[2] == "320.0,160.0 592.0,48.0", "half of the top at half of the steps, and the top at the last"
    assert draw_curve(history).count("<polyline") == 2
