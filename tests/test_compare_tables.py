"""`mhe compare` over folders of scores, and what it shows a reader."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from command import mhe
from compare_cases import LIMIT, compare, credits_by_unit, naive_resamples, value_of

# ---------------------------------------------------------------- folders of `mhe score --out`


def write_lines(place, rows):
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


REFERENCES = [
    {"id": str(n), "references": ["yes" if n % 2 else "no"], "group:organ": "lung" if n < 6 else "liver"}
    for n in range(12)
]


def scored(cwd, name, said, *arguments, references="references.jsonl", rows=REFERENCES):
    """A folder of scores: what `said` answers to each number."""
    write_lines(cwd / references, rows)
    file = write_lines(cwd / f"{name}.jsonl", [{"id": row["id"], "prediction": said(int(row["id"]))} for row in rows])
    against = ("--references", references, "--kind", "vqa")
    done = mhe("score", file.name, *against, "--out", f"out-{name}", *arguments, "--json", cwd=cwd)
    assert done.code == 0, done.err
    return cwd / f"out-{name}"


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("scores")
    return {
        "cwd": cwd,
        "yes": scored(cwd, "yes", lambda n: "yes"),
        "better": scored(cwd, "better", lambda n: "yes" if n % 2 else ("no" if n < 6 else "yes")),
        "miss": scored(cwd, "miss", lambda n: "yes", "--profile", "miss"),
    }


def test_scores_of_predictions_are_compared_as_runs_are(scores):
    document = compare(scores, scores["yes"], scores["better"])
    assert (document["references"], document["kind"], document["samples"]) == ("references.jsonl", "vqa", 12)
    assert [side["model"] for side in document["sides"]] == ["yes.jsonl", "better.jsonl"]
    (change,) = value_of(document, "accuracy")["differences"]
    assert change["difference"] == pytest.approx(3 / 12, abs=1e-15)
    assert [change["counts"][key] for key in ("wins", "losses", "ties")] == [3, 0, 9]
    assert {label: found["wins"] for label, found in change["groups"]["organ"].items()} == {"lung": 3, "liver": 0}
    # Three swaps that matter: 2 of 8 are as far apart.
    assert change["p_value"] == pytest.approx(2 / 8, abs=1e-12)
    naive = [naive_resamples(credits_by_unit(scores[name])) for name in ("yes", "better")]
    low, high = np.percentile(naive[1] - naive[0], [2.5, 97.5])
    assert [change["low"], change["high"]] == pytest.approx([low, high], abs=1e-12)


def test_scores_of_predictions_are_shown(scores):
    done = mhe("compare", scores["yes"], scores["better"] / "score.json", cwd=scores["cwd"])
    assert done.code == 0, done.err
    assert "answers to references.jsonl: 12 of 12 samples compared" in done.out
    assert "A  yes.jsonl:" in done.out
    assert "liver" in done.out


def test_scores_on_a_task_are_compared(runs, tmp_path):
    answered = {
        name: mhe("score", file, "--task", "phantom-vqa", "--limit", LIMIT, "--out", f"scored-{name}", cwd=tmp_path)
        for name in ("yes", "no")
        for file in [write_lines(tmp_path / f"{name}.jsonl", [{"id": n, "prediction": name} for n in runs["ids"]])]
    }
    assert {name: done.code for name, done in answered.items()} == {"yes": 0, "no": 0}
    folders = [tmp_path / f"scored-{name}" for name in answered]
    ours, theirs = compare(runs, *folders), compare(runs, runs["yes"], runs["no"])
    for value in theirs["values"]:
        found = value_of(ours, value["name"])
        for key in ("difference", "low", "high", "p_value", "smallest"):
            assert found["differences"][0][key] == pytest.approx(value["differences"][0][key], abs=1e-12), value["name"]
    assert "say nothing of medicine" in mhe("compare", *folders, cwd=tmp_path).out
    done = mhe("compare", runs["yes"], folders[0], cwd=runs["cwd"])
    assert done.code == 2
    assert "made by: mhe eval" in done.err


def test_what_scores_of_predictions_lack_is_said(scores):
    cwd = scores["cwd"]
    others = [{**row, "id": str(int(row["id"]) + 1)} for row in REFERENCES]
    strange = scored(cwd, "strange", lambda n: "yes", references="others.jsonl", rows=others)
    empty = cwd / "empty"
    empty.mkdir(exist_ok=True)
    damaged = cwd / "damaged"
    damaged.mkdir(exist_ok=True)
    (damaged / "score.json").write_text('{"predictions": "x"}')
    for arguments, told in (
        ([scores["yes"], strange], ["references: references.jsonl (digest", "others.jsonl (digest"]),
        ([scores["yes"], scores["miss"]], ["accuracy is scored under strict", "mhe score` with --profile"]),
        ([scores["yes"], scores["yes"]], ["given twice"]),
        ([scores["yes"], empty], ["neither run.json nor score.json"]),
        ([scores["yes"], damaged], ["score.json", "metrics"]),
        ([scores["yes"], scores["better"], "--by", "organs"], ["Did you mean 'organ'"]),
    ):
        done = mhe("compare", *arguments, cwd=cwd)
        assert done.code == 2, told
        for text in told:
            assert text in done.err


# ---------------------------------------------------------------- what is shown


def lines_with(text, word):
    return [line for line in text.splitlines() if word in line]


def test_groups_are_shown_for_the_first_value_of_every_metric(runs):
    done = mhe("compare", runs["yes"], runs["mixed"], "--by", "modality", cwd=runs["cwd"])
    (header,) = lines_with(done.out, "group ")
    names = [value["metric"] for value in compare(runs, runs["yes"], runs["mixed"])["values"]]
    assert header.count("win/lose/tie") == len(set(names)) > 1
    assert "accuracy" in header
    assert "accuracy.closed" not in header
    assert len(lines_with(done.out, "most in:")) == 1
    assert "another value: --metric NAME" in done.out


def test_groups_and_changed_samples_are_shown_for_every_value_asked_for(runs):
    asked = ["accuracy", "accuracy.closed", "accuracy.open", "accuracy.yes-no"]
    options = [word for name in asked for word in ("--metric", name)]
    done = mhe("compare", runs["yes"], runs["mixed"], *options, "--by", "modality", cwd=runs["cwd"])
    headers = lines_with(done.out, "group ")
    assert [header.count("win/lose/tie") for header in headers] == [3, 1]
    assert "accuracy.yes-no" in headers[1]
    changed = [line.split()[0] for line in lines_with(done.out, "most in:")]
    found = {value["name"]: value for value in compare(runs, runs["yes"], runs["mixed"], *options)["values"]}
    assert changed == [name for name in asked if found[name]["differences"][0]["changed"]]
    assert len(changed) > 1
    (row,) = [line for line in lines_with(done.out, "radiograph") if "/" in line][:1]
    counts = found["accuracy.closed"]["differences"][0]["groups"]["modality"]["radiograph"]
    assert f"{counts['wins']}/{counts['losses']}/{counts['ties']}" in row


def test_pooled_seeds_are_shown_with_their_deviation(runs, tmp_path):
    other = tmp_path / "seed-1"
    shutil.copytree(runs["yes 1"], other)
    (place,) = other.glob("scores/accuracy-strict-*.json")
    content = json.loads(place.read_text())
    content["statistics"] = [[cell if column % 2 else 0 for column, cell in enumerate(row)]
                             for row in content["statistics"]]  # fmt: skip
    place.write_text(json.dumps(content))
    done = mhe("compare", runs["no"], other, runs["yes"], "--metric", "accuracy", cwd=runs["cwd"])
    assert "B  scripted, mean of 2 seeds:" in done.out
    side = value_of(compare(runs, runs["no"], other, runs["yes"], "--metric", "accuracy"), "accuracy")["sides"][1]
    assert side["std"] > 0.1
    assert any(f"{side['value']:.3f}" in line and f"{side['std']:.3f}" in line for line in done.out.splitlines())


def test_agreement_of_texts_and_the_first_word_that_differs(runs):
    (found,) = compare(runs, runs["yes"], runs["mixed"], "--samples", 4)["agreement"]
    changed = runs["ids"][::3]
    assert (found["side"], found["samples"], found["equal"]) == ("B", LIMIT, LIMIT - len(changed))
    assert found["share"] == pytest.approx(1 - len(changed) / LIMIT)
    assert [(d["place"], d["first"], d["second"]) for d in found["differences"]] == [(1, "yes", "no")] * 4
    assert {d["sample"] for d in found["differences"]} <= set(changed)
    table = mhe("compare", runs["yes"], runs["mixed"], cwd=runs["cwd"])
    assert f"B says the same as A in {LIMIT - len(changed)} of {LIMIT} samples" in table.out
    assert "first word that differs" in table.out


def test_agreement_is_over_what_both_answered_and_between_equal_seeds(runs):
    (found,) = compare(runs, runs["no"], runs["partial"])["agreement"]
    assert (found["samples"], found["equal"], found["differences"]) == (LIMIT - 3, LIMIT - 3, [])
    (found,) = compare(runs, runs["yes"], runs["yes 1"], runs["no"])["agreement"]
    assert (found["first"], found["second"]) == (str(runs["yes"]), str(runs["no"]))
    assert (found["equal"], found["share"]) == (0, 0.0)


def test_runs_that_keep_no_texts_tell_no_agreement(runs, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(runs["no"], bare)
    (bare / "samples.jsonl").unlink()
    assert compare(runs, runs["yes"], bare)["agreement"] == []
