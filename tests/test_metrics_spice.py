"""SPICE: the real scorer under a stand-in parser, the client under a stand-in Java, and what is said without either."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from corenlp_stub import CODE_ENTRIES, write_empty_jars, write_working_jars
from mhe import Case, MetricContext, MetricUnavailableError, Sample, open_catalog
from mhe.testing import check_metric
from mhe_metrics.java import find_jar, find_java
from mhe_metrics.profiles.plain import PLAIN
from mhe_metrics.spice import Spice
from mhe_metrics.spice_jar import NEEDED

pytest.importorskip("pycocoevalcap", reason="the package with SPICE's jar is not installed")
needs_javac = pytest.mark.skipif(shutil.which("javac") is None, reason="javac is not installed")
CONTEXT = MetricContext(cache_dir=Path("unused"))


class Raw:
    """A profile that leaves texts alone."""

    name, version, kind, source, defects = "raw", "1", "caption", "this test", ()

    def clean(self, texts):
        return list(texts)


def make(folder, **options):
    return Spice(Spice.Options(corenlp_dir=str(folder) if folder else None, heap_gigabytes=1, **options), CONTEXT)


def make_cases(pairs):
    return [
        Case(Sample(id=str(n), images=(), references=(refs,) if isinstance(refs, str) else tuple(refs)), answer)
        for n, (answer, refs) in enumerate(pairs)
    ]


def scores(metric, pairs):
    return metric.statistics(make_cases(pairs), Raw())[:, 0].tolist()


# ---------------------------------------------------------------- the real scorer

PAIRS = [
    ("lung nodule effusion", ("lung mass", "nodule in lung")),  # 2 of 3 objects; of lung, mass, nodule, in: 2 of 4
    ("dog", "dogs"),  # one stem, one synset
    ("auto", "automobile"),  # a synset of WordNet
    ("auto gondola", "car"),  # both match the one object: recall 2
    ("", "a b"),
    ("a b", ""),
    ("x 胸 \r\n y\u2028", "胸 y ||| z"),  # x, 胸, y against 胸, y, z
    ("lung lung lung", "lung"),  # a word is one object, however often
]
EXPECTED = [4 / 7, 1, 1, 4 / 3, 0, 0, 2 / 3, 1]


@pytest.fixture(scope="module")
def corenlp(tmp_path_factory):
    return write_working_jars(tmp_path_factory.mktemp("corenlp"), tmp_path_factory.mktemp("source"))


@needs_javac
def test_the_real_jar_scores_what_the_parser_finds(corenlp):
    """A parser for which every word is an object leaves a computation that is done here by hand."""
    before = sorted(find_jar("spice", "spice-1.0.jar").parent.rglob("*"))
    metric = make(corenlp)
    rows = metric.statistics(make_cases(PAIRS), Raw())
    assert rows[:, 0].tolist() == pytest.approx(EXPECTED, abs=1e-12)
    assert float(metric.aggregate(rows.sum(axis=0))["spice"]) == pytest.approx(sum(EXPECTED) / 8, abs=1e-12)
    assert sorted(find_jar("spice", "spice-1.0.jar").parent.rglob("*")) == before  # pycocoevalcap leaves a cache here


@needs_javac
def test_a_java_and_a_locale_of_ones_choice_change_nothing(corenlp, monkeypatch):
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Dfile.encoding=ISO-8859-1")
    assert scores(make(corenlp, java=str(find_java())), PAIRS) == pytest.approx(EXPECTED, abs=1e-12)


@needs_javac
def test_a_copy_of_corenlp_beside_the_jar_does_not_shadow_the_users(corenlp, tmp_path, monkeypatch):
    """The manifest of SPICE's jar puts `lib/stanford-corenlp-3.6.0.jar` on the class path as well."""
    place = tmp_path / "spice"
    shutil.copytree(find_jar("spice", "spice-1.0.jar").parent, place)
    for jar in write_empty_jars(tmp_path / "other").iterdir():
        shutil.copy(jar, place / "lib")
    monkeypatch.setattr("mhe_metrics.spice_jar.find_jar", lambda *_: place / "spice-1.0.jar")
    assert scores(make(corenlp), PAIRS[:1]) == pytest.approx(EXPECTED[:1])


@needs_javac
def test_the_contract_holds(corenlp):
    check_metric(Spice, PLAIN, options={"corenlp_dir": str(corenlp), "heap_gigabytes": 1})


def test_the_real_jar_without_a_parser_is_unavailable_with_javas_reason(tmp_path):
    with pytest.raises(MetricUnavailableError, match=r"ended with status 1: .*ClassFormatError"):
        scores(make(write_empty_jars(tmp_path)), PAIRS)


# ---------------------------------------------------------------- the client


