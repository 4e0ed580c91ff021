"""Recipe `instruction`: what is drawn, from which pools, written and read; evaluation never sees a candidate."""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import tune_cases
from mhe.documents.task import Generation
from mhe.errors import DocumentError, UserError
from mhe.pipeline_runs import check_pipeline, find_pipeline, run_pipeline, with_data, with_settings
from mhe.pipelines import plan_step, preview_step, run_step
from mhe.prompting import build_request, replace_messages
from mhe.protocols import TrainingExample
from mhe.samples import load_samples
from mhe.values import Message, Sample
from mhe_tune.instructions import (
    Instruction,
    build_pools,
    draw_candidates,
    draw_instructions,
    instructed,
    instruction_lines,
    normalised,
    read_instructions,
    read_templates,
)

torch = pytest.importorskip("torch")

DATA = os.environ.get("MHE_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="MHE_TEST_DATA is not set: SLAKE is not there")


pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tune_cases.write_model(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def step_on(base, name="instructed", **settings):
    return replace(tune_cases.step_on(base, name, **settings), recipe="instruction")


@pytest.fixture(scope="module")
def tuned(catalog, base, release, tmp_path_factory):
    """A finished training, shared by the tests that only look at it."""
    where = tune_cases.place_at(tmp_path_factory.mktemp("tuned"), release)
    return run_step(catalog, step_on(base), where)


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "instructions.jsonl").read_text(encoding="utf-8").splitlines()]


def example_of(catalog, number, answer, question="where is it?", kind="open", attribute="Organ", task="slake"):
    spec = catalog.task(task)
    sample = Sample(str(number), (), (answer,), question, kind, {"question_type": attribute})
    return TrainingExample(build_request(spec, sample, Generation(), 0), answer, sample)


def drawn(examples, seed=0, **changes):
    return draw_instructions(examples, [], **{"attribute": "question_type", "candidates": 4, "seed": seed, **changes})


# ---------------------------------------------------------------- on all of SLAKE


@pytest.fixture(scope="module", params=["slake", "slake-zh"])
def slake(request, catalog):
    """Every training pair of SLAKE in one language, and its instructions."""
    task = catalog.task(request.param)
    data_dir = Path(DATA) / "slake"
    samples = load_samples(catalog, task, split="train", data_dir=data_dir, offline=True, need_images=False).samples
    blind = [replace(sample, images=()) for sample in samples]
    examples = [TrainingExample(build_request(task, s, Generation(), 0), s.references[0], s) for s in blind]
    return request.param, examples, drawn(examples)


@needs_data
def test_candidates_are_answers_to_the_same_kind_and_attribute(slake):
    _, examples, instructions = slake
    assert len(instructions) == len(examples) > 4900
    answers: dict[tuple[str, str], set[str]] = {}
    for example in examples:
        key = (example.sample.answer_type, example.sample.groups["question_type"])
        answers.setdefault(key, set()).add(example.answer.strip())
    shown = 0
    for example, line in zip(examples, instructions, strict=True):
        assert (line.id, line.question, line.answer) == (example.sample.id, example.sample.question, example.answer)
        assert line.question in line.prompt
        assert "{" not in line.prompt
        if not line.candidates:
            continue
        shown += 1
        assert line.candidates.count(example.answer) == 1
        assert 2 <= len(line.candidates) <= 4
        assert len({normalised(text) for text in line.candidates}) == len(line.candidates)
        key = (example.sample.answer_type, example.sample.groups["question_type"])
        assert set(line.candidates) - {example.answer} <= answers[key]
        assert all(candidate in line.prompt for candidate in line.candidates)
    assert shown > 0.6 * len(examples)


@needs_data
def test_closed_questions_get_closed_templates_and_both_opposites(slake):
    name, examples, instructions = slake
    language = {"slake": "en", "slake-zh": "zh"}[name]
    opposites = {frozenset(pair) for pair in read_templates()[language].opposites}
    words = frozenset().union(*opposites)
    both = 0
    for example, line in zip(examples, instructions, strict=True):
        found, kind, _ = line.template.split(".")
        assert (found, kind) == (language, example.sample.answer_type)
        if line.candidates:
            folded = frozenset(normalised(text) for text in line.candidates)
            assert (folded in opposites) or not folded & words, line
            both += folded in opposites
    assert both > 1000


@needs_data
def test_templates_and_places_are_drawn_evenly(slake):
    _, _, instructions = slake
    for kind in ("closed", "open"):
        counts = Counter(line.template for line in instructions if f".{kind}." in line.template)
        expected = sum(counts.values()) / len(counts)
        # Chi-square with at most four degrees of freedom: above 23 once in 10,000 draws.
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < 23, counts
        assert len(counts) in (4, 5)
    places = Counter(line.candidates.index(line.answer) for line in instructions if len(line.candidates) == 4)
    expected = sum(places.values()) / 4
    assert sum((n - expected) ** 2 / expected for n in places.values()) < 23, places


