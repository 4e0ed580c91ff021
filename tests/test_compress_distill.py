"""The recipe `distill`: its loss at work, kept and online teachers, adapters, sequences, what is saved."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

import distill_cases
import tune_cases
from command import mhe
from distill_cases import step_of
from hf_models import build_llava
from mhe.documents.pipeline import TrainingChoice
from mhe.errors import DocumentError, UserError
from mhe.pipelines import Step, plan_step, preview_step, run_step

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

FAMILIES = ["tiny-llava", "tiny-llava-next", "tiny-mllama", "tiny-qwen2-vl", "tiny-visiongpt2", "tiny-blip-vqa"]
EVERYTHING = {"batch_size": 32, "max_steps": 1, "scheduler": "constant"}
"""One step on all examples at once."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A student, and a wider and deeper teacher over the same tokenizer."""
    root = tmp_path_factory.mktemp("models")
    build_llava(root / "small", hidden=32, layers=2, seed=1)
    build_llava(root / "large", hidden=64, layers=4, seed=2)
    return root


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad", images=6)


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def first_loss(outcome):
    return outcome.checkpoint.history[0]["loss"]


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("teacher_logits", ["cached", "online"])
def test_a_step_has_the_loss_of_the_formula(catalog, models, place, teacher_logits):
    """Hard and soft loss over the same tokens, with a teacher of another size, in one padded batch of all examples."""
    settings = {**EVERYTHING, "alpha": 0.7, "temperature": 3.0, "teacher_logits": teacher_logits, "top_k": 8}
    step = step_of(models / "small", models / "large", **settings)
    done = run_step(catalog, step, place)
    pair = [distill_cases.quiet_loader()(models / name) for name in ("small", "large")]
    examples = distill_cases.examples_of(catalog, step, place)
    top_k = 8 if teacher_logits == "cached" else None
    wanted = distill_cases.loss_by_hand(*pair, examples, temperature=3.0, alpha=0.7, top_k=top_k)
    assert first_loss(done) == pytest.approx(wanted, rel=1e-4)
    plain = distill_cases.loss_by_hand(*pair, examples, temperature=3.0, alpha=0.0)
    assert abs(wanted - plain) > 0.05, "the teacher has something to say"


@pytest.mark.parametrize("family", ["tiny-blip-vqa", "tiny-visiongpt2", "tiny-mllama"])
def test_labels_and_logits_are_aligned_in_every_kind_of_family(catalog, random_twins, tmp_path, place, family):
    """One shifts its labels itself, one is fed what lags behind, one returns no logits at all."""
    from mhe_tiny.build import build_folder

    teacher = build_folder(family, tmp_path / "teacher", seed=5)
    step = step_of(random_twins(family), teacher, **EVERYTHING, alpha=1.0, top_k=16)
    done = run_step(catalog, step, place)
    pair = [distill_cases.quiet_loader()(folder) for folder in (random_twins(family), teacher)]
    examples = distill_cases.examples_of(catalog, step, place)
    wanted = distill_cases.loss_by_hand(*pair, examples, temperature=2.0, alpha=1.0, top_k=16)
    assert first_loss(done) == pytest.approx(wanted, rel=2e-4)


def test_a_kept_teacher_is_exactly_an_online_one_over_the_whole_vocabulary(catalog, models, place):
    """At batch 1 both read the same tensors; in a batch padding changes the last bits."""
    weights = {}
    for teacher_logits in ("cached", "online"):
        for batch in (1, 4):
            name = f"{teacher_logits}-{batch}"
            settings = {"teacher_logits": teacher_logits, "top_k": 100_000, "batch_size": batch, "alpha": 0.9}
            step = step_of(models / "small", models / "large", name=name, **settings)
            weights[name] = distill_cases.weights_of(run_step(catalog, step, place).folder)
    for name, tensor in weights["online-1"].items():
        assert torch.equal(tensor, weights["cached-1"][name]), name
        assert torch.allclose(weights["online-4"][name], weights["cached-4"][name], atol=1e-4), name


