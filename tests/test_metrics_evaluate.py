"""`evaluate:NAME`: scripts from a folder that is named, from the cache, never from the current directory."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest

from command import mhe
from fake_plugins import plugin, provider
from mhe import Case, MetricContext, MetricUnavailableError, Provider, Sample, UserError, open_catalog
from mhe.cli.settings import by_metric
from mhe.errors import UnknownNameError
from mhe.testing import check_metric

evaluate = pytest.importorskip("evaluate", reason="the package evaluate is not installed")
CATALOG = open_catalog()

SCRIPT = """
import datasets
import evaluate
from pathlib import Path
{imports}

class Toy(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="d", citation="c", inputs_description="i", features={features}
        )

    def _compute(self, predictions, references, {arguments}):
        {body}
"""
TEXTS = 'datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")})'
LISTS = (
    'datasets.Features({"predictions": datasets.Value("string"), '
    '"references": datasets.Sequence(datasets.Value("string"))})'
)
NUMBERS = 'datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")})'
OVERLAP = """
        def f(a, b):
            return len(set(a.split()) & set(b.split())) / max(1, len(set(a.split()) | set(b.split())))
        return {"overlap": sum(f(p, r) for p, r in zip(predictions, references)) / len(predictions)}"""


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A current directory and caches of their own, and no way out."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    modules = tmp_path / "modules"
    monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", modules, raising=False)
    monkeypatch.setattr("evaluate.config.HF_MODULES_CACHE", modules)
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    return here


def write(folder, name="toy", *, imports="", features=TEXTS, arguments="**kwargs", body=OVERLAP):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(
        SCRIPT.format(imports=imports, features=features, arguments=arguments, body=body), encoding="utf-8"
    )
    return folder


def make(tmp_path, name="toy", **options):
    factory = CATALOG.metric(f"evaluate:{name}")
    return factory(factory.Options(**options), MetricContext(cache_dir=tmp_path / "cache"))


class Raw:
    """A profile that leaves texts alone."""

    name, version, kind, source, defects = "raw", "1", "caption", "this test", ()

    def clean(self, texts):
        return list(texts)


PAIRS = [("a lung nodule", ("a nodule",)), ("liver", ("lung", "the liver")), ("x", ("y",))]


def make_cases(pairs=PAIRS):
    return [
        Case(Sample(id=f"s{n}", images=(), references=tuple(refs)), answer) for n, (answer, refs) in enumerate(pairs)
    ]


def values(metric, pairs=PAIRS):
    return metric.statistics(make_cases(pairs), Raw())[:, 0].tolist()


# ---------------------------------------------------------------- a script in a folder


def test_each_sample_is_computed_alone_and_the_best_reference_counts(tmp_path):
    metric = make(tmp_path, folder=str(write(tmp_path / "mine")))
    rows = metric.statistics(make_cases(), Raw())
    assert rows.tolist() == [[2 / 3, 1], [1 / 2, 1], [0, 1]]
    assert metric.aggregate(rows.sum(axis=0)) == {"evaluate:toy": pytest.approx(7 / 18)}
    assert metric.statistics([], Raw()).shape == (0, 2)
    assert values(make(tmp_path, folder=str(tmp_path / "mine"), higher_is_better=False)) == [2 / 3, 0, 0]


def test_a_metric_that_takes_lists_gets_all_references_of_a_sample(tmp_path):
    folder = write(tmp_path / "mine", features=LISTS, body='return {"n": float(len(references[0]))}')
    assert values(make(tmp_path, folder=str(folder))) == [1, 2, 1]


def test_of_two_alternatives_the_list_is_taken(tmp_path):
    folder = write(tmp_path / "mine", features=f"[{LISTS}, {TEXTS}]", body='return {"n": float(len(references[0]))}')
    assert values(make(tmp_path, folder=str(folder))) == [1, 2, 1]


def test_a_list_of_one_number_a_sample_and_arguments_of_compute(tmp_path):
    body = 'return {"scores": [float(len(p)) * factor for p in predictions], "hash": "x", "deep": [1, 2]}'
    folder = write(tmp_path / "mine", arguments="factor=1", body=body)
    settings = by_metric({"evaluate:toy.kwargs.factor": 10, "evaluate:toy.folder": str(folder)})
    assert settings == {"evaluate:toy": {"kwargs": {"factor": 10}, "folder": str(folder)}}
    assert values(make(tmp_path, **settings["evaluate:toy"])) == [130, 50, 10]


def test_a_script_may_import_what_lies_beside_it_and_its_digest_covers_that(tmp_path):
    folder = write(tmp_path / "mine", imports="from .beside import NUMBER", body='return {"n": NUMBER}')
    (folder / "beside.py").write_text("NUMBER = 3.0\n")
    first = make(tmp_path, folder=str(folder))
    assert values(first) == [3, 3, 3]
    digest = first.resources["script"]
    (folder / "beside.py").write_text("NUMBER = 4.125\n")
    second = make(tmp_path, folder=str(folder))
    assert values(second) == [4.125] * 3
    assert second.resources["script"] != digest


def test_an_owner_is_part_of_the_name_and_not_of_the_file(tmp_path):
    metric = make(tmp_path, "someone/toy", folder=str(write(tmp_path / "mine")))
    assert metric.name == "evaluate:someone/toy"
    assert values(metric)[0] == 2 / 3


def test_which_number_is_asked_for(tmp_path):
    folder = str(write(tmp_path / "mine", body='return {"one": 1.0, "two": 2, "text": "3", "list": [1, 2]}'))
    with pytest.raises(
        MetricUnavailableError, match=r"gives several numbers: --set metrics\.evaluate:toy\.column=… one of"
    ):
        values(make(tmp_path, folder=folder))
    with pytest.raises(MetricUnavailableError, match=r"has no number named 'three': .* one of one, two"):
        values(make(tmp_path, folder=folder, column="three"))
    metric = make(tmp_path, folder=folder, column="two", higher_is_better=True)
    assert values(metric) == [2, 2, 2]
    assert [value.name for value in metric.values] == ["evaluate:toy.two"]
    assert metric.values[0].higher_is_better is True


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ({"body": 'raise KeyError("no such lung")'}, "evaluate:toy raised KeyError for sample s0: 'no such lung'"),
        ({"body": 'return {"n": float("nan")}'}, "gives nan for sample s0"),
        ({"body": 'return {"n": float("inf")}'}, "gives inf for sample s0"),
        ({"body": "return None"}, "gives no number for one sample, but None"),
        ({"body": 'return {"words": ["a"]}'}, "gives no number"),
        ({"features": NUMBERS}, "evaluate:toy raised ValueError for sample s0"),
        ({"imports": "import no_such_package_anywhere"}, "cannot be run .*no_such_package_anywhere"),
        ({"imports": "evaluate.Metric = object"}, "has no class of its own"),
        ({"imports": "raise SystemError('boom')"}, "cannot be run .*boom"),
    ],
)
def test_what_fails_makes_it_unavailable_with_the_reason(tmp_path, script, told, monkeypatch):
    monkeypatch.setattr(evaluate, "Metric", evaluate.Metric)  # restored afterwards
    with pytest.raises(MetricUnavailableError, match=told):
        values(make(tmp_path, folder=str(write(tmp_path / "mine", **script))))


def test_a_folder_without_the_script_is_unavailable(tmp_path):
    with pytest.raises(MetricUnavailableError, match=r"there is no toy\.py in it"):
        values(make(tmp_path, folder=str(tmp_path)))


def test_the_contract_holds(tmp_path):
    folder = write(tmp_path / "mine")
    check_metric(CATALOG.metric("evaluate:toy"), options={"folder": str(folder), "higher_is_better": True})


# ---------------------------------------------------------------- names and the current directory


def evil(here, name="toy"):
    """A folder that `evaluate.load` would run, in all the ways that it looks."""
    marker = here / "marker"
    for place in (here / name, here, here / "evaluate-metric" / name, here / "evaluate_modules"):
        place.mkdir(parents=True, exist_ok=True)
        code = f"open({str(marker)!r}, 'w').close()\n"
        (place / f"{name}.py").write_text(code)
        (place / "__init__.py").write_text(code)
    return marker


def test_a_folder_in_the_current_directory_is_never_run(tmp_path, places, monkeypatch):
    marker = evil(places)
    monkeypatch.syspath_prepend("")
    with pytest.raises(MetricUnavailableError, match="neither from the hub"):
        values(make(tmp_path))
    for name in ("./toy", "toy/toy.py/x", "/toy", "../toy", "toy/", "", "a b"):
        with pytest.raises(UserError):
            CATALOG.metric(f"evaluate:{name}")
    values(make(tmp_path, folder=str(write(tmp_path / "mine"))))
    assert not marker.exists()
    with pytest.raises(Exception, match=r"class|NoneType|metric"):
        evaluate.load("toy")  # the test's own check: this is what must not happen
    assert marker.exists()


def test_a_script_in_the_cache_is_used_offline(tmp_path, places):
    marker = evil(places)
    digest = "0" * 64
    write(tmp_path / "modules" / "evaluate_modules" / "metrics" / "evaluate-metric--toy" / digest)
    metric = make(tmp_path)
    assert values(metric)[0] == 2 / 3
    assert len(metric.resources["script"]) == 64
    write(tmp_path / "modules" / "evaluate_modules" / "metrics" / "someone--toy" / digest, body='return {"n": 7.0}')
    assert values(make(tmp_path, "someone/toy")) == [7, 7, 7]
    assert not marker.exists()


def test_without_a_network_it_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(MetricUnavailableError) as caught:
        _ = make(tmp_path, "someone/toy").resources
    text = str(caught.value)
    assert "neither from the hub (ConnectionError" in text
    assert str(tmp_path / "modules" / "evaluate_modules") in text
    assert "evaluate.load('someone/toy')" in text
    assert "--set metrics.evaluate:someone/toy.folder=PATH" in text


def test_the_placeholder_of_lists_is_no_metric(tmp_path):
    with pytest.raises(MetricUnavailableError, match="stands for the name of a metric"):
        values(make(tmp_path, "NAME"))


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "evaluate", None)
    with pytest.raises(MetricUnavailableError, match=r"pip install 'mhe\[evaluate\]'"):
        values(make(tmp_path))
    with pytest.raises(MetricUnavailableError, match=r"pip install 'mhe\[evaluate\]'"):
        values(make(tmp_path, folder=str(write(tmp_path / "mine"))))


# ---------------------------------------------------------------- in the command and the catalogue


def test_in_the_record_of_a_score(tmp_path, places):
    """In a process of its own, which has the current directory on its path."""
    marker = evil(places)
    folder = write(tmp_path / "mine", name="other")
    Path("answers.jsonl").write_text('{"id": "1", "prediction": "a lung"}\n{"id": "2", "prediction": "liver"}\n')
    Path("right.jsonl").write_text('{"id": "1", "references": ["a lung"]}\n{"id": "2", "references": ["lung"]}\n')
    files = ("score", "answers.jsonl", "--references", "right.jsonl", "--profile", "plain", "--json")
    chosen = ("--metrics", "evaluate:toy,evaluate:other", "--set", f"metrics.evaluate:other.folder={folder}")
    done = mhe(*files, *chosen, cwd=places, HF_HOME=str(tmp_path / "hf"))
    assert done.code == 3, done.err
    toy, other = done.document["metrics"]
    assert toy["metric"] == "evaluate:toy"
    assert toy["values"][0]["value"] is None
    assert "neither from the hub (the environment asks to stay offline)" in toy["values"][0]["reason"]
    assert other["values"][0]["value"] == 0.5
    assert set(other["resources"]) == {"script"}
    assert not marker.exists()


def test_a_family_is_listed_answers_to_every_member_and_suggests():
    assert "evaluate:NAME" in list(CATALOG.metrics)
    assert "evaluate:rouge" in CATALOG.metrics
    assert "evaluate:" not in CATALOG.metrics
    assert CATALOG.metrics["evaluate:rouge"].name == "evaluate:rouge"
    assert CATALOG.owner_of("metric", "evaluate:rouge").name == "metrics"
    with pytest.raises(UnknownNameError, match="Did you mean 'evaluate:NAME'"):
        CATALOG.metric("evalute:rouge")
    with pytest.raises(UnknownNameError, match="Did you mean 'bleu'"):
        CATALOG.metric("blue")


def test_a_strangers_family_is_validated_as_any_name():
    def load(member):
        return f"loaded {member}"

    family = Provider("mine:", "a family", load)
    catalog = open_catalog([plugin(register_metrics=lambda: [family, provider("mine"), Provider("MINE:", "x", load)])])
    assert catalog.metric("mine:a:b/c.d") == "loaded a:b/c.d"
    assert catalog.metric("mine") == "loaded"
    assert sorted(catalog.metrics) == ["mine", "mine:NAME"]
    assert len(catalog.metrics) == 2
    assert ["the metric name 'MINE:' is refused" in problem.message for problem in catalog.problems] == [True]
    other = plugin("other", "zz-other", register_metrics=lambda: [Provider("mine:", "again", load)])
    catalog = open_catalog([plugin(register_metrics=lambda: [family]), other])
    len(catalog.metrics)
    assert "the metric 'mine:' is already registered" in catalog.problems[0].message


def test_a_family_that_cannot_be_loaded_names_its_plugin():
    def load(member):
        raise RuntimeError(f"no {member}")

    catalog = open_catalog([plugin(register_metrics=lambda: [Provider("mine:", "a family", load)])])
    with pytest.raises(UserError, match=r"metric 'mine:x' of plugin strange .*RuntimeError: no x"):
        catalog.metric("mine:x")


def test_rows_are_of_float64(tmp_path):
    rows = make(tmp_path, folder=str(write(tmp_path / "mine"))).statistics(make_cases(), Raw())
    assert rows.dtype == np.float64