@needs_data
def test_a_draw_depends_on_seed_and_pair_and_not_on_the_order(slake):
    _, examples, instructions = slake
    mixed = list(examples)
    random.Random(3).shuffle(mixed)
    again = {(line.id, line.answer): line for line in drawn(mixed)}
    assert all(again[line.id, line.answer] == line for line in instructions)
    other = drawn(examples, seed=1)
    changed = sum(1 for one, two in zip(instructions, other, strict=True) if one.prompt != two.prompt)
    assert changed > 0.7 * len(examples)


# ---------------------------------------------------------------- by hand


def test_a_pool_of_one_answer_shows_no_candidates(catalog):
    lonely = [example_of(catalog, n, "Liver", f"what is organ {n}?") for n in range(40)]
    other = [example_of(catalog, 90 + n, text, attribute="Plane") for n, text in enumerate(["Axial", "Coronal"])]
    found = drawn([*lonely, *other])
    alone = [line for line in found if line.answer == "Liver"]
    assert not any(line.candidates for line in alone)
    assert len({line.template for line in alone}) == 5, "templates with a place for candidates are drawn as well"
    for line in alone:
        assert "{" not in line.prompt
        assert "Options" not in line.prompt
        assert "Possible answers" not in line.prompt
        assert "one of" not in line.prompt


def test_the_same_answer_in_another_spelling_is_no_wrong_candidate(catalog):
    texts = ["Left lung", "left lung", "LEFT  LUNG.", "Left lung", "Heart", "heart", "Heart"]
    examples = [example_of(catalog, n, text) for n, text in enumerate(texts)]
    pools = build_pools(examples, "question_type")
    assert pools == {("Organ", "open"): {"left lung": "Left lung", "heart": "Heart"}}
    english = read_templates()["en"]
    for seed in range(20):
        shown = draw_candidates("left lung", pools["Organ", "open"], english, 4, random.Random(seed))
        assert sorted(shown) == ["Heart", "left lung"]


def test_yes_is_no_candidate_of_left_and_no_is_one_of_yes():
    english = read_templates()["en"]
    pool = {"yes": "Yes", "no": "No", "left": "Left", "right": "Right"}
    for seed in range(20):
        draw = random.Random(seed)
        assert sorted(draw_candidates("Yes", pool, english, 4, draw)) == ["No", "Yes"]
        assert sorted(draw_candidates("Left", pool, english, 4, draw)) == ["Left", "Right"]
        assert draw_candidates("Yes", {"yes": "Yes", "left": "Left"}, english, 4, draw) == ()


def test_braces_in_questions_and_answers_are_text(catalog):
    examples = [
        example_of(catalog, n, answer, "what is {candidates} {question} {0}?")
        for n, answer in enumerate(["{question}", "{candidates}", "a {x}"] * 10)
    ]
    for line in drawn(examples):
        assert "what is {candidates} {question} {0}?" in line.prompt
        assert line.prompt.count("what is") == 1
        assert all(candidate in line.prompt for candidate in line.candidates)


def test_validation_adds_nothing_to_the_pools(catalog):
    train = [example_of(catalog, n, text) for n, text in enumerate(["Liver", "Heart"] * 10)]
    held = [example_of(catalog, 100 + n, "Spleen") for n in range(20)]
    found = draw_instructions(train, held, attribute="question_type", candidates=4, seed=0)
    assert [line.part for line in found] == ["train"] * 20 + ["validation"] * 20
    assert {text for line in found[:20] for text in line.candidates} == {"Liver", "Heart"}
    assert {text for line in found[20:] for text in line.candidates} == {"Liver", "Heart", "Spleen"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "sample 7 has no question"),
        ({"groups": {"organ": "Chest"}}, "no group 'question_type'.*it has: organ"),
        ({"question": "Где опухоль?"}, "CYRILLIC letters.*--set instructions=FILE"),
        ({"question": "腫瘍はどこですか"}, "HIRAGANA"),
    ],
)
def test_what_cannot_be_made_an_instruction_of_says_why(catalog, changes, message):
    example = example_of(catalog, 7, "Liver")
    example = replace(example, sample=replace(example.sample, **changes))
    with pytest.raises(UserError, match=f"(?s){message}"):
        drawn([example])


