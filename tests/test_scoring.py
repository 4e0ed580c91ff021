"""From cases to records and files: intervals, groups, worst cases, reuse, nulls with reasons."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mhe import (
    Case,
    Image,
    MetricUnavailableError,
    MetricValue,
    MheError,
    Part,
    Sample,
    TaskSpec,
    UserError,
    digest_of,
)
from mhe.errors import UnknownNameError
from mhe.protocols import AnswerProfile
from mhe.scoring import NOTHING_ANSWERED, NOTHING_COUNTED, check_scoring, score_cases, uncomputed
from mhe_metrics.accuracy import Accuracy
from mhe_metrics.bleu import Bleu
from mhe_metrics.profiles.plain import PLAIN
from mhe_metrics.profiles.strict import STRICT


class LengthOptions(Part):
    unit: float = 1.0


class Length:
    """Mean length in characters, lower is better, no floor; a scripted metric whose behaviour tests can set."""

    Options = LengthOptions
    name, version = "length", "3"
    kinds, requires = frozenset({"vqa"}), frozenset({"references"})
    columns = ("length", "count")
    values = (MetricValue("length", "characters", floor=None, ceiling=None, higher_is_better=False),)
    calls = 0
    break_with: object = None

    def __init__(self, options, context):
        self.unit = options.unit
        assert context.cache_dir

    def statistics(self, cases, profile):
        type(self).calls += 1
        if isinstance(self.break_with, Exception):
            raise self.break_with
        if self.break_with is not None:
            return self.break_with
        return np.array([[len(case.answer) * self.unit, 1.0] for case in cases]).reshape(len(cases), 2)

    def aggregate(self, sums):
        with np.errstate(invalid="ignore"):
            return {"length": np.asarray(sums[..., 0] / sums[..., 1])}

    def per_sample(self, statistics):
        return self.aggregate(statistics)


class CountingProfile:
    """`strict` that counts its calls."""

    name, version, kind, source, defects = "strict", STRICT.version, "vqa", "", ()

    def __init__(self):
        self.calls = 0

    def clean(self, texts):
        self.calls += 1
        return STRICT.clean(texts)

    question_type = staticmethod(STRICT.question_type)
    credit = staticmethod(STRICT.credit)


class FakeCatalog:
    def __init__(self):
        self.metrics = {"accuracy": Accuracy, "bleu": Bleu, "length": Length}
        self.profiles = {"strict": CountingProfile(), "plain": PLAIN}

    def metric(self, name):
        if name not in self.metrics:
            raise UnknownNameError("metric", name, self.metrics)
        return self.metrics[name]

    def profile(self, name):
        if name not in self.profiles:
            raise UnknownNameError("profile", name, self.profiles)
        return self.profiles[name]

    def open_tagger(self, name, options):
        raise UnknownNameError("tagger", name, [])


TASK = TaskSpec.model_validate(
    {
        "name": "quiz",
        "version": 1,
        "title": "Quiz",
        "kind": "vqa",
        "summary": "",
        "source": {"homepage": "", "licence": "", "citation": ""},
        "reader": {"name": "none"},
        "splits": {"test": {}, "train": {}},
        "prompt": {"user": "{question}"},
        "metrics": ["accuracy"],
        "primary": "accuracy",
        "profile": "strict",
        "groups": ["modality"],
    }
)


@pytest.fixture(autouse=True)
def fresh_metric(monkeypatch):
    monkeypatch.setattr(Length, "calls", 0)
    monkeypatch.setattr(Length, "break_with", None)


def make_sample(number, reference, answer_type, modality=None):
    return Sample(
        id=f"q{number}",
        images=(Image(f"image {number // 2}", source=None),),
        references=(reference,),
        question="?",
        answer_type=answer_type,
        groups={} if modality is None else {"modality": modality},
    )


SAMPLES = [
    make_sample(0, "Yes", "closed", "CT"),
    make_sample(1, "Lung", "open", "CT"),
    make_sample(2, "No", "closed", "MRI"),
    make_sample(3, "Liver", "open", "MRI"),
    make_sample(4, "Heart", "open"),
    make_sample(5, "Left", "open", "CT"),
]
ANSWERS = ["yes", "lung", "yes", "liver", "heart", "right"]
CASES = [Case(sample, answer) for sample, answer in zip(SAMPLES, ANSWERS, strict=True)]


def score(cases=CASES, samples=SAMPLES, catalog=None, **changes):
    wanted = {"metrics": ["accuracy"], "profiles": ["strict"], "run_key": "key", "cache_dir": Path("unused")}
    return score_cases(catalog or FakeCatalog(), TASK, cases, all_samples=samples, **{**wanted, **changes})


def by_name(records):
    return {value.name: value for record in records for value in record.values}


def test_values_intervals_groups_and_counts():
    (record,) = score()
    found = by_name([record])
    assert found["accuracy"].value == 4 / 6
    assert found["accuracy"].samples == 6
    assert 0 <= found["accuracy"].low < 4 / 6 < found["accuracy"].high <= 1
    assert found["accuracy.closed"].value == 0.5
    assert found["accuracy.closed"].samples == 2
    assert found["accuracy.open"].value == 0.75
    assert found["accuracy"].groups == {"modality": {"CT": 2 / 3, "MRI": 0.5}}
    assert found["accuracy.yes-no"].groups == {"modality": {"CT": 1.0, "MRI": 0.0}}
    assert found["accuracy"].worst_case is None
    assert not record.provisional
    assert record.file is None
    assert uncomputed([record]) == []


def test_a_group_without_the_kind_is_null():
    (record,) = score(CASES[:2] + CASES[3:4], SAMPLES[:2] + SAMPLES[3:4])
    assert by_name([record])["accuracy.closed"].groups == {"modality": {"CT": 1.0, "MRI": None}}


def test_a_value_over_nothing_is_null_with_a_reason():
    (record,) = score(CASES[4:], SAMPLES[4:])
    closed = by_name([record])["accuracy.closed"]
    assert (closed.value, closed.low, closed.samples, closed.reason) == (None, None, 0, NOTHING_COUNTED)
    assert uncomputed([record]) == []


def test_no_interval_from_one_image():
    (record,) = score(CASES[:2], SAMPLES[:2])
    assert by_name([record])["accuracy"].value == 1
    assert by_name([record])["accuracy"].low is None


def test_intervals_resample_by_image():
    """Two questions an image, both right or both wrong: half as many independent draws."""
    samples = [make_sample(n, "Lung", "open") for n in range(80)]
    cases = [Case(s, "lung" if n % 4 < 2 else "heart") for n, s in enumerate(samples)]
    shared = by_name(score(cases, samples))["accuracy"]
    alone = [Sample(id=s.id, images=(), references=s.references, question="?", answer_type="open") for s in samples]
    apart = by_name(score([Case(s, c.answer) for s, c in zip(alone, cases, strict=True)], alone))["accuracy"]
    assert shared.value == apart.value == 0.5
    assert shared.high - shared.low > 1.2 * (apart.high - apart.low)


def test_a_partial_run_is_provisional_and_shows_the_worst_case():
    (record,) = score(CASES[:4])
    found = by_name([record])
    assert record.provisional
    assert found["accuracy"].value == 3 / 4
    assert found["accuracy"].worst_case == 3 / 6
    assert found["accuracy.closed"].worst_case == 0.5
    assert found["accuracy.open"].value == 1
    assert found["accuracy.open"].worst_case == 2 / 4


def test_a_partial_corpus_metric_is_lowered_in_proportion():
    (record,) = score(CASES[:3], SAMPLES, metrics=["bleu"])
    bleu = by_name([record])["bleu-1"]
    assert bleu.worst_case == pytest.approx(bleu.value / 2)


def test_a_metric_without_a_floor_has_no_worst_case():
    (record,) = score(CASES[:4], metrics=["length"])
    value = by_name([record])["length"]
    assert value.value == 15 / 4
    assert value.worst_case is None
    assert not value.higher_is_better


def test_nothing_answered():
    (record,) = score([])
    value = by_name([record])["accuracy"]
    assert (value.value, value.reason, value.samples, value.worst_case) == (None, NOTHING_ANSWERED, 0, 0.0)
    assert record.provisional
    assert uncomputed([record]) == [record]


def test_an_unavailable_metric_is_null_with_its_reason_and_the_others_stand(monkeypatch, tmp_path):
    monkeypatch.setattr(Length, "break_with", MetricUnavailableError("Java was not found: pip install it"))
    records = score(metrics=["length", "accuracy"], folder=tmp_path)
    value = by_name(records)["length"]
    assert (value.value, value.worst_case, value.reason) == (None, None, "Java was not found: pip install it")
    assert records[0].file is None
    assert by_name(records)["accuracy"].value == 4 / 6
    assert uncomputed(records) == [records[0]]
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize(
    ("statistics", "words"),
    [(np.ones((6, 3)), "shape"), (np.ones((5, 2)), "shape"), (np.array([[1, np.nan]] * 6), "number 1 are not finite")],
)
def test_a_defective_metric_is_named(monkeypatch, statistics, words):
    monkeypatch.setattr(Length, "break_with", statistics)
    with pytest.raises(MheError, match=f"'length'.*{words}"):
        score(metrics=["length"])


def test_the_score_file(tmp_path):
    (record,) = score(folder=tmp_path)
    assert record.file == f"scores/accuracy-strict-{record.score_key[:8]}.json"
    content = json.loads((tmp_path / record.file).read_text(encoding="utf-8"))
    assert content["schema_version"] == 1
    assert (content["metric"], content["metric_version"]) == ("accuracy", "1")
    assert (content["profile"], content["profile_version"]) == ("strict", "1")
    assert content["options"] == {}
    assert content["score_key"] == record.score_key
    assert content["ids"] == [sample.id for sample in SAMPLES]
    assert content["units"] == ["image 0", "image 0", "image 1", "image 1", "image 2", "image 2"]
    assert content["groups"] == {"modality": ["CT", "CT", "MRI", "MRI", None, "CT"]}
    assert content["statistics"][0] == [1, 1, 1, 1, 0, 0, 1, 1]
    assert content["values"]["accuracy"] == [1, 1, 0, 1, 1, 0]
    assert content["values"]["accuracy.closed"] == [1, None, 0, None, None, None]
    assert "lung" not in (tmp_path / record.file).read_text(encoding="utf-8").lower()


def test_files_are_the_same_bytes_each_time(tmp_path):
    for folder in ("a", "b"):
        score(folder=tmp_path / folder, metrics=["bleu", "accuracy"])
    files = {path.name: path.read_bytes() for path in (tmp_path / "a" / "scores").iterdir()}
    assert len(files) == 2
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "b" / "scores").iterdir()}


def test_kept_statistics_serve_the_same_answers_only(tmp_path):
    first = score(metrics=["length"], folder=tmp_path)
    assert Length.calls == 1
    assert score(metrics=["length"], folder=tmp_path) == first
    assert Length.calls == 1
    changed = [Case(CASES[0].sample, "a longer answer"), *CASES[1:]]
    assert by_name(score(changed, metrics=["length"], folder=tmp_path))["length"].value != first[0].values[0].value
    assert Length.calls == 2
    assert score(metrics=["length"], folder=tmp_path) == first
    assert len(list(tmp_path.rglob("*.json"))) == 1


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"ids": 1}', b"\xff"])
def test_a_damaged_score_file_is_made_again(tmp_path, damage):
    (record,) = score(folder=tmp_path)
    path = tmp_path / record.file
    whole = path.read_bytes()
    path.write_bytes(damage)
    assert score(folder=tmp_path) == [record]
    assert path.read_bytes() == whole


def test_cut_statistics_are_not_trusted(tmp_path):
    (record,) = score(folder=tmp_path)
    path = tmp_path / record.file
    content = json.loads(path.read_text(encoding="utf-8"))
    content["statistics"] = content["statistics"][:-1]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert score(folder=tmp_path) == [record]


def test_lone_surrogates_in_answers_and_ids_can_be_written(tmp_path):
    sample = Sample(id="a\ud800", images=(), references=("x",), question="?")
    (record,) = score([Case(sample, "\udfff")], [sample], folder=tmp_path)
    assert json.loads((tmp_path / record.file).read_text(encoding="ascii"))["ids"] == ["a\ud800"]


def test_score_keys_differ_by_run_options_and_versions(monkeypatch):
    keys = {
        score(metrics=["length"])[0].score_key,
        score(metrics=["length"], run_key="other")[0].score_key,
        score(metrics=["length"], metric_options={"length": {"unit": 2}})[0].score_key,
    }
    monkeypatch.setattr(Length, "version", "4")
    keys.add(score(metrics=["length"])[0].score_key)
    monkeypatch.setattr(CountingProfile, "version", "2")
    keys.add(score(metrics=["length"])[0].score_key)
    assert len(keys) == 5


def test_options_reach_the_metric_and_the_record():
    (record,) = score(metrics=["length"], metric_options={"length": {"unit": 2}})
    assert record.options == {"unit": 2.0}
    assert record.values[0].value == 2 * sum(map(len, ANSWERS)) / 6


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"metric_options": {"accuracy": {"n": 1}}}, UserError, r"(?s)'accuracy'.*n: no such key.*options: none"),
        ({"metrics": ["length"], "metric_options": {"length": {"unt": 1}}}, UserError, "Known options: unit"),
        ({"metric_options": {"bleu": {}}}, UserError, "not asked for"),
        ({"metric_options": {"blue": {}}}, UnknownNameError, "Did you mean 'bleu'"),
        ({"metrics": ["acuracy"]}, UnknownNameError, "Did you mean 'accuracy'"),
        ({"profiles": ["strickt"]}, UnknownNameError, "Did you mean 'strict'"),
        ({"profiles": ["plain"]}, UserError, "'plain' is for caption tasks"),
    ],
)
def test_mistakes_are_found_before_and_while_scoring(changes, error, words):
    with pytest.raises(error, match=words):
        score(**changes)
    wanted = {"metrics": ["accuracy"], "profiles": ["strict"], **changes}
    with pytest.raises(error, match=words):
        check_scoring(FakeCatalog(), TASK, **wanted)


def test_a_metric_for_another_kind_of_task(monkeypatch):
    monkeypatch.setattr(Length, "kinds", frozenset({"caption"}))
    with pytest.raises(UserError, match="for caption tasks; quiz is a vqa task"):
        score(metrics=["length"])


def test_texts_are_cleaned_once_for_all_metrics():
    catalog = FakeCatalog()
    score(metrics=["bleu", "bleu", "accuracy", "length"], catalog=catalog)
    assert catalog.profiles["strict"].calls == 1


def test_a_remembered_profile_still_judges_answers(monkeypatch):
    seen = []

    def statistics(self, cases, profile):
        seen.append(profile)
        return np.ones((len(cases), 2))

    monkeypatch.setattr(Length, "statistics", statistics)
    score(metrics=["length"])
    assert isinstance(seen[0], AnswerProfile)
    assert seen[0].clean(["New text.", "", "New text."]) == ["new text", "", "new text"]


def test_metrics_and_profiles_asked_for_twice_are_scored_once():
    records = score(metrics=["accuracy", "length", "accuracy"], profiles=["strict", "strict"])
    assert [(record.metric, record.profile) for record in records] == [("accuracy", "strict"), ("length", "strict")]


def test_the_score_key_is_the_documented_digest():
    (record,) = score()
    assert record.score_key == digest_of(
        {"run_key": "key", "metric": ["accuracy", "1", {}], "profile": ["strict", "1"]}
    )
