"""`mhe show tasks T --sample N`: a sample, its messages, and the text that each backend's model reads."""

from __future__ import annotations

import json

import pytest

import hf_family_models
import hf_models
from command import mhe
from mhe import BackendContext, ModelSpec, RendersPrompts, open_catalog
from mhe.cli.main import main
from mhe.cli.show_samples import sample_details, sample_text
from mhe.errors import UserError
from mhe.prompting import build_request
from mhe.samples import load_samples
from mhe_hf import HfBackend, HfOptions, load_processor, render_prompt
from releases import make_rocov2

CATALOG = open_catalog()
INSTRUCTION = "Answer the question using a single word or phrase."


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    folder = hf_models.build_llava(tmp_path_factory.mktemp("model") / "llava")
    # A prompt is shown without weights.
    (folder / "model.safetensors").unlink()
    return folder


def test_what_is_shown_is_what_a_run_sends(llava):
    shown = sample_details(CATALOG, "phantom-vqa", 3, model=str(llava))
    task = CATALOG.task("phantom-vqa")
    sample = load_samples(CATALOG, task, limit=3).samples[2]
    request = build_request(task, sample, task.generation, 0)
    assert shown["sample"]["id"] == sample.id
    assert shown["messages"] == [{"role": "user", "images": 1, "text": request.messages[0].text}]
    spec = ModelSpec(name="t", backend="hf", location=str(llava))
    assert shown["prompt"] == render_prompt(load_processor(spec), request.messages)
    assert shown["prompt"] == f"USER: <image> {sample.question}\n{INSTRUCTION}\nASSISTANT:"
    assert sample_text(shown).endswith(f"llava through hf reads:\n{shown['prompt']}")


def test_the_command(tmp_path, llava):
    rocov2 = make_rocov2(tmp_path / "rocov2", {"train": 3, "valid": 3, "test": 5})
    arguments = ("--sample", "2", "--data-dir", rocov2, "--model", llava)
    done = mhe("show", "task", "roco", *arguments, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.document["sample"]["images"] == ["ROCOv2_2023_test_000002"]
    assert done.document["prompt"].count("<image>") == 1
    text = mhe("show", "tasks", "roco", *arguments, cwd=tmp_path)
    assert text.code == 0, text.err
    assert done.document["prompt"] in text.out
    assert json.dumps(done.document["sample"]["references"][0])[1:-1] in text.out


@pytest.mark.parametrize("name", ["blip", "visiongpt2"])
def test_captioners_take_no_prompt(tmp_path, name):
    folder = hf_family_models.FAMILIES[name](tmp_path)
    shown = sample_details(CATALOG, "phantom-caption", 1, model=str(folder))
    assert shown["prompt"] is None
    assert "takes no prompt: it is a captioner, and is shown the image alone" in sample_text(shown)
    options = HfOptions(prefix="an image of")
    backend = HfBackend(
        ModelSpec(name="t", backend="hf", location=str(folder)), options, BackendContext(True, tmp_path, list)
    )
    assert isinstance(backend, RendersPrompts)
    task = CATALOG.task("phantom-caption")
    (sample,) = load_samples(CATALOG, task, limit=1).samples
    assert backend.render_prompt(build_request(task, sample, task.generation, 0)) == "an image of"


def test_a_refusal_is_told(tmp_path, llava, monkeypatch):
    template = llava / "chat_template.jinja"
    kept = template.read_text()
    template.write_text("{{ raise_exception('no pictures, please') }}")
    try:
        shown = sample_details(CATALOG, "phantom-vqa", 1, model=str(llava))
    finally:
        template.write_text(kept)
    assert shown["prompt"] is None
    assert "refuses it: the model's chat template refuses the messages: no pictures, please" in sample_text(shown)


def test_mistakes_are_told(tmp_path, capsys):
    with pytest.raises(UserError, match="counted from 1"):
        sample_details(CATALOG, "phantom-vqa", 0)
    with pytest.raises(UserError, match="split test of task phantom-caption has 300 samples"):
        sample_details(CATALOG, "phantom-caption", 301)
    with pytest.raises(UserError, match="backend server does not tell what its models read"):
        sample_details(CATALOG, "phantom-vqa", 1, model="gpt-4o", backend="server")
    for lonely in (("--model", "tiny-llava"), ("--split", "test"), ("--data-dir", tmp_path)):
        with pytest.raises(SystemExit) as done:
            main(["show", "tasks", "phantom-vqa", *map(str, lonely)])
        assert done.value.code == 2
        assert f"{lonely[0]} belongs to one sample" in capsys.readouterr().err
