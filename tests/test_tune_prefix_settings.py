"""Recipes `prefix` and `ptuning-v2`: MILE's counts at true size, and settings that cannot be."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

import tune_cases
from mhe.errors import DocumentError, ModelUnusableError, UserError
from mhe.pipelines import plan_step, preview_step
from mhe.protocols import InputModel, RecipeJob, TrainingExample

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=6)


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def prefix_step(base: Path, recipe: str = "ptuning-v2", name: str = "tuned", **settings):
    return replace(tune_cases.step_on(base, name), recipe=recipe, settings=settings)


# ---------------------------------------------------------------- the paper's counts, at true size without weights


def shares(catalog, recipe: str, preset: str, **settings):
    """Trained and all parameters, and those trained by module, of a preset on MISS's architecture."""
    import mhe_hf

    folder = Path(mhe_hf.__file__).parent / "configurations" / "miss"
    factory = catalog.recipe(recipe)
    made = factory(factory.Options.model_validate({"preset": preset, "dtype": "fp32", **settings}))
    example = TrainingExample(request=None, answer="", sample=None)  # type: ignore[arg-type] - a plan only counts them
    with tempfile.TemporaryDirectory() as made_here:
        job = RecipeJob(
            base=InputModel(tune_cases.model_at(folder), "0"), inputs={}, train=[example] * 100, validation=[],
            folder=Path(made_here), seed=0, report=lambda *_: None, architectures=catalog.architectures, offline=True,
            dry_run=True,
        )  # fmt: skip
        result = made.run(job)
    return result.trainable_parameters, result.parameters, {key: pair[1] for key, pair in result.modules.items()}


@pytest.mark.parametrize(
    ("recipe", "preset", "share"),
    [
        ("prefix", "mile-prefix-taa", 29.636),
        ("prefix", "mile-prefix-tta", 63.354),
        ("ptuning-v2", "mile-ptv2-faa", 0.102),
        ("ptuning-v2", "mile-ptv2-ffa", 0.051),
        ("ptuning-v2", "mile-ptv2-taa", 23.963),
        ("ptuning-v2", "mile-ptv2-tta", 61.876),
    ],
)
def test_miles_shares(catalog, recipe, preset, share):
    """The published ViT is a little larger than BLIP's at 384 pixels, hence the tolerance where it is trained."""
    trained, total, modules = shares(catalog, recipe, preset)
    assert 100 * trained / total == pytest.approx(share, rel=0.006 if share > 1 else 0.01)
    assert modules["language"] == {"prefix": 14_787_840, "ptuning-v2": 184_320}[recipe]


def test_the_prefix_row_with_a_frozen_vit_prints_the_share_of_one_module(catalog):
    trained, total, modules = shares(catalog, "prefix", "mile-prefix-faa")
    assert modules == {"vision": 0, "fusion": 14_787_840, "language": 14_787_840}
    assert 100 * trained / total == pytest.approx(7.57, abs=0.01)
    trained, total, _ = shares(catalog, "prefix", "mile-prefix-faa", fusion="frozen")
    assert 100 * trained / total == pytest.approx(3.926, rel=0.002)


def test_mile_has_22_rows(catalog):
    rows = [
        preset
        for recipe in ("lora", "prefix", "ia3", "ptuning-v2")
        for preset in catalog.recipe(recipe).Options.presets
        if preset.startswith("mile-")
    ]
    assert len(rows) == len(set(rows)) == 22


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("recipe", "settings", "told"),
    [
        ("prefix", {"tokens": 0}, "tokens"),
        ("ptuning-v2", {"tokens": 0}, "tokens"),
        ("prefix", {"projection_width": 0}, "projection_width"),
        ("ptuning-v2", {"language": "prefix"}, "'frozen', 'full' or 'adapter'"),
        ("ptuning-v2", {"preset": "mile-ptv2-fta"}, "Did you mean mile-ptv2-"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_loaded(
    catalog, random_twins, place, recipe, settings, told
):
    with pytest.raises(DocumentError) as found:
        plan_step(catalog, prefix_step(random_twins("tiny-llava"), recipe, **settings), place)
    assert told in str(found.value)


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("tiny-llava", {"fusion": "adapter"}, "fusion of this llava model has no self-attention"),
        ("tiny-llava", {"fusion": "adapter"}, "vision (4 layers), language (3 layers)"),
        ("tiny-mllama", {"fusion": "adapter"}, "fusion of this mllama model has no self-attention"),
        ("tiny-llava", {"language": "frozen"}, "nothing for an adapter recipe to do"),
    ],
)
def test_a_module_without_self_attention_is_named_with_those_that_have(
    catalog, random_twins, place, name, settings, told
):
    plan = plan_step(catalog, prefix_step(random_twins(name), **settings), place)
    with pytest.raises(UserError) as found:
        preview_step(catalog, plan, place)
    assert told in str(found.value)


def test_attention_that_takes_no_prefix_is_refused(random_twins):
    from mhe_hf import HfOptions, KeysAndValues, load_model, put_prefix

    model, _ = load_model(tune_cases.model_at(random_twins("tiny-llava")), HfOptions(), offline=True)
    name = "model.language_model.layers.0.self_attn"
    model.get_submodule(name).config._attn_implementation = "flex_attention"
    source = KeysAndValues(torch.zeros(8, 2, 32), torch.zeros(8, 2, 32))
    with pytest.raises(ModelUnusableError, match=r"computed by 'flex_attention': attn_implementation=sdpa"):
        put_prefix(model, name, source)
