"""docs/backends.md claims nothing that is not run here or, for vLLM, in tests/with_vllm/test_families.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import backend_table
import hf_family_models
import tune_cases
from backend_table import ABILITIES, WITH_HF
from hf_models import answers, ask, open_backend, picture
from mhe import ModelSpec, open_catalog
from mhe.model_names import resolve_model
from mhe.pipelines import run_step
from mhe_hf import HfOptions, load_model
from mhe_hf.models import MODELS
from mhe_tiny.build import BUILDERS

REQUESTS = [
    ask(f"q{n}", text, image=picture(n)) for n, text in enumerate(["what ?", "is there a fracture ?", "side ?"])
]
# A captioner is asked one thing of every image.
CAPTIONS = [ask(f"q{n}", "what ?", image=picture(n)) for n in range(3)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family):
        if family.classes not in made:
            place = tmp_path_factory.mktemp(family.classes)
            made[family.classes] = hf_family_models.FAMILIES[family.classes](place)
        return made[family.classes]

    return folder


def evaluate(folder, family, **options):
    """Every question is answered, and not with one answer for all."""
    backend = open_backend(folder, dtype="float32", **options)
    try:
        asked = CAPTIONS if family.classes in hf_family_models.CAPTIONERS else REQUESTS
        found = answers(backend, asked)
        assert not any(response.error for response in found.values())
        assert len({response.text for response in found.values()}) > 1
        return backend.describe()
    finally:
        backend.close()


def tune(folder, family, place):
    """By both recipes: the result is found by its name, and is not its base."""
    catalog = open_catalog()
    for recipe in ("full", "lora"):
        quick = {"learning_rate": 1e-3, "batch_size": 4, "max_steps": 2}
        if recipe == "full" and family.classes == "blip":
            # As the page says: there is no such module in it.
            quick["fusion"] = "frozen"
        step = replace(tune_cases.step_on(folder, f"by-{recipe}"), recipe=recipe, settings=quick)
        run_step(catalog, step, place)
        spec = resolve_model(f"by-{recipe}@0", catalog, checkpoints_dir=place.directory)
        options = HfOptions(dtype="float32", device="cpu", merge_adapter=recipe == "lora")
        tuned, _ = load_model(spec, options)
        base, _ = load_model(ModelSpec(name="b", backend="hf", location=str(folder)))
        before = base.state_dict()
        changed = [name for name, value in tuned.state_dict().items() if not torch.equal(value, before[name])]
        assert changed


@pytest.mark.parametrize("ability", WITH_HF)
@pytest.mark.parametrize("family", ABILITIES, ids=lambda family: family.classes)
def test_what_the_page_claims(folders, release, tmp_path, family, ability):
    assert ability in family.works, "no test says how this is refused"
    folder = folders(family)
    if ability == "evaluate":
        evaluate(folder, family)
    elif ability == "tune":
        tune(folder, family, tune_cases.place_at(tmp_path / "checkpoints", release))
    else:
        pytest.importorskip("bitsandbytes")
        described = evaluate(folder, family, quantization="nf4", quantized_modules=["language"])
        assert described.bits_per_weight < 32


def test_every_family_and_registered_model_has_a_row():
    assert {family.classes for family in ABILITIES} == set(hf_family_models.FAMILIES)
    assert {spec.tiny_twin for spec in MODELS} == {family.twin for family in ABILITIES}
    assert {family.twin for family in ABILITIES} <= set(BUILDERS)


def test_the_page_is_up_to_date():
    assert backend_table.main(["--check"]) == 0, "run: python tests/backend_table.py"
    assert backend_table.table() in backend_table.PAGE.read_text(encoding="utf-8")