def test_accumulated_passes_are_one_step(catalog, models, place):
    losses = []
    for batch, passes in ((8, 1), (2, 4)):
        settings = {"batch_size": batch, "gradient_accumulation": passes, "max_steps": 1, "scheduler": "constant"}
        done = run_step(catalog, step_of(models / "small", models / "large", f"by-{batch}", **settings), place)
        losses.append((first_loss(done), distill_cases.weights_of(done.folder)))
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)
    for name, tensor in losses[0][1].items():
        assert torch.allclose(tensor, losses[1][1][name], atol=2e-4), name


def test_gradients_flow_into_the_student_alone(catalog, models, place, monkeypatch):
    from mhe_compress import distill

    seen = {}
    original = distill.open_teacher

    def watched(*arguments):
        model, processor = original(*arguments)
        seen["model"] = model
        seen["before"] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        return model, processor

    monkeypatch.setattr(distill, "open_teacher", watched)
    settings = {"teacher_logits": "online", "hidden_weight": 0.5, "hidden_layers": "evenly", "learning_rate": 1e-2}
    done = run_step(catalog, step_of(models / "small", models / "large", **settings), place)
    teacher = seen["model"]
    assert not teacher.training
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(torch.equal(tensor, seen["before"][name]) for name, tensor in teacher.state_dict().items())
    before = distill_cases.quiet_loader()(models / "small")[0].state_dict()
    after = distill_cases.quiet_loader()(done.folder / "model")[0].state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before if "language_model" in name)


@pytest.mark.parametrize("layers", ["last", "evenly"])
def test_the_projection_is_learnt_and_dropped(catalog, models, place, layers, monkeypatch):
    from mhe_compress import distill_training

    weights = []
    original = distill_training.state_loss

    def watched(student, teacher):
        assert student.shape == teacher.shape
        assert student.requires_grad
        assert not teacher.requires_grad
        weights.append(float(original(student, teacher).detach()))
        return original(student, teacher)

    monkeypatch.setattr(distill_training, "state_loss", watched)
    settings = {
        "teacher_logits": "online", "hidden_weight": 1.0, "hidden_layers": layers, "alpha": 0.0, "max_steps": 8,
        "batch_size": 12, "scheduler": "constant", "learning_rate": 1e-2,
    }  # fmt: skip
    done = run_step(catalog, step_of(models / "small", models / "large", **settings), place)
    pairs = 1 if layers == "last" else 2
    assert len(weights) == 8 * pairs
    assert sum(weights[-pairs:]) < 0.8 * sum(weights[:pairs]), "states come closer"
    assert not any("projection" in name and "multi_modal" not in name for name in distill_cases.weights_of(done.folder))


def test_without_a_teachers_part_it_is_the_recipe_full(catalog, models, place, own_cache):
    step = step_of(models / "small", models / "large", alpha=0.0)
    done = run_step(catalog, step, place)
    plain = replace(step, recipe="full", name="plain", settings=distill_cases.SETTINGS, inputs={})
    wanted = run_step(catalog, plain, place)
    ours, theirs = (distill_cases.weights_of(one.folder) for one in (done, wanted))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert not distill_cases.files_below(own_cache / "teacher_logits"), "nobody was asked"


# ---------------------------------------------------------------- what the student is


@pytest.fixture(scope="module")
def shortened(tmp_path_factory, catalog, random_twins, release):
    """A distilled half of each family, made once: folder by family."""
    made = {}

    def find(family):
        if family not in made:
            root = tmp_path_factory.mktemp("shortened")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("MHE_CACHE_DIR", str(root / "cache"))
                settings = {"max_steps": 2, "keep_layers": 0.5, "batch_size": 4}
                step = step_of(random_twins(family), name=family, **settings)
                made[family] = run_step(catalog, step, tune_cases.place_at(root / "checkpoints", release))
        return made[family]

    return find


