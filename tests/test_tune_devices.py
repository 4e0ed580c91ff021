"""What a training computes on and with: flash attention 2 where it can be had, and a precision that can be done."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

import mhe_hf
import tune_cases
from mhe.errors import ModelUnusableError, UserError
from mhe.pipelines import plan_step, preview_step, run_plan, run_step

torch = pytest.importorskip("torch")

SETTINGS = {"batch_size": 4, "max_steps": 1, "keep": "last", "dtype": "bf16"}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=4)


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine with an Ampere GPU and the package flash_attn, as far as one looks at its presence."""
    # Imported before the package seems to be there: they would take its functions, which it has not.
    from transformers import set_seed
    from transformers.utils import import_utils

    from mhe_hf.training import watching

    assert set_seed
    assert watching
    module = tmp_path / "site" / "flash_attn"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text('__version__ = "2.8.3"\n')
    about = tmp_path / "site" / "flash_attn-2.8.3.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.8.3\n")
    (about / "top_level.txt").write_text("flash_attn\n")
    (about / "RECORD").write_text("flash_attn/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert importlib.metadata.version("flash-attn") == "2.8.3"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))

    def forget():
        for name in ("is_flash_attn_2_available", "_package_distribution_mapping", "is_torch_cuda_available"):
            found = getattr(import_utils, name, None)
            for layer in (found, getattr(found, "__wrapped__", None)):
                if hasattr(layer, "cache_clear"):
                    layer.cache_clear()

    forget()
    yield monkeypatch
    monkeypatch.undo()
    sys.modules.pop("flash_attn", None)
    forget()


def chosen(catalog, place, model, **settings):
    from mhe_hf.training.devices import choose_attention
    from mhe_tune.full import FullOptions

    job = plan_step(catalog, tune_cases.step_on(model), place)
    return choose_attention(FullOptions(**{**SETTINGS, **settings}), _Job(job.base))


class _Job:
    offline = True

    def __init__(self, base):
        self.base = base


@pytest.mark.usefixtures("gpu")
def test_flash_attention_is_chosen_where_it_is_installed(catalog, place, random_twins):
    assert chosen(catalog, place, random_twins("tiny-llava")) == "flash_attention_2"
    assert chosen(catalog, place, random_twins("tiny-llava"), dtype="fp16") == "flash_attention_2"


@pytest.mark.usefixtures("gpu")
def test_what_is_asked_for_comes_first(catalog, place, random_twins):
    assert chosen(catalog, place, random_twins("tiny-llava"), attn_implementation="eager") == "eager"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("settings", [{"dtype": "fp32"}, {"device": "cpu"}])
def test_it_needs_16_bits_and_the_gpu(catalog, place, random_twins, settings):
    assert chosen(catalog, place, random_twins("tiny-llava"), **settings) is None


@pytest.mark.usefixtures("gpu")
def test_a_model_that_does_not_take_it_is_left_alone(catalog, place, random_twins):
    assert chosen(catalog, place, random_twins("tiny-blip-vqa")) is None


def test_an_older_gpu_has_no_kernels_for_it(catalog, place, random_twins, gpu):
    gpu.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert chosen(catalog, place, random_twins("tiny-llava"), dtype="fp16") is None


def test_without_the_package_it_is_transformers_choice(catalog, place, random_twins, monkeypatch):
    assert isinstance(sys.modules.get("flash_attn"), ModuleType | None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert chosen(catalog, place, random_twins("tiny-llava")) is None


class _LoadedError(Exception):
    pass


@pytest.mark.parametrize(("recipe", "wanted"), [("full", "flash_attention_2"), ("prefix", None)])
def test_the_base_is_loaded_with_it(catalog, place, random_twins, gpu, recipe, wanted):
    """But for a prefix, whose keys and values come with a mask that flash attention 2 does not take."""
    from mhe_hf.training import fitting

    def load(_spec, options, **_more):
        raise _LoadedError(options.attn_implementation)

    gpu.setattr(fitting, "load_model", load)
    step = replace(tune_cases.step_on(random_twins("tiny-llava")), recipe=recipe, settings=SETTINGS)
    with pytest.raises(_LoadedError) as found:
        run_step(catalog, step, place)
    assert found.value.args == (wanted,)


def test_the_checkpoint_says_how_attention_was_computed(catalog, place, random_twins):
    step = tune_cases.step_on(random_twins("tiny-llava"), max_steps=1, attn_implementation="eager", dtype="fp32")
    assert "attention by eager" in run_step(catalog, step, place).checkpoint.notes


def test_asked_for_and_not_installed_is_told(catalog, place, random_twins):
    step = tune_cases.step_on(random_twins("tiny-llava"), max_steps=1, attn_implementation="flash_attention_2")
    with pytest.raises(ModelUnusableError, match=r"(?i)flash.?att"):
        run_step(catalog, step, place)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("size", ["tiny", "true"])
def test_half_precision_is_planned_anywhere_and_trained_on_a_gpu(size, catalog, place, random_twins, monkeypatch):
    """The preset asks for fp16, and who plans here may train elsewhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    base = random_twins("tiny-visiongpt2")
    if size == "true":
        base = Path(mhe_hf.__file__).parent / "configurations" / "visiongpt2"
    step = replace(tune_cases.step_on(base), recipe="staged", settings={"preset": "visiongpt2-staged"})
    if size == "true":
        shape = step.base.model_copy(update={"options": {"random_weights": True}})
        step = replace(step, base=shape)
    plan = plan_step(catalog, step, place)
    found = preview_step(catalog, plan, place)
    refusal = "dtype=fp16 needs a CUDA device: use dtype=auto, fp32 or bf16."
    assert re.fullmatch(r"[0-9]+ steps over [0-9]+ rows, fp16", found.notes[0])
    assert found.notes[1] == f"this machine cannot train it in fp16: {refusal}"
    with pytest.raises(UserError, match=f"^{re.escape(refusal)}$"):
        run_plan(catalog, plan, place)
    assert not list(place.directory.glob("tuned/*"))


def test_a_precision_that_this_machine_has_is_not_remarked_on(catalog, place, random_twins):
    step = tune_cases.step_on(random_twins("tiny-llava"), dtype="fp32")
    found = preview_step(catalog, plan_step(catalog, step, place), place)
    assert found.notes[0].endswith("rows, fp32")
    assert not any("cannot" in note for note in found.notes)


def test_a_gpu_without_bf16_is_told_in_the_plan_and_refused_in_the_run(catalog, place, random_twins, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    plan = plan_step(catalog, tune_cases.step_on(random_twins("tiny-llava"), dtype="bf16"), place)
    found = preview_step(catalog, plan, place)
    assert "this machine cannot train it in bf16: this GPU has no bf16: use dtype=auto, fp16 or fp32." in found.notes
    with pytest.raises(UserError, match="this GPU has no bf16"):
        run_plan(catalog, plan, place)
