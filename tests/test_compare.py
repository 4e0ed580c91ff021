"""`mhe compare` over runs: values, intervals and tests against the naive way, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import statistics

import numpy as np
import pytest

from command import mhe
from compare_cases import LIMIT, compare, credits_by_unit, naive_resamples, scores_of, value_of
from mhe.cli.show_runs import read_run
from mhe.compared_runs import scored_runs, shared_samples, sides_of
from mhe.errors import UserError
from mhe.scored_folders import of_run, read_scored_folder
from mhe.statistics import holm, paired_p_value, paired_p_values, smallest_difference


def test_intervals_of_the_difference_equal_the_naive_paired_bootstrap(runs):
    value = value_of(compare(runs, runs["yes"], runs["no"]), "accuracy")
    first, second = (naive_resamples(credits_by_unit(runs[name])) for name in ("yes", "no"))
    (change,) = value["differences"]
    low, high = np.percentile(second - first, [2.5, 97.5])
    assert change["low"] == pytest.approx(low, abs=1e-12)
    assert change["high"] == pytest.approx(high, abs=1e-12)
    assert change["smallest"] == pytest.approx(2.8015852 * statistics.stdev(second - first), rel=1e-6)
    for side, resampled in zip(value["sides"], (first, second), strict=True):
        assert [side["low"], side["high"]] == pytest.approx(list(np.percentile(resampled, [2.5, 97.5])), abs=1e-12)
    assert change["difference"] == pytest.approx(value["sides"][1]["value"] - value["sides"][0]["value"], abs=1e-15)


def test_values_and_intervals_are_those_of_the_runs(runs):
    document = compare(runs, runs["yes"], runs["no"])
    for side, name in enumerate(("yes", "no")):
        record = json.loads((runs[name] / "run.json").read_text())
        there = {score["name"]: score for metric in record["metrics"] for score in metric["values"]}
        assert {value["name"] for value in document["values"]} == set(there)
        for value in document["values"]:
            found = value["sides"][side]
            for key in ("value", "low", "high"):
                assert found[key] == pytest.approx(there[value["name"]][key], abs=1e-12)


def test_p_values_equal_enumeration_and_holm_counts_every_comparison_shown(runs):
    document = compare(runs, runs["yes"], runs["no"], runs["mixed"])
    first, second = (np.array(credits_by_unit(runs[name])) for name in ("yes", "mixed"))
    total = first[:, 1].sum()
    observed = abs(first[:, 0].sum() - second[:, 0].sum()) / total
    gains = first[:, 0] - second[:, 0]
    flips = list(itertools.product((1, -1), repeat=len(gains)))
    hits = sum(abs(np.dot(signs, gains)) / total >= observed - 1e-12 for signs in flips)
    change = value_of(document, "accuracy")["differences"][1]
    assert change["side"] == "C"
    assert change["p_value"] == pytest.approx(hits / len(flips), abs=1e-12)
    everything = [change for value in document["values"] for change in value["differences"]]
    assert document["comparisons"] == len(everything) == 2 * len(document["values"])
    assert [change["p_holm"] for change in everything] == holm([change["p_value"] for change in everything])
    alone = compare(runs, runs["yes"], runs["no"], "--metric", "accuracy")
    assert [value["name"] for value in alone["values"]] == ["accuracy"]
    (change,) = alone["values"][0]["differences"]
    assert change["p_holm"] == change["p_value"]


def test_wins_are_counted_by_sample_and_group(runs):
    first, second = (scores_of(runs[name], "accuracy") for name in ("yes", "no"))
    pairs = list(zip(first["statistics"], second["statistics"], strict=True))
    wins, losses = sum(b[0] > a[0] for a, b in pairs), sum(b[0] < a[0] for a, b in pairs)
    (change,) = value_of(compare(runs, runs["yes"], runs["no"]), "accuracy")["differences"]
    counts = change["counts"]
    assert (counts["wins"], counts["losses"], counts["ties"]) == (wins, losses, LIMIT - wins - losses)
    assert wins
    assert losses
    assert set(change["groups"]) == set(first["groups"])
    for group, labels in first["groups"].items():
        for label in set(labels):
            here = [pair for pair, found in zip(pairs, labels, strict=True) if found == label]
            found = change["groups"][group][label]
            assert found["wins"] == sum(b[0] > a[0] for a, b in here)
            assert found["wins"] + found["losses"] + found["ties"] == len(here)
            assert found["difference"] == pytest.approx(np.mean([b[0] - a[0] for a, b in here]), abs=1e-12)
    (one,) = value_of(compare(runs, runs["yes"], runs["no"], "--by", "modality"), "accuracy")["differences"]
    assert list(one["groups"]) == ["modality"]


def test_open_and_closed_count_only_their_samples(runs):
    scores = scores_of(runs["yes"], "accuracy")
    closed = sum(row[3] for row in scores["statistics"])
    (change,) = value_of(compare(runs, runs["yes"], runs["no"]), "accuracy.closed")["differences"]
    assert sum(change["counts"][key] for key in ("wins", "losses", "ties")) == closed < LIMIT


def test_samples_that_changed_are_shown_with_what_was_said(runs):
    (change,) = value_of(compare(runs, runs["yes"], runs["mixed"], "--samples", 3), "accuracy")["differences"]
    assert 3 == len(change["changed"]) < change["changed_samples"]
    for sample in change["changed"]:
        assert sample["id"] in runs["ids"][::3]
        assert abs(sample["second"] - sample["first"]) == 1
        assert [(a["side"], a["text"]) for a in sample["answers"]] == [("A", "yes"), ("B", "no")]
    (change,) = value_of(compare(runs, runs["yes"], runs["mixed"], "--samples", 0), "accuracy")["differences"]
    assert change["changed"] == []


def test_answers_are_left_out_where_the_file_is_gone(runs, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(runs["no"], moved)
    (moved / "samples.jsonl").unlink()
    (change,) = value_of(compare(runs, runs["yes"], moved), "accuracy")["differences"]
    assert {a["side"] for sample in change["changed"] for a in sample["answers"]} == {"A"}


def test_seeds_of_a_model_are_one_side(runs, tmp_path):
    other = tmp_path / "seed-1"
    shutil.copytree(runs["yes 1"], other)
    # The scripted model says the same under every seed: take one right answer from the second.
    (place,) = other.glob("scores/accuracy-strict-*.json")
    scores = json.loads(place.read_text())
    right = next(row for row, found in enumerate(scores["statistics"]) if found[0] == 1)
    scores["statistics"][right] = [cell if column % 2 else 0 for column, cell in enumerate(scores["statistics"][right])]
    place.write_text(json.dumps(scores))
    document = compare(runs, runs["yes"], runs["no"], other, "--metric", "accuracy")
    assert [len(side["runs"]) for side in document["sides"]] == [2, 1]
    value = value_of(document, "accuracy")
    seeds = [
        sum(row[0] for row in scores_of(folder, "accuracy")["statistics"]) / LIMIT for folder in (runs["yes"], other)
    ]
    first = value["sides"][0]
    assert first["seeds"] == pytest.approx(seeds, abs=1e-15)
    assert first["value"] == pytest.approx(statistics.fmean(seeds), abs=1e-15)
    assert first["std"] == pytest.approx(statistics.stdev(seeds), abs=1e-15)
    assert value["sides"][1]["std"] is None
    drawn = [naive_resamples(credits_by_unit(folder)) for folder in (runs["yes"], other, runs["no"])]
    low, high = np.percentile(drawn[2] - (drawn[0] + drawn[1]) / 2, [2.5, 97.5])
    (change,) = value["differences"]
    assert [change["low"], change["high"]] == pytest.approx([low, high], abs=1e-12)
    changed = {sample["id"]: sample["first"] for sample in compare(
        runs, runs["yes"], runs["no"], other, "--samples", LIMIT
    )["values"][0]["differences"][0]["changed"]}  # fmt: skip
    assert changed[scores["ids"][right]] == 0.5


def test_seeds_can_be_compared_with_each_other(runs):
    done = mhe("compare", runs["yes"], runs["yes 1"], cwd=runs["cwd"])
    assert done.code == 2
    assert "--separate" in done.err
    document = compare(runs, runs["yes"], runs["yes 1"], "--separate")
    (change,) = value_of(document, "accuracy")["differences"]
    assert (change["difference"], change["p_value"], change["smallest"]) == (0, 1, None)
    assert change["counts"]["ties"] == LIMIT


def test_a_checkpoint_trained_with_several_seeds_is_one_side(runs):
    def trained(name, seed):
        record, folder = read_run(runs[name])
        model = record.model.model_copy(update={"name": "mine", "seed": seed, "fingerprint": f"weights {seed}"})
        backend = record.backend.model_copy(update={"key_options": {"adapter": f"/checkpoints/mine/{seed}/adapter"}})
        return of_run(record.model_copy(update={"model": model, "backend": backend}), folder)

    found, _ = scored_runs([trained("yes", 0), trained("no", 1), read_scored_folder(runs["mixed"])])
    assert [(side.name, side.model, len(side.runs)) for side in sides_of(found)] == [
        ("A", "mine", 2),
        ("B", "scripted", 1),
    ]
    again, _ = scored_runs([trained("yes", 0), trained("no", 0), trained("mixed", 1)])
    assert [side.model for side in sides_of(again)] == ["mine@0", "mine@0", "mine@1"]


def test_partial_runs_are_compared_over_what_all_answered(runs):
    done = mhe("compare", runs["yes"], runs["partial"], "--json", cwd=runs["cwd"])
    assert done.code == 3
    document = done.document
    assert document["provisional"] is True
    assert (document["samples"], document["samples_of"]) == (LIMIT - 3, LIMIT)
    keep = set(scores_of(runs["partial"], "accuracy")["ids"])
    value = value_of(document, "accuracy")
    for side, name in zip(value["sides"], ("yes", "partial"), strict=True):
        credit, count = np.sum(credits_by_unit(runs[name], keep), axis=0)
        assert count == LIMIT - 3
        assert side["value"] == pytest.approx(credit / count, abs=1e-15)
    shown = mhe("compare", runs["yes"], runs["partial"], cwd=runs["cwd"])
    assert "PARTIAL" in shown.out
    assert f"{LIMIT - 3} of {LIMIT} samples compared" in shown.out


def test_a_reader_sees_tables(runs):
    done = mhe("compare", runs["yes"], runs["no"], runs["mixed"], "--by", "modality", cwd=runs["cwd"])
    assert done.code == 0
    for text in (
        "B - A",
        "C - A",
        "p (Holm)",
        "smallest",
        "win/lose/tie",
        "radiograph",
        "A said",
        "say nothing of medicine",
    ):
        assert text in done.out
    assert "question_type" not in done.out


def edited(runs, tmp_path, name, change):
    """A copy of a run whose record is changed."""
    folder = tmp_path / "edited"
    shutil.copytree(runs[name], folder)
    record = json.loads((folder / "run.json").read_text())
    change(record)
    (folder / "run.json").write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["task"].update(name="other"), "task: phantom-vqa (version 1)"),
        (lambda r: r["task"].update(version=2), "phantom-vqa (version 2)"),
        (lambda r: r["task"].update(digest="0" * 64), "digest of the task document"),
        (lambda r: r["data"].update(digest="0" * 64), "digest of the data"),
        (lambda r: r["data"].update(split="train"), "split: test"),
        (lambda r: r["data"].update(limit=41), "--limit: 40"),
        (lambda r: r["metrics"][0].update(metric_version="9"), "metric version of accuracy (strict): 1"),
        (lambda r: r["metrics"][0].update(profile_version="9"), "profile version of accuracy"),
        (lambda r: r["metrics"][0].update(options={"x": 1}), "options of accuracy"),
        (lambda r: r["metrics"][0].update(resources={"encoder": "0"}), "resources of accuracy"),
        (lambda r: r["metrics"][0].update(profile="other"), "accuracy is scored under strict"),
        (lambda r: r.update(metrics=[]), "no metric of this run has a value"),
        (lambda r: r.update(metrics=[{**r["metrics"][0], "metric": "other"}]), "no metric in common"),
    ],
)  # fmt: skip
def test_what_differs_in_more_than_the_model_is_refused(runs, tmp_path, change, says):
    folder = edited(runs, tmp_path, "no", change)
    done = mhe("compare", runs["yes"], folder, "--json", cwd=runs["cwd"])
    assert done.code == 2
    assert says in done.document["error"]["message"]
    assert str(folder) in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["yes"], "one run cannot be compared"),
        (["yes", "yes"], "given twice"),
        (["yes", "nowhere"], "nowhere: no such folder"),
        (["yes", "no", "--metric", "acuracy"], "Did you mean 'accuracy'"),
        (["yes", "no", "--by", "modalty"], "Did you mean 'modality'"),
        (["yes", "no", "--profile", "llava"], "no profile named 'llava'"),
        (["yes", "no", "--samples", "-1"], "--samples"),
    ],
)
def test_mistakes_in_the_call_are_told(runs, arguments, says):
    done = mhe("compare", *(runs.get(word, word) for word in arguments), cwd=runs["cwd"])
    assert done.code == 2
    assert says in done.err


def test_a_damaged_score_file_is_named(runs, tmp_path):
    folder = edited(runs, tmp_path, "no", lambda record: None)
    next(folder.glob("scores/accuracy-*.json")).write_text('{"ids": [')
    done = mhe("compare", runs["yes"], folder, cwd=runs["cwd"])
    assert done.code == 2
    assert "scores/accuracy-strict" in done.err


def test_a_metric_of_another_version_than_the_installed_one_is_refused(runs, tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    for source, folder in (("yes", first), ("no", second)):
        shutil.copytree(runs[source], folder)
        place = next(folder.glob("scores/accuracy-*.json"))
        for path in (place, folder / "run.json"):
            content = json.loads(path.read_text())
            (content if path == place else content["metrics"][0])["metric_version"] = "0"
            path.write_text(json.dumps(content))
    done = mhe("compare", first, second, cwd=runs["cwd"])
    assert done.code == 2
    assert "the statistics are of version 0" in done.err


def test_runs_without_a_shared_sample_cannot_be_compared(runs):
    found, _ = scored_runs([read_scored_folder(runs["yes"]), read_scored_folder(runs["no"])])
    samples = found[0].scores.samples
    strange = dataclasses.replace(samples, ids=tuple(f"other {sample}" for sample in samples.ids))
    other = dataclasses.replace(found[1], scores=dataclasses.replace(found[1].scores, samples=strange))
    with pytest.raises(UserError, match="share no answered sample"):
        shared_samples([found[0], other])


def test_all_values_of_a_metric_are_tested_as_one_by_one():
    rng = np.random.default_rng(3)
    a, b = rng.random((60, 2)), rng.random((60, 2))
    units = [f"unit {number}" for number in range(60)]

    def both(sums):
        return {"sum": sums[..., 0] + sums[..., 1], "ratio": sums[..., 0] / sums[..., 1]}

    together = paired_p_values(a, b, both, ["sum", "ratio"], units, permutations=500)
    assert together == {name: paired_p_value(a, b, both, name, units, permutations=500) for name in ("sum", "ratio")}


def test_the_smallest_difference_is_what_a_test_finds_four_times_in_five():
    """Simulated: with a true difference of that size, a z-test at 5 % finds it in about 80 %."""
    rng = np.random.default_rng(0)
    error = 0.3
    smallest = smallest_difference(rng.normal(0, error, 200_000))
    assert smallest == pytest.approx(2.8 * error, rel=0.01)
    found = np.abs(rng.normal(smallest, error, 100_000)) > 1.959964 * error
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert smallest_difference(np.zeros(10)) is None
    assert smallest_difference(np.array([np.nan, 1.0])) is None
