"""`mhe check-backends`: what counts as a tie, what as a disagreement, and whether log-probabilities are right."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
from contextlib import nullcontext
from typing import ClassVar

import pytest

from command import mhe
from fake_plugins import plugin, provider
from mhe import Fingerprint, ModelSpec, SampleModelError, TokenChance, UserError, open_catalog
from mhe.agreement import TIE, agreement_of_texts, explain_difference, first_different_word
from mhe.backend_checks import NOT_SCORED, BackendChoice, check_backends
from mhe.run_plan import RunOptions
from mhe.testing import ScriptedBackend

LIMIT = 6
WIDE = 0.5


class Story:
    """A language model that is written out: the likeliest tokens after each beginning, by their logits.

    `after` maps the tokens so far, joined by `joint`, to {token: logit}; `</s>` ends an answer.
    """

    def __init__(self, after, limit=16, joint=""):
        self.after = after
        self.limit = limit
        self.joint = joint
        self.names = sorted({token for logits in after.values() for token in logits})

    def chances(self, written):
        logits = self.after[self.joint.join(written)]
        total = math.log(sum(math.exp(logit) for logit in logits.values()))
        found = [
            TokenChance(
                id=self.names.index(token),
                token=token,
                log_probability=logit - total,
                text="".join(written) + ("" if token == "</s>" else token),
                is_end=token == "</s>",
            )
            for token, logit in logits.items()
        ]
        return sorted(found, key=lambda chance: -chance.log_probability)

    def __call__(self, before):
        written, steps = [], []
        while len(steps) < self.limit:
            step = self.chances(written)
            steps.append(step)
            place = len(steps) - 1
            chosen = next(c for c in step if c.id == before[place]) if place < len(before) else step[0]
            if chosen.is_end:
                break
            written.append(chosen.token)
        return steps


END = {"</s>": 0.0, " x": -WIDE}


def story(gap, **more):
    """`a left`, or, `gap` less likely, `a right lung`."""
    return Story(
        {
            "": {"a": 0.0, "b": -WIDE},
            "a": {" left": 0.0, " right": -gap, " x": -WIDE},
            "a left": END,
            "a right": {" lung": 0.0, "</s>": -WIDE},
            "a right lung": END,
            **more,
        }
    )


def tokens(found):
    return [(fork.place, fork.best.token, fork.other and fork.other.token) for fork in found.forks]


class TestForks:
    @pytest.mark.parametrize("gap", [0.0, TIE / 2, TIE * 0.99])
    def test_two_best_tokens_that_close_are_a_tie(self, gap):
        found = explain_difference(story(gap), "a left", "a right lung")
        assert found.is_tied
        assert tokens(found) == [(2, " left", " right")]
        assert found.forks[0].gap == pytest.approx(gap, abs=1e-12)

    @pytest.mark.parametrize("gap", [TIE * 1.01, 1e-3, 0.3])
    def test_farther_apart_they_are_none(self, gap):
        found = explain_difference(story(gap), "a left", "a right lung")
        assert not found.is_tied
        assert found.forks[0].gap == pytest.approx(gap, abs=1e-12)

    def test_a_tie_that_does_not_lead_to_the_other_text_explains_nothing(self):
        # The tokens part at a tie, and the reference goes on otherwise from there than the other answer does.
        found = explain_difference(story(0.0), "a left", "a right")
        assert not found.is_tied
        assert tokens(found) == [(2, " left", " right"), (3, " lung", "</s>")]
        assert found.forks[1].gap == pytest.approx(WIDE)

    def test_several_ties_are_followed_one_after_the_other(self):
        twice = story(TIE / 2, **{"a right": {" lung": 0.0, " knee": -TIE / 2}, "a right knee": END})
        found = explain_difference(twice, "a left", "a right knee")
        assert found.is_tied
        assert tokens(found) == [(2, " left", " right"), (3, " lung", " knee")]

    def test_a_token_beyond_the_likely_ones_is_not_guessed(self):
        found = explain_difference(story(0.1), "a left", "a sideways")
        assert not found.is_tied
        assert tokens(found) == [(2, " left", None)]

    def test_an_answer_that_ends_earlier_parts_at_its_end(self):
        ends = Story({"": {"a": 0.0}, "a": {" left": 0.0, "</s>": -TIE / 2}, "a left": END})
        found = explain_difference(ends, "a left", "a")
        assert found.is_tied
        assert tokens(found) == [(2, " left", "</s>")]

    @pytest.mark.parametrize(("gap", "is_tied"), [(TIE / 2, True), (0.1, False)])
    def test_tokens_may_part_before_texts_do(self, gap, is_tied):
        # `le` + `ft` and `left` are one text; the model goes on otherwise after the one than after the other.
        split = Story(
            {
                "": {"left": 0.0, "le": -gap},
                "le": {"ft": 0.0},
                "le|ft": {" knee": 0.0, " lung": -WIDE},
                "left": {" lung": 0.0, " knee": -WIDE},
                "left| lung": END,
                "left| knee": END,
                "le|ft| knee": END,
            },
            joint="|",
        )
        found = explain_difference(split, "left lung", "left knee")
        assert found.is_tied is is_tied
        assert tokens(found) == ([(1, "left", "le")] if is_tied else [(2, " lung", " knee")])

    def test_stop_texts_cut_the_path_as_they_cut_answers(self):
        stopped = story(0.1, **{"a left": {".": 0.0, "</s>": -WIDE}, "a left.": END})
        assert tokens(explain_difference(stopped, "a left", "a right lung", stops=(".",))) == [(2, " left", " right")]

    def test_a_reference_that_answers_otherwise_alone_is_said(self):
        found = explain_difference(story(0.1), "a knee", "a right lung")
        assert (found.is_tied, found.forks) == (False, ())
        assert "asked alone" in found.reason

    def test_an_answer_cut_at_its_limit_has_no_fork(self):
        short = story(0.1)
        short.limit = 2
        found = explain_difference(short, "a left", "a left knee")
        assert (found.is_tied, found.forks) == (False, ())
        assert "limit" in found.reason


class TestWords:
    @pytest.mark.parametrize(
        ("first", "second", "wanted"),
        [
            ("left lung", "left lung", None),
            ("left lung", "left knee", (2, "lung", "knee")),
            ("left", "left lung", (2, "", "lung")),
            ("", "left", (1, "", "left")),
            ("left lung.", "left lung", (2, "lung.", "lung")),
            ("left  lung", "left lung", (1, " ", "l")),
        ],
    )
    def test_the_first_different_word(self, first, second, wanted):
        found = first_different_word(first, second)
        assert (found and (found.place, found.first, found.second)) == wanted

    def test_only_shared_samples_count(self):
        found = agreement_of_texts({"a": "x", "b": "y", "c": "z"}, {"b": "y", "c": "w", "d": "v"})
        assert (found.samples, found.equal, found.share, list(found.differences)) == (2, 1, 0.5, ["c"])
        assert agreement_of_texts({}, {"a": "x"}).share is None


# ---------------------------------------------------------------- scripted backends


class Tellers:
    """Scripted backends `one` and `two` that answer as told; `one` tells its chances where it has a story."""

    texts: ClassVar[dict] = {}
    stories: ClassVar[dict] = {}
    opened: ClassVar[list] = []
    natures: ClassVar[dict] = {}
    """Backend to what it says of itself."""
    counts: ClassVar[dict] = {}
    """Backend to what it says of each answer."""


class Teller(ScriptedBackend):
    NAME = "one"

    def __init__(self, model, options, context):
        super().__init__(model, options.model_copy(update={"answers": Tellers.texts.get(self.NAME, {})}), context)
        Tellers.opened.append(self)

    def describe(self):
        found = dataclasses.replace(super().describe(), **Tellers.natures.get(self.NAME, {}))
        return dataclasses.replace(found, fingerprint=Fingerprint("same weights", verified=True))

    def generate(self, requests, pending):
        for response in super().generate(requests, pending):
            yield dataclasses.replace(response, **Tellers.counts.get(self.NAME, {}))


class Scorer(Teller):
    def next_tokens(self, request, before, most):
        assert "load" in self.events
        told = Tellers.stories.get(request.sample_id)
        if told is None:
            raise SampleModelError("scripted to be silent")
        return [step[:most] for step in told(before)]


class Other(Teller):
    NAME = "two"


@pytest.fixture
def catalog():
    Tellers.texts, Tellers.stories, Tellers.opened, Tellers.natures, Tellers.counts = {}, {}, [], {}, {}
    kinds = {"one": Scorer, "two": Other, "mute": Teller}
    backends = [provider(name, lambda kind=kind: kind) for name, kind in kinds.items()]
    models = [ModelSpec(name="m", backend="one", location="nowhere", summary="", licence="")]
    ours = plugin("tellers", register_backends=lambda: backends, register_models=lambda: models)
    return open_catalog([ours, *importlib.metadata.entry_points(group="mhe")])


def check(catalog, tmp_path, backends="one,two", settings=None, **options):
    return check_backends(
        catalog,
        "m",
        "phantom-vqa",
        [BackendChoice.parse(text) for text in backends.split(",")],
        RunOptions(runs_dir=tmp_path / "runs", limit=LIMIT, offline=True, **options),
        settings=settings or {},
        checkpoints_dir=tmp_path,
        progress=lambda _label: nullcontext(lambda *_: None),
    )


@pytest.fixture
def ids(catalog, tmp_path):
    found = check(catalog, tmp_path / "first")
    assert found.agrees
    names = [json.loads(line)["id"] for line in (found.reference.folder / "samples.jsonl").read_text().splitlines()]
    assert len(names) == LIMIT
    return names


def test_equal_answers_agree_and_the_reference_is_loaded_once(catalog, tmp_path):
    found = check(catalog, tmp_path, "one,one:3,two")
    assert found.agrees
    assert [(run.equal, run.differences) for run in found.others] == [(LIMIT, ())] * 2
    assert sum("load" in backend.events for backend in Tellers.opened) == 3


def test_ties_and_disagreements_are_told_apart(catalog, tmp_path, ids):
    Tellers.texts = {
        "one": dict.fromkeys(ids[:3], "a left"),
        "two": {ids[0]: "a right lung", ids[1]: "a right lung", ids[2]: "a left"},
    }
    Tellers.stories = {ids[0]: story(TIE / 2), ids[1]: story(0.2)}
    found = check(catalog, tmp_path)
    (other,) = found.others
    assert not found.agrees
    assert (other.equal, other.count("tie"), other.count("disagreement")) == (LIMIT - 2, 1, 1)
    tie, clash = other.differences
    assert (tie.sample, tie.verdict) == (ids[0], "tie")
    assert tie.causes[0] == "near-tie"
    assert (clash.sample, clash.verdict, clash.forks[0].gap) == (ids[1], "disagreement", pytest.approx(0.2))
    assert "near-tie" not in clash.causes
    Tellers.stories[ids[1]] = story(TIE / 2)
    again = check(catalog, tmp_path)
    assert again.agrees, "ties alone are agreement"
    assert Tellers.opened[-1].events[-1] == "close"


def test_what_the_reference_cannot_tell_is_not_guessed(catalog, tmp_path, ids):
    Tellers.texts = {"two": {ids[0]: "no"}}
    (other,) = check(catalog, tmp_path / "mute", "mute,two").others
    (difference,) = other.differences
    assert (difference.verdict, difference.reason, difference.forks) == ("not told", NOT_SCORED, ())
    assert not other.agrees
    (other,) = check(catalog, tmp_path / "silent").others
    (difference,) = other.differences
    assert (difference.verdict, difference.reason) == ("disagreement", "scripted to be silent")


def test_a_missing_answer_is_no_agreement(catalog, tmp_path, ids):
    found = check(catalog, tmp_path, settings={"two": {"fail_on": {ids[1]: "model"}}})
    (difference,) = found.others[0].differences
    assert (difference.verdict, difference.other) == ("disagreement", None)
    assert difference.causes == ("this backend failed (model): scripted to fail",)
    both = check(catalog, tmp_path, settings={name: {"fail_on": {ids[1]: "model"}} for name in ("one", "two")})
    assert (both.others[0].unanswered, both.others[0].differences) == (1, ())
    assert not both.agrees


HALF = "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("first", "second", "counts", "verdict"),
    [
        (f"a left {HALF}", "a left", {}, "half character"),
        (HALF * 2, "", {}, "half character"),
        (f"a left {HALF}", "a left", {"generated_tokens": 2}, "not told"),
        (f"a {HALF} left", "a left", {}, "not told"),
    ],
)
def test_an_end_within_a_character_is_the_same_answer(catalog, tmp_path, ids, first, second, counts, verdict):
    Tellers.texts = {"one": {ids[0]: first}, "two": {ids[0]: second}}
    Tellers.counts = {"one": COUNTS, "two": {**COUNTS, **counts}}
    found = check(catalog, tmp_path, "mute,two")
    (difference,) = found.others[0].differences
    assert (difference.verdict, bool(difference.causes)) == (verdict, verdict == "half character")
    assert found.agrees is (verdict == "half character")


PIL = {"key_options": {"image_processor": "pil"}, "precision": "float32"}
COUNTS = {"prompt_tokens": 9, "generated_tokens": 3, "finish_reason": "stop"}


class TestCauses:
    @pytest.mark.parametrize(
        ("nature", "counts", "wanted"),
        [
            ({}, {}, []),
            ({"key_options": {"image_processor": "torchvision"}}, {}, ["other image pixels"]),
            ({"precision": "bfloat16"}, {}, ["other precision: float32 and bfloat16"]),
            ({}, {"prompt_tokens": 10}, ["other prompt tokens: 9 and 10"]),
            ({}, {"finish_reason": "length", "generated_tokens": 2}, ["other length limit: cut after 2 tokens, and 3"]),
            ({}, {"generated_tokens": 2}, []),
            ({"key_options": {}, "precision": None}, {"prompt_tokens": None}, []),
        ],
    )
    def test_a_cause_is_told_where_both_backends_tell_it(self, catalog, tmp_path, ids, nature, counts, wanted):
        Tellers.texts = {"one": {ids[0]: "a right lung"}, "two": {ids[0]: "a right"}}
        Tellers.natures = {"one": PIL, "two": {**PIL, **nature}}
        Tellers.counts = {"one": COUNTS, "two": {**COUNTS, **counts}}
        Tellers.stories = {ids[0]: story(-0.1)}
        (difference,) = check(catalog, tmp_path).others[0].differences
        assert (difference.verdict, difference.reason) == ("disagreement", None)
        assert [fork.place for fork in difference.forks] == [3]
        assert len(difference.causes) == len(wanted)
        assert all(cause.startswith(start) for cause, start in zip(difference.causes, wanted, strict=True))


class TestCalls:
    @pytest.mark.parametrize(
        ("backends", "message"),
        [("one", "two or more"), ("one:2,one:2", "given twice"), ("one:0,two", "1 sample or more")],
    )
    def test_mistakes_are_found_before_anything_runs(self, catalog, tmp_path, backends, message):
        with pytest.raises(UserError, match=message):
            check(catalog, tmp_path, backends)
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize(
        ("text", "name", "size"), [("hf", "hf", None), ("hf:16", "hf", 16), ("family:x", "family:x", None)]
    )
    def test_a_batch_size_follows_the_name(self, text, name, size):
        choice = BackendChoice.parse(text)
        assert (choice.name, choice.batch_size, choice.label) == (name, size, text)

    def test_generation_is_greedy_and_batches_lie_apart(self, catalog, tmp_path):
        found = check(catalog, tmp_path, "one:2,one:4", generation={"temperature": 1.0, "max_new_tokens": 3})
        runs = [found.reference, *found.others]
        assert {run.record.generation.temperature for run in runs} == {0.0}
        assert {run.record.generation.max_new_tokens for run in runs} == {3}
        assert [run.record.backend.neutral_options["batch_size"] for run in runs] == [2, 4]
        assert len({run.record.run_key for run in runs}) == 1
        assert len({run.folder for run in runs}) == 2

    def test_the_command(self, tmp_path):
        arguments = ("check-backends", "scripted", "--task", "phantom-vqa", "--limit", 5)
        done = mhe(*arguments, "--backends", "scripted:1,scripted:4", "--json", cwd=tmp_path)
        assert done.code == 0, done.err
        (other,) = done.document["backends"]
        assert (done.document["agrees"], other["equal"], other["ties"], other["differences"]) == (True, 5, 0, [])
        table = mhe(*arguments, "--backends", "scripted:1,scripted:4", cwd=tmp_path)
        assert "5 of 5" in table.out
        alone = mhe(*arguments, "--backends", "scripted", cwd=tmp_path)
        assert alone.code == 2
        assert "two or more" in alone.err
        lost = mhe(*arguments, "--set", "scripted.answr=no", cwd=tmp_path)
        assert lost.code == 2
        assert "answer" in lost.err
