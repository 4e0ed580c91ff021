"""`--set KEY=VALUE`: what a person types, and what it becomes."""

from __future__ import annotations

import pytest

from mhe import UserError
from mhe.cli.settings import parse_settings, parse_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("0.7", 0.7),
        ("1e-5", 1e-5),
        ("2E3", 2000.0),
        ("nan", "nan"),
        ("infinity", "infinity"),
        ("'1e5'", "1e5"),
        ("true", True),
        ("False", False),
        ("[a, b]", ["a", "b"]),
        ("{toy-1: no error}", {"toy-1": "no error"}),
        ("null", None),
        ("yes", "yes"),
        ("no", "no"),
        ("On", "On"),
        ("off", "off"),
        ("left lung", "left lung"),
        ("'3'", "3"),
        ("'true'", "true"),
    ],
)
def test_a_value_is_what_the_person_means(text, value):
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("text", ["[a, b", "{a: b", "a: b: c", "@x"])
def test_what_is_not_a_value_is_refused(text):
    with pytest.raises(ValueError, match="not a YAML value"):
        parse_value(text)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UserError) as caught:
        parse_settings(["generaton.temperature=1", "nothing", "backend.=2", "backend.x=[1"], ["generation", "backend"])
    text = str(caught.value)
    assert "Did you mean generation.temperature?" in text
    assert "'nothing': write KEY=VALUE" in text
    assert text.count("\n") == 4


def test_a_key_that_is_given_twice_is_a_mistake():
    with pytest.raises(UserError, match=r"'a\.x': given twice"):
        parse_settings(["a.x=1", "b.x=1", "a.x=2"], ["a", "b"])


def test_every_scope_is_there():
    found = parse_settings(["backend.answer=a=b"], ["generation", "backend"])
    assert found == {"generation": {}, "backend": {"answer": "a=b"}}
