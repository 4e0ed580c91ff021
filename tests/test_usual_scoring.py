"""Which profile and metrics are used where nobody names any: what profiles say of themselves, and nothing else."""

from __future__ import annotations

import pytest

from fake_plugins import plugin, provider, raising
from mhe import UserError, open_catalog, score
from mhe.testing import ToyProfile, check_profile
from mhe.usual_scoring import UsualScoring, default_profile, usual_scoring


class Said(ToyProfile):
    """A toy profile that says more of itself."""

    def __init__(self, kind="vqa", **said):
        super().__init__(kind)
        for name, value in said.items():
            setattr(self, name, value)


def catalog_of(**profiles):
    providers = [provider(name, (lambda item=item: item)) for name, item in profiles.items()]
    return open_catalog([plugin(register_profiles=lambda: providers)])


def test_the_installed_profiles_say_what_is_usual():
    catalog = open_catalog()
    assert usual_scoring(catalog, "caption") == UsualScoring("plain", ("bleu", "rouge-l", "cider"))
    assert usual_scoring(catalog, "vqa") == UsualScoring("strict", ("accuracy", "exact-match", "token-f1"))
    for kind in ("caption", "vqa"):
        assert set(usual_scoring(catalog, kind).metrics) <= set(catalog.metrics)


def test_what_is_asked_for_is_kept_and_gaps_are_filled():
    catalog = open_catalog()
    assert usual_scoring(catalog, "caption", profile="imageclef").metrics == ("bleu", "rouge-l", "cider")
    assert usual_scoring(catalog, "vqa", metrics=["accuracy"]) == UsualScoring("strict", ("accuracy",))
    assert usual_scoring(catalog, "vqa", profile="miss", metrics=["x"]) == UsualScoring("miss", ("x",))
    with pytest.raises(UserError, match="no profile named 'plane'"):
        usual_scoring(catalog, "caption", profile="plane")


def test_a_profile_may_have_usual_metrics_of_its_own():
    catalog = catalog_of(a=Said(is_default=True, usual_metrics=("x",)), b=Said(usual_metrics=("y", "z")), c=Said())
    assert usual_scoring(catalog, "vqa", profile="b") == UsualScoring("b", ("y", "z"))
    assert usual_scoring(catalog, "vqa", profile="c") == UsualScoring("c", ("x",))
    assert usual_scoring(catalog, "vqa") == UsualScoring("a", ("x",))


def test_two_defaults_are_a_mistake_that_names_both():
    catalog = catalog_of(
        one=Said(is_default=True, usual_metrics=("x",)),
        other=Said(is_default=True, usual_metrics=("x",)),
        caption=Said("caption", is_default=True, usual_metrics=("x",)),
    )
    with pytest.raises(UserError, match=r"default for vqa: one \(stranger\), other \(stranger\)"):
        default_profile(catalog, "vqa")
    assert default_profile(catalog, "caption") == "caption"
    assert usual_scoring(catalog, "vqa", profile="one").profile == "one"
    with pytest.raises(UserError, match="several profiles"):
        usual_scoring(catalog, "vqa", metrics=["x"])


def test_no_default_says_what_to_name():
    catalog = catalog_of(one=Said())
    with pytest.raises(UserError, match=r"name profile and metrics \(profiles: one\)"):
        usual_scoring(catalog, "vqa")
    with pytest.raises(UserError, match="name profile and metrics"):
        usual_scoring(catalog, "vqa", profile="one")
    assert usual_scoring(catalog, "vqa", profile="one", metrics=["x"]) == UsualScoring("one", ("x",))


def test_a_profile_that_cannot_be_loaded_is_not_the_default_and_costs_nothing():
    good, bad = Said(is_default=True, usual_metrics=("x",)), provider("bad", raising(RuntimeError("broken")))
    catalog = open_catalog([plugin(register_profiles=lambda: [bad, provider("good", lambda: good)])])
    assert default_profile(catalog, "vqa") == "good"


def test_scoring_in_memory_uses_it():
    found = score(["a lung"], ["a lung nodule"], kind="caption", intervals=False)
    assert [name.partition("-")[0] for name in found] == ["bleu"] * 4 + ["rouge", "cider"]
    assert "accuracy.closed" in score(["yes"], ["yes"], kind="vqa", metrics="accuracy", intervals=False)
    with pytest.raises(UserError, match="kind must be caption or vqa"):
        score(["a"], ["a"], kind="text")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"is_default": True}, "names its usual_metrics"),
        ({"is_default": "yes", "usual_metrics": ("x",)}, "is_default is True or False"),
        ({"usual_metrics": "bleu"}, "usual_metrics is a sequence"),
        ({"usual_metrics": (1,)}, "usual_metrics is a sequence"),
    ],
)
def test_the_contract_of_profiles_holds_them_to_it(said, told):
    with pytest.raises(AssertionError, match=told):
        check_profile(Said(**said))
    check_profile(Said(is_default=True, usual_metrics=("accuracy",)))