def test_a_request_in_other_words_has_the_digest_of_its_words(catalog):
    task = catalog.task("slake")
    sample = example_of(catalog, 1, "Liver", "one?").sample
    request = build_request(task, sample, Generation(), 0)
    other = build_request(task, replace(sample, question="two?"), Generation(), 0)
    assert replace_messages(request, other.messages).digest == other.digest != request.digest
    assert replace_messages(request, request.messages) == request
    with pytest.raises(ValueError, match="show 1 images"):
        replace_messages(request, [Message("user", "x", images=1)])


def test_the_systems_text_and_the_image_stay(catalog):
    task = catalog.task("slake")
    task = task.model_copy(update={"prompt": task.prompt.model_copy(update={"system": "Be brief."})})
    sample = example_of(catalog, 1, "Liver").sample
    example = TrainingExample(build_request(task, sample, Generation(), 0), "Liver", sample)
    line = Instruction(id="1", question="where is it?", answer="Liver", prompt="told")
    (made,) = instructed([example], [line])
    assert [(m.role, m.text, m.images) for m in made.request.messages] == [
        ("system", "Be brief.", 0),
        ("user", "told", 0),
    ]
    assert made.answer == "Liver"
    assert made.request.seed == example.request.seed


# ---------------------------------------------------------------- trained, written, read


def test_what_was_drawn_lies_beside_the_weights(tuned):
    lines = lines_of(tuned.folder)
    record = tuned.checkpoint.data
    assert {line["part"] for line in lines} == {"train", "validation"}
    assert len(lines) == record.train.samples + record.validation.samples
    shown = sum(1 for line in lines if line["candidates"])
    assert f"{len(lines)} pairs as instructions, {shown} of them with candidate answers" in tuned.checkpoint.notes
    losses = [entry["loss"] for entry in tuned.checkpoint.history if "loss" in entry]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_the_model_is_trained_on_the_instructions(catalog, base, place, monkeypatch):
    from mhe_hf.training import watching

    plan = plan_step(catalog, step_on(base, max_steps=1), place)
    seen = []
    original = watching.WatchedTrainer.__init__

    def watch(self, examples, *rest, **more):
        seen.extend([*examples, *[e for _, row in more["eval_dataset"] for e in row]])
        original(self, examples, *rest, **more)

    monkeypatch.setattr(watching.WatchedTrainer, "__init__", watch)
    done = run_step(catalog, plan.step, place)
    prompts = {line["id"]: line["prompt"] for line in lines_of(done.folder)}
    assert {e.sample.id: e.request.messages[-1].text for e in seen} == prompts
    assert len(seen) == len(plan.data.train) + len(plan.data.validation)
    images = {e.sample.id: e.request.images for e in [*plan.data.train, *plan.data.validation]}
    assert all(e.request.images == images[e.sample.id] and e.request.messages[-1].images == 1 for e in seen)