@pytest.mark.parametrize("family", FAMILIES)
def test_half_the_layers_of_every_family_learn_from_the_whole(shortened, random_twins, family):
    done = shortened(family)
    model, _ = distill_cases.quiet_loader()(done.folder / "model")
    whole, _ = distill_cases.quiet_loader()(random_twins(family))
    text, before = (one.config.get_text_config(decoder=True) for one in (model, whole))
    assert text.num_hidden_layers == max(1, -(-before.num_hidden_layers // 2))
    assert done.checkpoint.parameters == sum(p.numel() for p in model.parameters())
    assert done.checkpoint.parameters < sum(p.numel() for p in whole.parameters())
    assert done.checkpoint.loads_in == ["transformers"] or tuple(done.checkpoint.loads_in) == ("transformers",)
    assert any("language layers kept: 0" in note for note in done.checkpoint.notes)
    assert [entry.parent for entry in done.checkpoint.lineage] == [family]


def test_every_half_loads_in_a_process_without_mhe(shortened, tmp_path):
    """transformers alone, every weight from the file, and an answer of a few tokens."""
    script = (
        "import json, sys, torch, transformers\n"
        "assert not any(name.startswith('mhe') for name in sys.modules)\n"
        "for folder in sys.argv[1:]:\n"
        "    config = transformers.AutoConfig.from_pretrained(folder)\n"
        "    kind = getattr(transformers, config.architectures[0])\n"
        "    model, found = kind.from_pretrained(folder, output_loading_info=True)\n"
        "    assert not any(found[kind] for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), found\n"
        "    print(config.architectures[0], config.get_text_config(decoder=True).num_hidden_layers)\n"
    )
    folders = [str(shortened(family).folder / "model") for family in FAMILIES]
    done = subprocess.run(
        [sys.executable, "-c", script, *folders], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(FAMILIES)


def test_a_smaller_configuration_is_drawn_from_the_seed(catalog, models, tmp_path, release, place):
    smaller = {"text_config": {"num_hidden_layers": 1, "intermediate_size": 48}}
    step = step_of(models / "large", student=smaller, max_steps=2)
    done = run_step(catalog, step, place)
    again = run_step(catalog, step, tune_cases.place_at(tmp_path / "again", release))
    other = run_step(catalog, replace(step, seed=1), place)
    first, second, third = (distill_cases.weights_of(one.folder) for one in (done, again, other))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert any(not torch.equal(tensor, third[name]) for name, tensor in first.items())
    text = distill_cases.configuration_of(done.folder / "model")["text_config"]
    assert (text["num_hidden_layers"], text["intermediate_size"], text["hidden_size"]) == (1, 48, 64)
    dotted = step_of(models / "large", name="dotted", max_steps=2, student={"text_config.num_hidden_layers": 1})
    assert run_step(catalog, dotted, place).checkpoint.parameters > done.checkpoint.parameters


def test_lora_on_a_given_student_is_a_peft_adapter_on_it(catalog, models, place):
    settings = {"vision": "frozen", "fusion": "frozen", "language": "adapter", "rank": 4, "learning_rate": 1e-2}
    done = run_step(catalog, step_of(models / "small", models / "large", **settings), place)
    folder = done.folder / "model"
    assert (folder / "language" / "adapter_model.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / "adapters.json").read_text())["base_fingerprint"]
    assert tuple(done.checkpoint.loads_in) == ("peft",)
    model, _ = distill_cases.quiet_loader()(folder)
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in model.named_parameters())


def test_lora_on_half_of_the_layers_brings_its_base_along(catalog, models, place, tmp_path):
    settings = {"vision": "frozen", "fusion": "frozen", "language": "adapter", "rank": 4, "keep_layers": 0.5}
    done = run_step(catalog, step_of(models / "large", **settings, learning_rate=1e-2), place)
    folder = done.folder / "model"
    assert tuple(done.checkpoint.loads_in) == ("transformers", "peft")
    script = (
        "import json, sys, torch, transformers, peft\n"
        "kind = transformers.LlavaForConditionalGeneration\n"
        "model, found = kind.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "assert not found['missing_keys'] and not found['unexpected_keys'], found\n"
        "place = json.load(open(sys.argv[1] + '/adapters.json'))['adapters'][0]\n"
        "inner = model.get_submodule(place['module'])\n"
        "part = peft.PeftModel.from_pretrained(inner, sys.argv[1] + '/' + place['folder'])\n"
        "print(sum(bool(p.any()) for n, p in part.named_parameters() if 'lora_B' in n))\n"
    )
    plain = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert plain.returncode == 0, plain.stderr
    # Seven linear layers in each of the two layers that stay.
    assert int(plain.stdout.splitlines()[-1]) == 14
    model, _ = distill_cases.quiet_loader()(folder)
    assert model.config.text_config.num_hidden_layers == 2


def test_a_teacher_in_4_bits(catalog, models, place):
    pytest.importorskip("bitsandbytes")
    settings = {**EVERYTHING, "alpha": 1.0, "top_k": 1000}
    whole = run_step(catalog, step_of(models / "small", models / "large", name="whole", **settings), place)
    few = run_step(catalog, step_of(models / "small", models / "large", **settings, teacher_quantization="nf4"), place)
    assert first_loss(few) == pytest.approx(first_loss(whole), rel=0.5)
    assert first_loss(few) != first_loss(whole)


# ---------------------------------------------------------------- the teacher's answers


def test_another_tokenizer_is_refused_and_the_teachers_answers_are_offered(
    catalog, random_twins, models, place, own_cache
):
    step = step_of(models / "small", random_twins("tiny-qwen2-vl"))
    for run in (
        lambda: run_step(catalog, step, place),
        lambda: preview_step(catalog, plan_step(catalog, step, place), place),
    ):
        with pytest.raises(UserError, match=r"different tokenizers \(.*--set mode=sequence"):
            run()
    assert not distill_cases.files_below(own_cache / "teacher_logits")


def test_a_student_learns_the_answers_of_a_teacher_of_another_tokenizer(
    catalog, random_twins, models, place, own_cache
):
    from mhe import BackendContext
    from mhe_hf import HfBackend, HfOptions

    teacher = random_twins("tiny-qwen2-vl")
    settings = {"mode": "sequence", "teacher_max_new_tokens": 6, "max_steps": 2}
    step = step_of(models / "small", teacher, **settings)
    examples = distill_cases.examples_of(catalog, step, place)
    done = run_step(catalog, step, place)
    (kept,) = own_cache.glob("teacher_answers/*/answers.jsonl")
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == len(examples)
    # As an evaluation of the teacher would have it.
    backend = HfBackend(
        tune_cases.model_at(teacher),
        HfOptions(batch_size=4),
        BackendContext(offline=True, cache_dir=own_cache, training_samples=list),
    )
    backend.load()
    asked = [
        replace(e.request, generation=e.request.generation.model_copy(update={"max_new_tokens": 6})) for e in examples
    ]
    answers = [r.text for r in backend.generate(asked, {r.sample_id for r in asked})]
    backend.close()
    assert sorted(answers) == sorted(line["answer"] for line in lines)
    empty = sum(not answer.strip() for answer in answers)
    assert any(f"{len(answers) - empty} answers of the teacher" in note for note in done.checkpoint.notes)


def test_a_half_written_answer_is_asked_again_and_the_others_are_not(
    catalog, models, place, own_cache, monkeypatch, tmp_path, release
):
    settings = {"mode": "sequence", "teacher_max_new_tokens": 4, "max_steps": 2}
    step = step_of(models / "small", models / "large", **settings)
    calm = run_step(catalog, step, place)
    (kept,) = own_cache.glob("teacher_answers/*/answers.jsonl")
    whole = kept.read_bytes()
    lines = whole.splitlines(keepends=True)
    kept.write_bytes(b"".join(lines[:5]) + lines[5][:-7])
    from mhe_compress import teacher_answers

    written = []
    original = teacher_answers.AnswerFile.add
    monkeypatch.setattr(
        teacher_answers.AnswerFile, "add", lambda self, key, answer: (written.append(key), original(self, key, answer))
    )
    again = run_step(catalog, step, tune_cases.place_at(tmp_path / "again", release))
    assert len(written) == len(lines) - 5
    assert kept.read_bytes() == whole
    for name, tensor in distill_cases.weights_of(calm.folder).items():
        assert torch.equal(tensor, distill_cases.weights_of(again.folder)[name]), name


# ---------------------------------------------------------------- what is told


def test_a_dry_run_tells_teacher_student_memory_and_cache_and_writes_nothing(catalog, models, place, own_cache):
    step = step_of(models / "large", keep_layers=0.5, top_k=32)
    result = preview_step(catalog, plan_step(catalog, step, place), place)
    told = "\n".join(result.notes)
    assert "4 steps over" in told
    assert "student: made from large, 2 language layers" in told
    assert "teacher: large, " in told
    size = 4 + 8 * 32 + 4 * 12
    assert f"{size} bytes a token" in told
    assert result.needed_bytes > 0
    assert not distill_cases.files_below(own_cache / "teacher_logits")
    assert not distill_cases.files_below(place.directory)
    run_step(catalog, step, place)
    after = preview_step(catalog, plan_step(catalog, replace(step, seed=1), place), place)
    assert any("are kept already" in note and "0.00 MiB" in note for note in after.notes)


def test_the_command_line_takes_a_teacher(models, tmp_path, release):
    arguments = ["tune", "--model", models / "small", "--recipe", "distill", "--task", "vqa-rad", "--name", "kd",
                 "--data-dir", release, "--dry-run"]  # fmt: skip
    done = mhe(*arguments, "--input", f"teacher={models / 'large'}", cwd=tmp_path)
    assert done.code == 0, done.err
    assert "teacher: large" in done.out
    wrong = mhe(*arguments, "--input", "master=x", "--input", "teacher", cwd=tmp_path)
    assert wrong.code == 2
    assert "no such role; it reads teacher" in wrong.err
    assert "'teacher': write ROLE=MODEL" in wrong.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep_layers": 1.5}, "neither a share between 0 and 1"),
        ({"keep_layers": 0}, "greater than 0"),
        ({"keep_layers": 0.5, "student": {}}, "two ways to a student"),
        ({"hidden_weight": 1.0}, "teacher_logits=online"),
        ({"hidden_weight": 1.0, "mode": "sequence"}, "mode=logits"),
        ({"temperature": 30.0}, "teacher_logits=online"),
        ({"alpha": 1.2}, "less than or equal to 1"),
        ({"preset": "neto2025-dk"}, "neto2025-kd"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(catalog, models, place, settings, message):
    with pytest.raises(DocumentError, match=message):
        plan_step(catalog, step_of(models / "small", **settings), place)


def test_the_papers_preset_is_half_of_the_layers_of_the_base_itself(catalog, models, place):
    step = Step("kd", "distill", tune_cases.model_at(models / "large"), {"preset": "neto2025-kd", "max_steps": 1},
                data=(TrainingChoice(task="vqa-rad"),))  # fmt: skip
    plan = plan_step(catalog, step, place)
    chosen = plan.options
    assert (chosen.temperature, chosen.alpha, chosen.keep_layers, chosen.divergence) == (2.0, 0.5, 0.5, "forward_kl")
    assert (chosen.learning_rate, chosen.batch_size, chosen.epochs, chosen.patience) == (1e-5, 8, 3.0, 3)
    done = run_step(catalog, step, place)
    assert any("learnt forward_kl from large at T = 2, alpha = 0.5" in note for note in done.checkpoint.notes)
