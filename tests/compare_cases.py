"""Scripted runs to compare, and the same numbers the naive way."""

from __future__ import annotations

import json

import numpy as np

from command import mhe
from mhe.statistics import bootstrap_indices

LIMIT = 40


def evaluate(cwd, *arguments):
    done = mhe("eval", "--model", "scripted", "--task", "phantom-vqa", "--limit", LIMIT, *arguments, "--json", cwd=cwd)
    assert done.code in (0, 3), done.err
    return cwd / done.document["runs"][0]["folder"]


def answers(ids, every, text):
    return json.dumps(dict.fromkeys(ids[::every], text))


def make_runs(cwd):
    """`yes` and `no` always; two seeds of a model that says `yes` more often in one; one that fails on three."""
    yes = evaluate(cwd)
    ids = scores_of(yes, "accuracy")["ids"]
    fail_on = json.dumps({ids[2]: "data", ids[5]: "model", ids[9]: "system"})
    return {
        "cwd": cwd,
        "ids": ids,
        "yes": yes,
        "yes 1": evaluate(cwd, "--seed", 1),
        "no": evaluate(cwd, "--set", "backend.answer=no"),
        "mixed": evaluate(cwd, "--set", f"backend.answers={answers(ids, 3, 'no')}"),
        "partial": evaluate(cwd, "--set", "backend.answer=no", "--set", f"backend.fail_on={fail_on}"),
    }


def scores_of(folder, metric, profile="strict"):
    (place,) = folder.glob(f"scores/{metric}-{profile}-*.json")
    return json.loads(place.read_text())


def compare(runs, *arguments):
    done = mhe("compare", *arguments, "--json", cwd=runs["cwd"])
    assert done.code in (0, 3), done.err
    return done.document


def value_of(document, name):
    return next(value for value in document["values"] if value["name"] == name)


def credits_by_unit(folder, keep=None):
    """Unit (in the order of names) to credit and count of `accuracy`."""
    scores = scores_of(folder, "accuracy")
    found = {}
    for sample, unit, row in zip(scores["ids"], scores["units"], scores["statistics"], strict=True):
        if keep is None or sample in keep:
            found.setdefault(unit, []).append(row[:2])
    return [np.sum(found[unit], axis=0) for unit in sorted(found)]


def naive_resamples(units):
    """The accuracy of each resample, unit by unit, on the indices that everybody draws."""
    found = []
    for indices in bootstrap_indices(len(units)):
        credit = sum(units[index][0] for index in indices)
        found.append(credit / sum(units[index][1] for index in indices))
    return np.array(found)