def test_a_written_file_read_again_trains_the_same_bytes(tuned, catalog, base, place, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_bytes((tuned.folder / "instructions.jsonl").read_bytes())
    step = step_on(base, "read", instructions=str(file))
    done = run_step(catalog, step, place)
    weights = "model/model.safetensors"
    assert (done.folder / weights).read_bytes() == (tuned.folder / weights).read_bytes()
    assert lines_of(done.folder) == lines_of(tuned.folder)
    assert done.checkpoint.recipe_options["instructions"].startswith("mine.jsonl, sha256 ")
    assert str(tmp_path) not in json.dumps(done.checkpoint.recipe_options)
    # The content is what counts: another prompt in a file of the same name is another step.
    file.write_text(file.read_text().replace("Question about", "A question about"))
    assert plan_step(catalog, step, place).digest != done.checkpoint.step_digest


def test_a_file_that_does_not_fit_is_refused_with_every_problem(tuned, catalog, base, place, tmp_path):
    lines = lines_of(tuned.folder)
    lines[0]["answer"] = "maybe"
    lines[1]["id"] = "999"
    lines[2]["prompt"] = " "
    del lines[3]["prompt"]
    file = tmp_path / "wrong.jsonl"
    file.write_text("\n".join([*(json.dumps(line) for line in lines), json.dumps(lines[5]), "{half"]))
    step = step_on(base, "read", instructions=str(file))
    with pytest.raises(DocumentError) as raised:
        run_step(catalog, step, place)
    text = str(raised.value)
    for expected in (
        "line 1: the answer to", "not 'maybe'", "line 2: no training or validation pair is 999",
        "line 3: the prompt of", "line 4: prompt: Field required", "stands there twice",
        f"line {len(lines) + 2}: Invalid JSON", f"3 of {len(lines)} pairs are missing",
    ):  # fmt: skip
        assert expected in text, text
    with pytest.raises(DocumentError, match="instructions: Path does not point to a file"):
        plan_step(catalog, step_on(base, "read", instructions=str(tmp_path / "none.jsonl")), place)


def test_pairs_of_two_tasks_with_one_id_keep_their_own_answers(catalog):
    one, other = (example_of(catalog, 1, text, "is this a CT?", "closed") for text in ("Yes", "No"))
    found = drawn([one, other, one])
    assert [line.answer for line in found] == ["Yes", "No"], "a pair that a mixture holds twice is one instruction"
    made = instructed([one, other, one], found)
    assert [example.request.messages[-1].text for example in made] == [found[n].prompt for n in (0, 1, 0)]


def test_lines_survive_a_round_trip(catalog, tmp_path):
    example = example_of(catalog, 1, "肝\u2028脏", "器官\u2028是\n什么？")
    written = drawn([example, example_of(catalog, 2, "肺", "另一个器官？")])
    file = tmp_path / "lines.jsonl"
    file.write_text(instruction_lines(written), encoding="utf-8", newline="\n")
    assert read_instructions(file, [example, example_of(catalog, 2, "肺", "另一个器官？")]) == written
    assert written[0].template.startswith("zh.open.")


def test_a_dry_run_draws_and_writes_nothing(catalog, base, place):
    found = preview_step(catalog, plan_step(catalog, step_on(base, vision="frozen"), place), place)
    assert found.modules["vision"][1] == 0
    assert any("pairs as instructions" in note for note in found.notes)
    assert not place.directory.exists()


# ---------------------------------------------------------------- evaluation


def test_evaluation_asks_the_tasks_own_prompt_without_candidates(tuned, catalog, release, tmp_path, monkeypatch):
    from mhe.evaluation import run
    from mhe.run_plan import RunOptions, plan_run
    from mhe_hf import HfBackend

    asked = []
    original = HfBackend.generate

    def generate(self, requests, pending):
        asked.extend(requests)
        yield from original(self, requests, pending)

    monkeypatch.setattr(HfBackend, "generate", generate)
    task = catalog.task("vqa-rad")
    options = RunOptions(tmp_path / "runs", data_dir=release, offline=True, backend_options={"device": "cpu"})
    done = run(plan_run(catalog, tuned.model, task, options), lambda *_: None)
    assert done.record.model.lineage[0].recipe == "instruction"
    assert len(asked) == 3
    for request in asked:
        (message,) = request.messages
        assert message.text.endswith("\nAnswer the question using a single word or phrase.")
        question = message.text.removesuffix("\nAnswer the question using a single word or phrase.")
        assert message.text == task.prompt.user.replace("{question}", question)
        for word in ("Options", "Possible answers", "one of", "Choose", "; "):
            assert word not in message.text


def test_no_task_shows_candidates_in_its_prompt(catalog):
    names = [name for name in catalog.task_folders if catalog.task(name).kind == "vqa"]
    assert len(names) >= 5
    for name in names:
        assert "{candidates}" not in catalog.task(name).prompt.user
        assert "option" not in catalog.task(name).prompt.user.lower()


# ---------------------------------------------------------------- pipelines


def test_the_registered_pipelines_are_valid(catalog):
    names = [n for n in catalog.pipelines if catalog.owner_of("pipeline", n).name == "tune"]
    assert {"mile-instruction", "mile-two-stage", "visiongpt2-staged"} <= set(names)
    for name in names:
        spec = find_pipeline(name, catalog)
        assert spec.name == name
        check_pipeline(catalog, spec)
        assert spec.base in catalog.models
    two = find_pipeline("mile-two-stage", catalog)
    assert [step.recipe for step in two.steps] == ["full", "instruction"]
    assert two.data[0].task == "slake"


def test_mile_in_two_stages_on_the_small_model_of_its_architecture(catalog, place, tmp_path):
    from mhe_tiny.build import build_folder

    small = build_folder("tiny-blip-vqa", tmp_path / "tiny-blip-vqa", 0)
    spec = with_data(find_pipeline("mile-two-stage", catalog), [tune_cases.TrainingChoice(task="vqa-rad")])
    few = {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-3, "dtype": "fp32"}
    settings = {f"{step}.{key}": value for step in ("original", "instruction") for key, value in few.items()}
    results = run_pipeline(catalog, with_settings(spec, {"base": str(small), **settings}), place)
    made = [result.outcome.checkpoint for result in results]
    assert [checkpoint.name for checkpoint in made] == ["mile-two-stage.original", "mile-two-stage"]
    assert made[1].parent == "mile-two-stage.original@0"
    assert made[1].parent_fingerprint == made[0].fingerprint
    assert made[1].recipe_options["preset"] == "mile-instruction"
    assert (made[1].recipe_options["weight_decay"], made[1].recipe_options["keep"]) == (0.05, "last")
    assert not (results[0].outcome.folder / "instructions.jsonl").exists()
    assert lines_of(results[1].outcome.folder)