def fake_java(tmp_path, body):
    """A `java` that is a Python program; it sees its arguments as `arguments`, and where to write as `out`."""
    path = tmp_path / "java"
    head = "import json, sys, time\narguments = sys.argv[1:]\nout = arguments[arguments.index('-out') + 1]\n"
    path.write_text(f"#!{sys.executable}\n{head}{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_what_java_is_given(tmp_path):
    told = tmp_path / "told.json"
    body = f"""
from pathlib import Path
given = arguments[arguments.index("edu.anu.spice.SpiceJson") + 1]
entries = json.loads(Path(given).read_text("ascii"))
record = {{"arguments": arguments, "entries": entries, "cwd": str(Path.cwd()), "stdin": sys.stdin.read()}}
Path({str(told)!r}).write_text(json.dumps(record))
results = [{{"image_id": e["image_id"], "scores": {{"All": {{"f": e["image_id"] / 4}}}}}} for e in entries]
Path(out).write_text(json.dumps(results[::-1]))
"""
    folder = write_empty_jars(tmp_path / "jars")
    found = scores(make(folder, java=fake_java(tmp_path, body)), [("a", "b"), ("c\nd", ("e", "f\u2028g")), ("h", "i")])
    assert found == [0, 0.25, 0.5]  # joined by number, whatever their order
    record = json.loads(told.read_text())
    assert record["entries"][1] == {"image_id": 1, "test": "c d", "refs": ["e", "f g"]}
    arguments = record["arguments"]
    assert {"-Duser.language=en", "-Dfile.encoding=UTF-8", "-Xmx1g", "-silent"} <= set(arguments)
    assert "-cache" not in arguments
    path = arguments[arguments.index("-cp") + 1].split(":")
    assert path[1:4] == [*(str(folder / name) for name in NEEDED), str(find_jar("spice", "spice-1.0.jar"))]
    assert {"guava-19.0.jar", "Meteor-1.5.jar", "SceneGraphParser-1.0.jar"} <= {Path(entry).name for entry in path}
    assert record["stdin"] == ""
    assert "site-packages" not in record["cwd"]
    assert not Path(record["cwd"]).exists()


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("sys.exit('Error: no heap for you')", "ended with status 1: Error: no heap for you"),
        ("print('warned', file=sys.stderr)", "wrote no result: warned"),
        ("open(out, 'w').write('[]')", "answered b'\\[\\]' in place of 1 scores"),
        ("open(out, 'w').write('not JSON')", "answered b'not JSON' in place of 1 scores"),
        ('open(out, "w").write(\'[{"image_id": 0, "scores": {"All": {"f": null}}}]\')', "in place of 1 scores"),
        ('open(out, "w").write(\'[{"image_id": 0, "scores": {"All": {"f": NaN}}}]\')', "outside 0 to 2"),
        ("sys.stderr.buffer.write(b'\\xff\\xfe'); sys.exit(3)", "ended with status 3"),
    ],
)
def test_a_java_that_fails_makes_spice_unavailable(tmp_path, body, told):
    metric = make(write_empty_jars(tmp_path / "jars"), java=fake_java(tmp_path, body))
    with pytest.raises(MetricUnavailableError, match=told):
        scores(metric, [("a", "b")])


def test_a_java_that_hangs_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("mhe_metrics.spice_jar.START_SECONDS", 0.5)
    monkeypatch.setattr("mhe_metrics.spice_jar.SECONDS_A_TEXT", 0)
    metric = make(write_empty_jars(tmp_path / "jars"), java=fake_java(tmp_path, "time.sleep(600)"))
    with pytest.raises(MetricUnavailableError, match="did not end within"):
        scores(metric, [("a", "b")])


def test_a_java_that_is_not_there_is_said(tmp_path):
    metric = make(write_empty_jars(tmp_path / "jars"), java=str(tmp_path / "no-java"))
    with pytest.raises(MetricUnavailableError, match="cannot be started"):
        scores(metric, [("a", "b")])


# ---------------------------------------------------------------- CoreNLP


def test_without_corenlp_it_says_what_to_set():
    with pytest.raises(MetricUnavailableError, match=r"metrics\.spice\.corenlp_dir=FOLDER with stanford-corenlp-3.6.0"):
        scores(make(None), [("a", "b")])


def test_what_is_wrong_with_the_folder_is_said(tmp_path):
    with pytest.raises(MetricUnavailableError, match="there is no such folder"):
        scores(make(tmp_path / "nowhere"), [("a", "b")])
    (tmp_path / "stanford-corenlp-4.5.8.jar").touch()
    with pytest.raises(MetricUnavailableError, match=r"3\.6\.0-models\.jar missing \(its jars are: stanford-corenlp-4"):
        scores(make(tmp_path), [("a", "b")])
    write_empty_jars(tmp_path, models=())
    with pytest.raises(MetricUnavailableError, match=r"models\.jar does not hold .*englishPCFG\.ser\.gz"):
        scores(make(tmp_path), [("a", "b")])
    write_empty_jars(tmp_path, code=CODE_ENTRIES[:1])
    with pytest.raises(MetricUnavailableError, match=r"3\.6\.0\.jar does not hold .*SemgrexPattern\.class"):
        scores(make(tmp_path), [("a", "b")])
    (tmp_path / "stanford-corenlp-3.6.0.jar").write_text("<html>not found</html>")
    with pytest.raises(MetricUnavailableError, match="is not a jar file"):
        scores(make(tmp_path), [("a", "b")])


def test_the_digests_of_corenlp_are_resources(tmp_path):
    folder = write_empty_jars(tmp_path)
    wanted = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in NEEDED}
    assert make(folder).resources == wanted
    assert len(wanted) == 2


def test_in_a_record_it_is_null_with_the_reason_and_never_zero(tmp_path):
    from mhe.scoring import score_cases, uncomputed

    catalog = open_catalog()
    cases = make_cases([("a lung", "a lung nodule")])
    records = score_cases(
        catalog,
        catalog.task("phantom-caption"),
        cases,
        all_samples=[case.sample for case in cases],
        metrics=["spice"],
        profiles=["plain"],
        run_key="run",
        folder=tmp_path,
    )
    value = records[0].values[0]
    assert (value.name, value.value) == ("spice", None)
    assert "corenlp_dir" in value.reason
    assert uncomputed(records) == records
