"""What `mhe eval`, `mhe score` and `mhe show run` end with, read as a person reads it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from command import mhe
from mhe import open_catalog
from mhe.cli.readings import direction_text, range_text
from mhe.cli.run_tables import groups_table, values_table
from mhe.documents.run import MetricRecord, RunRecord, ScoreRecord
from mhe.samples import load_samples

needs_data = pytest.mark.skipif("MHE_TEST_DATA" not in os.environ, reason="MHE_TEST_DATA is unset: no real data here")
OLD = Path(__file__).parent / "data" / "documents" / "RunRecord-1.json"


def value(name, number, **changes):
    known = {"low": None if number is None else number - 0.1, "high": None if number is None else number + 0.1}
    return ScoreRecord(
        **{"name": name, "value": number, "samples": 7, "summary": f"about {name}", "floor": 0.0, "ceiling": 1.0}
        | known
        | changes
    )


def metric(name, profile, *values, provisional=False):
    return MetricRecord(
        metric=name,
        metric_version="1",
        profile=profile,
        profile_version="1",
        score_key="k",
        file=None,
        provisional=provisional,
        values=values,
    )


def cells(table, start):
    (line,) = [line for line in table.splitlines() if line.startswith(start)]
    return re.split(r" {2,}", line.strip())


@pytest.mark.parametrize(
    ("floor", "ceiling", "higher", "words"),
    [
        (0.0, 1.0, True, "0 to 1, higher is better"),
        (1.0, 0.0, False, "0 to 1, lower is better"),
        (0.0, None, None, "0 to ∞, no direction"),
        (None, 0.0, False, "0 to ∞, lower is better"),
        (None, None, True, "−∞ to ∞, higher is better"),
        (-1.0, 2.5, True, "-1 to 2.5, higher is better"),
    ],
)
def test_range_and_direction_in_words(floor, ceiling, higher, words):
    assert f"{range_text(floor, ceiling, higher)}, {direction_text(higher)}" == words
    record = value("x", 0.5, floor=floor, ceiling=ceiling, higher_is_better=higher)
    assert words in values_table([metric("m", "strict", record)])


def test_a_row_says_everything_that_a_reader_asks():
    text = values_table([metric("m", "strict", value("accuracy", 0.5))], {"strict": "right only if equal"})
    assert cells(text, "accuracy") == [
        "accuracy",
        "0.500",
        "0.400 to 0.600",
        "7",
        "0 to 1, higher is better",
        "strict",
        "about accuracy",
    ]
    assert "Profile strict: right only if equal." in text
    assert "95 % interval: bootstrap" in text
    assert "Not computed" not in text


def test_every_dash_has_its_reason_below_once():
    silent = {"samples": 0, "reason": "Java was not found"}
    text = values_table(
        [
            metric("meteor", "coco", value("meteor", None, **silent)),
            metric("bleu", "coco", *[value(f"bleu-{k}", None, **silent) for k in (1, 2)]),
            metric("f1", "coco", value("f1", 0.5), value("f2", None, reason=None)),
        ]
    )
    assert cells(text, "meteor")[:4] == ["meteor", "—", "—", "0"]
    below = text[text.index("Not computed:") :].splitlines()
    assert below[1:] == ["  meteor, bleu-1, bleu-2 (coco): Java was not found", "  f2 (coco): no reason is recorded"]


def test_provisional_values_and_their_worst_case_are_marked():
    text = values_table([metric("m", "strict", value("accuracy", 0.5, worst_case=0.25), provisional=True)])
    assert cells(text, "accuracy")[-1] == "provisional; 0.250 with the unanswered at the floor"


def test_profiles_stand_side_by_side_and_differences_are_marked():
    found = [
        metric("m", profile, value("accuracy", one), value("recall", 0.7), value("lost", None if one < 0.5 else 0.2))
        for profile, one in [("strict", 0.5), ("lenient", 0.75), ("harsh", 0.25)]
    ]
    top, _, detailed = values_table(found, {"lenient": "forgives"}).partition("differ by: the highest")
    assert cells(top, "accuracy") == ["accuracy", "0.500", "0.750 ≠", "0.250 ≠", "0.500"]
    assert cells(top, "recall") == ["recall", "0.700", "0.700", "0.700", "same"]
    assert cells(top, "lost") == ["lost", "0.200", "0.200", "—", "same"]
    assert [line.split()[0] for line in detailed.splitlines() if line.startswith("accuracy")] == ["accuracy"] * 3
    assert "Profile lenient: forgives." in detailed
    assert "Profile strict" not in detailed


def test_with_many_profiles_intervals_are_the_first_one_s_and_the_reader_is_told():
    found = [metric("m", f"p{n}", value("accuracy", n / 10)) for n in range(1, 6)]
    top, _, detailed = values_table(found).partition("differ by: the highest")
    assert cells(top, "accuracy")[1:] == ["0.100", "0.200 ≠", "0.300 ≠", "0.400 ≠", "0.500 ≠", "0.400"]
    assert cells(detailed, "accuracy")[1:3] == ["0.100", "0.000 to 0.200"]
    assert "Intervals are those under p1" in detailed


def test_a_record_of_version_1_is_shown_without_what_it_does_not_know():
    record = RunRecord.from_json(OLD)
    text = values_table(record.metrics)
    assert cells(text, "accuracy ")[-2:] == ["higher is better", "strict"]
    groups = groups_table(record.metrics, record.task.primary)
    assert cells(groups, "modality       CT")[-4:] == ["0.296", "0.464", "0.066", "0.464"]


def test_groups_follow_the_task_and_show_every_value_of_the_metric():
    by = {"modality": {"CT": 0.5, "MRI": None}, "area": {"x": 0.25}}
    found = [metric("m", "strict", value("a", 0.5, groups=by), value("b", 0.1, groups={"modality": {"CT": 0.1}}))]
    text = groups_table(found, "b")
    assert text.startswith("By group, under strict:")
    rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines()[4:]]
    assert rows == [["modality", "CT", "0.500", "0.100"], ["modality", "MRI", "—", "—"], ["area", "x", "0.250", "—"]]
    assert groups_table(found, "absent") == ""
    assert groups_table([metric("m", "strict", value("a", 0.5))], "a") == ""


# ---------------------------------------------------------------- whole commands


VQA = ("accuracy", "accuracy.closed", "accuracy.open", "accuracy.yes-no", "exact-match", "token-f1", "bleu-1.open")


def check_groups(text, metrics, groups):
    """Text and document have every value, over each of the groups."""
    for name in VQA:
        assert "0 to 1, higher is better" in cells(text, f"{name} ")
    by_group = text[text.index("By group") :].partition("Cost:")[0]
    assert {line.split()[0] for line in by_group.splitlines()[4:] if line} == groups
    names = [one["name"] for record in metrics for one in record["values"]]
    assert set(names) >= set(VQA)
    assert all(set(one["groups"]) == groups for record in metrics for one in record["values"])
    assert all(labels for record in metrics for one in record["values"] for labels in one["groups"].values())


@needs_data
def test_the_majority_baseline_of_vqa_rad_by_group(tmp_path):
    groups = {"organ", "question_type"}
    assert set(open_catalog().task("vqa-rad").groups) == groups
    words = ["eval", "--model", "majority", "--task", "vqa-rad", "--metrics", "accuracy,exact-match,token-f1,bleu-open"]
    done = mhe(*words, cwd=tmp_path, MHE_DATA_DIR=os.environ["MHE_TEST_DATA"])
    assert done.code == 0, done.err
    again = mhe(*words, "--json", cwd=tmp_path, MHE_DATA_DIR=os.environ["MHE_TEST_DATA"]).document["runs"][0]
    check_groups(done.out, again["metrics"], groups)


@needs_data
def test_answers_to_slake_by_group(tmp_path):
    groups = {"modality", "organ", "question_type"}
    task = open_catalog().task("slake")
    assert set(task.groups) == groups
    data = load_samples(
        open_catalog(), task, data_dir=Path(os.environ["MHE_TEST_DATA"]) / "slake", offline=True, need_images=False
    )
    lines = [json.dumps({"id": sample.id, "prediction": "yes"}) + "\n" for sample in data.samples]
    (tmp_path / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    words = ["score", "answers.jsonl", "--task", "slake", "--data-dir", os.environ["MHE_TEST_DATA"] + "/slake"]
    done = mhe(*words, cwd=tmp_path)
    assert done.code == 0, done.err
    check_groups(done.out, mhe(*words, "--json", cwd=tmp_path).document["metrics"], groups)


def test_a_length_is_neither_won_nor_lost(tmp_path):
    words = ["eval", "--model", "scripted", "--task", "phantom-vqa", "--limit", 8, "--metrics", "answer-statistics"]
    folders = [
        mhe(*words, "--set", f"backend.answer={answer}", "--json", cwd=tmp_path).document["runs"][0]["folder"]
        for answer in ("yes", "yes indeed")
    ]
    done = mhe("compare", *folders, cwd=tmp_path)
    line = next(line for line in done.out.splitlines() if line.startswith("answer-words") and "no direction" in line)
    assert "+1.000" in line
    assert "/" not in line
    values = mhe("compare", *folders, "--json", cwd=tmp_path).document["values"]
    (length,) = [one for one in values if one["name"] == "answer-words"]
    assert length["higher_is_better"] is None
    assert length["differences"][0]["counts"] is None
    assert length["differences"][0]["difference"] == 1
    assert json.loads((tmp_path / folders[0] / "run.json").read_text())["schema_version"] == 2
    assert "0 to ∞, no direction" in mhe("show", "run", folders[0], cwd=tmp_path).out
    assert re.search(
        r"answer-words +0 to inf +no direction", mhe("show", "metrics", "answer-statistics", cwd=tmp_path).out
    )
