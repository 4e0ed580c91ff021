"""What `--dry-run` says of memory is what weights, gradients and moments take."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import tune_cases
from mhe.catalog import open_catalog
from mhe.pipelines import plan_step, preview_step, run_plan

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

SETTINGS = {"batch_size": 8, "max_steps": 2, "evaluate_every": 2, "save_every": 2, "keep": "last"}
RECIPES = {
    "full": {"vision": "frozen"},
    "bitfit": {"vision": "biases", "language": "frozen"},
    "lora": {"fusion": "full"},
    "ia3": {},
    "qlora": {},
    "qlora, one scale": {"double_quant": False, "quantized_modules": ["language"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from mhe_tiny.build import build_folder

    return build_folder("tiny-llava", tmp_path_factory.mktemp("twin") / "tiny-llava")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=4)


def bytes_held(model, optimizer) -> int:
    """Weights with the scales that bitsandbytes keeps beside them, a gradient a trained weight, AdamW's moments."""
    held = 0
    for parameter in model.parameters():
        held += parameter.numel() * parameter.element_size() * (2 if parameter.requires_grad else 1)
        if (state := getattr(parameter, "quant_state", None)) is not None:
            held += state.absmax.numel() * state.absmax.element_size()
            if state.nested:
                held += state.state2.absmax.numel() * state.state2.absmax.element_size()
    for kept in optimizer.state.values():
        held += sum(kept[name].numel() * kept[name].element_size() for name in ("exp_avg", "exp_avg_sq"))
    return held


@pytest.mark.parametrize("case", RECIPES)
def test_the_estimate_is_what_is_held(base, release, tmp_path, monkeypatch, case):
    from mhe_hf.training import watching

    held = []
    original = watching.WatchedTrainer.train

    def train(self, **arguments):
        found = original(self, **arguments)
        held.append(bytes_held(self.own_model, self.optimizer.optimizer))
        return found

    monkeypatch.setattr(watching.WatchedTrainer, "train", train)
    catalog, place = open_catalog(), tune_cases.place_at(tmp_path, release)
    step = replace(
        tune_cases.step_on(base), recipe=case.partition(",")[0], settings={**SETTINGS, **RECIPES[case]}
    )  # fmt: skip
    plan = plan_step(catalog, step, place)
    (told,) = re.findall(r"about ([0-9.]+) MiB for weights", "\n".join(preview_step(catalog, plan, place).notes))
    run_plan(catalog, plan, place)
    assert float(told) == pytest.approx(held[0] / 2**20, rel=0.02)
