"""The pages about scoring: metrics and profiles are all explained in the same parts, and what is shown runs."""

from __future__ import annotations

import json
import re
import types
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from mhe import Case, MetricContext, MetricUnavailableError, Sample, open_catalog
from mhe.cli.scoring_page import metric_section, profile_section
from mhe.testing import check_metric

CATALOG = open_catalog()
PAGE = Path(__file__).parents[1] / "docs" / "scoring-files.md"
FORMULA = re.compile(r"^ {4}\S.*", flags=re.MULTILINE)
LEAST = 30
"""Characters of an explanation that says something."""


def part_of(text: str, label: str) -> str:
    """What stands after a label, at the start of a line or after a sentence, up to the paragraph's end."""
    found = re.search(rf"(?:^|(?<=\. )){label}: (.+?)(?=\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def rows_of(text: str, width: int) -> list[list[str]]:
    """The cells of the Markdown rows with this many columns, heads and rules apart."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not set(line) <= set("|- ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return [row for row in cells if len(row) == width]


@pytest.mark.parametrize("name", sorted(CATALOG.metrics))
def test_every_metric_s_section_has_all_parts(name):
    section = "\n".join(metric_section(CATALOG, name))
    assert FORMULA.search(section), "a formula stands in an indented block of the module's docstring"
    assert len(part_of(section, "Source")) >= LEAST / 2, "`Source:` names a paper or a program"
    assert len(part_of(section, "Blind to")) >= LEAST, "`Blind to:` says what the metric does not see"
    head, *values = rows_of(section, 4)
    assert head == ["value", "range", "direction", "what it is"]
    assert values
    for value, span, direction, summary in values:
        assert value.startswith("`")
        assert re.fullmatch(r"(−∞|-?[\d.]+) to (∞|-?[\d.]+)", span), span
        low, high = (float(end.replace("−∞", "-inf").replace("∞", "inf")) for end in span.split(" to "))
        assert low < high, f"{value}: the smaller end of the range stands first"
        assert direction in {"higher is better", "lower is better", "no direction"}
        assert len(summary) >= LEAST / 4


@pytest.mark.parametrize("name", sorted(CATALOG.profiles))
def test_every_profile_s_section_has_all_parts(name):
    profile = CATALOG.profile(name)
    section = "\n".join(profile_section(name, profile))
    assert FORMULA.search(section), "the rule stands in an indented block of the module's docstring"
    assert len(part_of(section, "Blind to")) >= LEAST / 2, "`Blind to:` says what the convention does not see"
    rows = {row[0]: row[1] for row in rows_of(section, 2) if row[0]}
    assert set(rows) == {"for", "version", "range", "direction", "source"}
    assert all(rows.values())
    assert ("0 to 1" in rows["range"]) == (profile.kind == "vqa")


def test_sections_were_found():
    assert len(CATALOG.metrics) >= 14
    assert len(CATALOG.profiles) >= 11


# ---------------------------------------------------------------- what the page shows


def blocks() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) >= 4
    return found


def block_with(words: str) -> str:
    (code,) = [block for block in blocks() if words in block]
    return code


def lines_of(code: str) -> list[str]:
    return [line for line in code.splitlines() if line.strip()]


def output_of(code: str) -> str:
    shown = StringIO()
    with redirect_stdout(shown):
        exec(compile(code, str(PAGE), "exec"), {})
    return shown.getvalue()


def test_one_metric_alone_takes_five_lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = block_with("metric.aggregate(rows")
    assert len([line for line in lines_of(code) if "import " not in line]) <= 5
    # Two words of four, both right: precision 1, brevity exp(1 - 4/2).
    assert "'bleu-1': array(0.36787" in output_of(code)


def test_a_metric_of_a_third_party_takes_a_dozen_lines():
    code = block_with("class Question")
    module = types.ModuleType("question")
    exec(compile(code, str(PAGE), "exec"), vars(module))
    body = code[code.index("class ") : code.index("@hookimpl")]
    assert len(lines_of(body)) <= 12
    (provider,) = module.register_metrics()
    check_metric(provider.load())
    cases = [Case(Sample(str(n), (), ("a",), question="?"), text) for n, text in enumerate(["Which side?", "left"])]
    assert check_metric(provider.load(), cases=cases, expected={"question": 0.5})


def test_values_of_single_samples_are_read_as_shown(tmp_path, monkeypatch, capsys):
    from mhe.cli.main import main

    monkeypatch.chdir(tmp_path)
    texts = {"one": "a nodule of the left lung", "two": "no effusion", "three": ""}
    lines = "".join(json.dumps({"id": name, "prediction": text}) + "\n" for name, text in texts.items())
    Path("predictions.jsonl").write_text(lines, encoding="utf-8")
    right = "".join(json.dumps({"id": name, "references": ["a nodule of the left lung"]}) + "\n" for name in texts)
    Path("references.jsonl").write_text(right, encoding="utf-8")
    (command,) = re.findall(r"^mhe score .* --out scored$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    with pytest.raises(SystemExit, match=r"^0$"):
        main(command.split()[1:])
    document = json.loads(Path("scored", "score.json").read_text(encoding="utf-8"))
    shown = output_of(block_with("kept["))
    names = [value["name"] for metric in document["metrics"] for value in metric["values"]]
    assert len(names) >= 6
    for name in names:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"plain {name} ")]
        assert all(f"'{sample}':" in line for sample in texts), line
    assert "plain rouge-l {'one': 1, 'two': 0, 'three': 0}" in shown
    capsys.readouterr()


ODD = {
    r"`left\rlung`": "left\rlung",
    r"`left\u2028lung`": "left\u2028lung",
    r"`\|\|\|`": "|||",
    "no text": "",
    "`... !?`": "... !?",
    "10,000 different words": " ".join(f"w{number}" for number in range(10_000)),
    "`左肺有结节`": "左肺有结节",
    "`🫁`": "🫁",
}
ORDINARY = ("no pleural effusion on the left side", "fracture of the right distal radius")
COLUMNS = {
    "bleu": ("bleu-1", "bleu-4"),
    "rouge": ("rouge-1",),
    "rouge-l": ("rouge-l",),
    "cider": ("cider",),
    "meteor": ("meteor",),
    "token-f1": ("token-f1",),
    "exact-match": ("exact-match",),
}


def odd_table() -> dict[str, dict[str, float]]:
    head, *rows = rows_of(PAGE.read_text(encoding="utf-8"), 1 + sum(map(len, COLUMNS.values())))
    found = {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert list(found) == list(ODD)
    return found


@pytest.mark.parametrize("name", COLUMNS)
def test_odd_captions_score_what_the_page_says(name, tmp_path):
    factory = CATALOG.metric(name)
    metric = factory(factory.Options(), MetricContext(cache_dir=tmp_path))
    texts = [*ODD.values(), *ORDINARY]
    same = [Case(Sample(str(n), (), (text,)), text) for n, text in enumerate(texts)]
    against = [Case(Sample(f"ordinary {n}", (), (ORDINARY[0],)), text) for n, text in enumerate(ODD.values())]
    plain = CATALOG.profile("plain")
    try:
        found = metric.per_sample(metric.statistics(same, plain))
        other = metric.per_sample(metric.statistics(against, plain))
    except MetricUnavailableError as error:
        pytest.skip(str(error))
    told = odd_table()
    for column in COLUMNS[name]:
        assert {row: round(float(value), 3) for row, value in zip(told, found[column], strict=False)} == {
            row: values[column] for row, values in told.items()
        }
        for (row, text), value in zip(ODD.items(), other[column], strict=True):
            assert text.startswith("left") or value == pytest.approx(0, abs=1e-3), row
