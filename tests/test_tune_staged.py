"""Recipe `staged`: what a stage does not train keeps every bit, one cycle over all stages, kill -9 in any of them."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import tune_cases
from mhe.errors import DocumentError, UserError
from mhe.pipelines import plan_step, preview_step, run_step

torch = pytest.importorskip("torch")

import hf_family_models  # noqa: E402
import hf_models  # noqa: E402
from mhe_hf import architecture_of, empty_model, load_configuration  # noqa: E402
from mhe_tune.staged import StagedOptions  # noqa: E402
from mhe_tune.stages import blocks_of, parameters_of, plan_stages, stage_ends  # noqa: E402

STAGES = [
    {"trains": ["fusion"], "share": 2},
    {"trains": ["fusion", "language"], "share": 2},
    {"trains": ["fusion", "language", "vision:1/2"], "share": 2},
    {"trains": ["fusion", "language", "vision"], "share": 2},
]
FUSION = r"decoder\.transformer\.h\.\d\.(crossattention|ln_cross_attn)\."
EXPECTED = [
    FUSION,
    r"decoder\.",
    r"decoder\.|encoder\.layers\.1\.|encoder\.(layernorm|pooler)\.",
    r"decoder\.|encoder\.",
]
"""What the stages train, told by the names in ViT and GPT-2 (each pattern from the name's beginning)."""
KINDS = {
    "llava": hf_models.build_llava,
    "llava_next": hf_family_models.build_llava_next,
    "qwen2_vl": hf_family_models.build_qwen2_vl,
    "mllama": hf_family_models.build_mllama,
    "blip": hf_family_models.build_blip,
    "blip-vqa": hf_family_models.build_blip_vqa,
    "blip-2": hf_family_models.build_blip2,
}


pytestmark = pytest.mark.usefixtures("two_threads")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return tune_cases.write_release(tmp_path_factory.mktemp("release") / "vqa_rad")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return hf_family_models.build_visiongpt2(tmp_path_factory.mktemp("models"))


@pytest.fixture
def place(tmp_path, release):
    return tune_cases.place_at(tmp_path / "checkpoints", release)


def staged(base, name="staged", **settings):
    own = {"stages": STAGES, "weight_decay": 0.1, "save_every": 1, **settings}
    return replace(tune_cases.step_on(base, name, **own), recipe="staged")


@pytest.fixture(scope="module")
def tuned(catalog, base, release, tmp_path_factory):
    """A finished training with the parameters after each step, shared by the tests that only look at it."""
    from mhe_tune.stage_keeper import StageKeeper

    seen: list[dict[str, torch.Tensor]] = []
    begin, end = StageKeeper.on_step_begin, StageKeeper.on_step_end

    def values(model):
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def on_step_begin(self, args, state, control, **extra):
        if not seen:
            seen.append(values(extra["model"]))
        begin(self, args, state, control, **extra)

    def on_step_end(self, args, state, control, **extra):
        end(self, args, state, control, **extra)
        seen.append(values(extra["model"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageKeeper, "on_step_begin", on_step_begin)
        patch.setattr(StageKeeper, "on_step_end", on_step_end)
        where = tune_cases.place_at(tmp_path_factory.mktemp("tuned"), release)
        return run_step(catalog, staged(base), where), seen


def model_of(folder):
    spec = tune_cases.model_at(folder)
    return empty_model(load_configuration(spec, offline=True))


# ---------------------------------------------------------------- what moves


def test_only_what_a_stage_trains_moves_and_all_of_that_does(tuned):
    _, seen = tuned
    assert len(seen) == 9, "the beginning and eight steps"
    moved = [{name for name in seen[0] if not torch.equal(seen[step][name], seen[step + 1][name])} for step in range(8)]
    for number, pattern in enumerate(EXPECTED):
        allowed = {name for name in seen[0] if re.match(pattern, name)}
        here = moved[2 * number] | moved[2 * number + 1]
        assert here <= allowed, sorted(here - allowed)[:5]
        # The pooler's output goes nowhere, and keys' biases have no gradient but for rounding.
        must = {name for name in allowed if "pooler" not in name and not name.endswith(("k_proj.bias", "c_attn.bias"))}
        assert must <= here, sorted(must - here)[:5]


def test_weight_decay_alone_would_have_moved_the_frozen_weights():
    """What the test above would miss: an optimizer that decays what has a gradient of zero."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1)
    optimizer.step()
    assert torch.equal(weight, torch.ones(2)), "no gradient: not moved"
    weight.grad = torch.zeros(2)
    optimizer.step()
    assert not torch.equal(weight, torch.ones(2)), "a gradient of zero: decayed"


def test_the_checkpoint_tells_stages_shares_and_perplexity(tuned):
    made = tuned[0].checkpoint
    assert made.parameters == made.trainable_parameters == sum(p.numel() for p in tuned[1][0].values())
    stages = [note for note in made.notes if note.startswith("stage")]
    assert [note.split(",")[0] for note in stages] == [f"stage {n}" for n in (1, 2, 3, 4)]
    assert "steps 3 to 4: fusion, language (" in stages[1]
    losses = [entry["eval_loss"] for entry in made.history if "eval_loss" in entry]
    assert made.notes[-1] == f"lowest validation perplexity {math.exp(min(losses)):.4g}"
    best = min((entry["eval_loss"], entry["step"]) for entry in made.history if "eval_loss" in entry)
    told = f"weights of step {best[1]:.0f} of 8, with the lowest validation loss"
    assert any(told in note for note in made.notes)
    assert made.recipe_options["stages"][0] == {"trains": ["fusion"], "share": 2.0}


def test_parameters_that_no_stage_trains_come_back_bit_for_bit(catalog, base, place):
    from safetensors.torch import load_file

    stages = [{"trains": ["fusion"]}, {"trains": ["language:1"]}]
    done = run_step(catalog, staged(base, stages=stages, max_steps=2, keep="last", scheduler="constant"), place)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, done.folder / "model"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    allowed = {name for name in before if re.match(rf"{FUSION}|decoder\.transformer\.(h\.1|ln_f)\.", name)}
    assert moved <= allowed
    assert any(re.match(FUSION, name) for name in moved)
    assert any(name.startswith("decoder.transformer.h.1.mlp") for name in moved)
    share = {share.name: share for share in done.checkpoint.modules}
    assert share["vision"].trainable == 0
    assert 0 < share["language"].trainable < share["language"].total


def test_accumulated_and_recomputed_passes_hold_still_too(tuned, catalog, base, place):
    from safetensors.torch import load_file

    only = [{"trains": ["fusion"]}, {"trains": ["fusion", "language"]}]
    step = staged(
        base, stages=only, batch_size=2, max_steps=2, gradient_accumulation=2, gradient_checkpointing=True, keep="last"
    )
    done = run_step(catalog, step, place)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, done.folder / "model"))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == {"decoder"}
    first, undivided = (
        next(entry["loss"] for entry in made.checkpoint.history if "loss" in entry) for made in (done, tuned[0])
    )
    assert first == pytest.approx(undivided, rel=0.1), "equal but for dropout"


@pytest.mark.parametrize("family", ["visiongpt2", "blip-vqa", "llava"])
def test_accumulated_passes_weigh_as_one(family, catalog, base, release, tmp_path):
    """transformers hands some models the count of tokens that others never read."""
    from transformers import TrainingArguments

    from mhe_hf import HfOptions, load_model
    from mhe_hf.training.batches import RowCollator
    from mhe_hf.training.watching import WatchedTrainer

    folder = base if family == "visiongpt2" else KINDS[family](tmp_path / family)
    examples = plan_step(catalog, staged(base), tune_cases.place_at(tmp_path / "c", release)).data.train
    # Answers of unequal length, so that a mean of means is another number.
    examples = [replace(e, answer=e.answer * (5 if n < 3 else 1)) for n, e in enumerate(examples[:4])]
    model, processor = load_model(tune_cases.model_at(folder), HfOptions(device="cpu"), offline=True)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "t"), use_cpu=True, report_to="none", label_names=["labels"]
    )
    trainer = WatchedTrainer(examples, model=model, args=arguments)
    collate = RowCollator(processor)

    def loss(first, last, of=None):
        batch = collate([(n, (examples[n],)) for n in range(first, last)])
        with torch.no_grad():
            return float(trainer.compute_loss(model, batch, num_items_in_batch=of))

    whole = collate([(n, (e,)) for n, e in enumerate(examples)])
    count = trainer._get_num_items_in_batch([whole], torch.device("cpu"))
    alone = loss(0, 4)
    assert loss(0, 4, count) == pytest.approx(alone, rel=1e-5)
    assert loss(0, 3, count) + loss(3, 4, count) == pytest.approx(alone, rel=1e-5)
    assert abs((loss(0, 3) + loss(3, 4)) / 2 - alone) > 1e-3 * alone, "a mean of means would have passed"


# ---------------------------------------------------------------- the cycle


def one_cycle(rate, steps, warmup):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=rate)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps, pct_start=warmup)
    rates = []
    for _ in range(steps):
        rates.append(cycle.get_last_lr()[0])
        optimizer.step()
        cycle.step()
    return rates


def test_the_rate_follows_torchs_one_cycle_over_all_stages(tuned):
    rates = [entry["learning_rate"] for entry in tuned[0].checkpoint.history if "learning_rate" in entry]
    assert rates == pytest.approx(one_cycle(3e-3, 8, 0.3), rel=1e-6)
    assert max(rates) > 10 * rates[0]
    assert rates[-1] < rates[0]


def test_a_rise_of_exactly_one_step(base, tmp_path):
    """A division by zero in torch itself."""
    from transformers import TrainingArguments

    from mhe_hf.training.watching import WatchedTrainer

    with pytest.raises(ZeroDivisionError):
        one_cycle(1e-3, 4, 0.25)
    arguments = TrainingArguments(output_dir=str(tmp_path), learning_rate=1e-3, use_cpu=True, report_to="none")
    trainer = WatchedTrainer([], 0.25, model=torch.nn.Linear(2, 2), args=arguments)
    trainer.create_optimizer_and_scheduler(4)
    rates = []
    for _ in range(4):
        rates.append(trainer.lr_scheduler.get_last_lr()[0])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    assert rates == pytest.approx(one_cycle(1e-3, 4, 0.25 + 1e-7), rel=1e-5)


# ---------------------------------------------------------------- kill -9


@pytest.mark.parametrize("when", [1, 5])
def test_killed_in_any_stage_it_ends_in_the_same_bytes(tuned, catalog, base, release, tmp_path, when):
    root = tmp_path / "checkpoints"
    script = (
        "import sys, torch; torch.set_num_threads(2); sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; import test_tune_staged as t, tune_cases\n"
        "from mhe.catalog import open_catalog; from mhe.pipelines import run_step\n"
        "run_step(open_catalog(), t.staged(Path(sys.argv[2])), "
        "tune_cases.place_at(Path(sys.argv[3]), Path(sys.argv[4])))\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(base), str(root), str(release)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    mark = f".work/*/job/checkpoint-{when}/mhe_saved.json"
    while not list(root.glob(mark)) and worker.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert worker.returncode == -signal.SIGKILL, "it was killed while it worked"
    assert not (root / "staged" / "0").exists()
    said = []
    done = run_step(catalog, staged(base), tune_cases.place_at(root, release, say=said.append))
    assert any("continuing" in line for line in said)
    ours, theirs = ((made.folder / "model" / "model.safetensors").read_bytes() for made in (done, tuned[0]))
    assert ours == theirs


# ---------------------------------------------------------------- every family


@pytest.mark.parametrize("family", [family for family in KINDS if family != "blip"])
def test_the_default_stages_fit_every_family_with_a_fusion(family, tmp_path):
    model = model_of(KINDS[family](tmp_path / family))
    architecture = architecture_of(model.config.model_type)
    plan = plan_stages(model, StagedOptions().stages, 100, {})
    names = {name for name, _ in model.named_parameters()}
    assert plan.trained[0] == parameters_of(model, "fusion", architecture)
    assert plan.trained[0] < plan.trained[1] < plan.trained[2] <= plan.trained[3] < plan.trained[4] == names
    blocks = blocks_of(model, "vision", architecture)
    assert len(blocks) == {"mllama": 3}.get(family, 2)
    # The first third is the last block: nothing of the others, no embedding.
    added = plan.trained[2] - plan.trained[1]
    assert any(name.startswith(f"{blocks[-1]}.") for name in added)
    assert not [name for name in added for block in blocks[:-1] if name.startswith(f"{block}.")]
    assert not [name for name in added if "embed" in name]
    assert plan.shares.trainable == plan.shares.parameters == sum(p.numel() for p in model.parameters())
    assert plan.ends == (20, 40, 60, 80, 100)


def test_a_model_without_fusion_is_told_so(tmp_path):
    model = model_of(KINDS["blip"](tmp_path / "blip"))
    with pytest.raises(UserError, match="this blip model has no fusion module"):
        plan_stages(model, StagedOptions().stages, 100, {})


def test_steps_are_shared_out_in_order():
    assert stage_ends([1, 1, 2], 8) == (2, 4, 8)
    assert stage_ends([1, 1, 1], 10) == (3, 7, 10)
    with pytest.raises(UserError, match="2 steps are too few for 3 stages"):
        stage_ends([1, 1, 1], 2)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"trains": ["visoin"]}], "'visoin' names no part of a model"),
        ([{"trains": ["vision:3/2"]}], "names no part of a model"),
        ([{"trains": ["vision:0"]}], "names no part of a model"),
        ([{"trains": ["vision", "vision:1"]}], "names one twice"),
        ([{"trains": ["fusion"], "share": 0}], "stages.0.share"),
        ([], "stages"),
        ([{"train": ["fusion"]}], "stages.0.train: no such key"),
    ],
)
def test_wrong_stages_are_told_before_anything_is_read(catalog, base, place, stages, message):
    step = replace(staged(base), settings={"stages": stages})
    with pytest.raises(DocumentError, match=re.escape(message)):
        plan_step(catalog, step, place)


@pytest.mark.parametrize(
    ("part", "message"),
    [("vision:9", "has 2 blocks. Give at most vision:2"), ("fusion:1", "has 0 blocks. Give fusion for all of it")],
)
def test_more_blocks_than_there_are(catalog, place, tmp_path, part, message):
    base = hf_models.build_llava(tmp_path / "llava")
    step = replace(staged(base), settings={"stages": [{"trains": [part]}], "max_steps": 4})
    with pytest.raises(UserError, match=re.escape(message)):
        preview_step(catalog, plan_step(catalog, step, place), place)


def test_a_dry_run_tells_the_stages_and_writes_nothing(catalog, base, place):
    found = preview_step(catalog, plan_step(catalog, staged(base), place), place)
    assert [note for note in found.notes if note.startswith("stage 3, steps 5 to 6: fusion, language, vision:1/2 (")]
    assert not place.directory.exists()


# ---------------------------------------------------------------- presets


def test_a_preset_stands_below_what_is_set(catalog, base, place):
    step = replace(
        staged(base), settings={"preset": "visiongpt2-staged", "dtype": "fp32", "batch_size": 4, "max_steps": 5}
    )
    options = plan_step(catalog, step, place).options
    assert (options.learning_rate, options.epochs, options.scheduler, options.warmup) == (1e-4, 5, "one_cycle", 0.3)
    assert (options.dtype, options.batch_size) == ("fp32", 4)
    assert [stage.trains for stage in options.stages][2] == ("fusion", "language", "vision:1/3")
    done = run_step(catalog, step, place)
    assert done.checkpoint.recipe_options["preset"] == "visiongpt2-staged"
    assert done.checkpoint.recipe_options["learning_rate"] == 1e-4
    # The name is a name: the same values given one by one are the same step.
    values = {key: value for key, value in done.checkpoint.recipe_options.items() if key != "preset"}
    assert plan_step(catalog, replace(step, settings=values), place).digest == done.checkpoint.step_digest


def test_an_unknown_preset_is_suggested_with_the_other_mistakes(catalog, base, place):
    step = replace(staged(base), settings={"preset": "visiongpt-staged", "epochs": 0})
    with pytest.raises(DocumentError, match="Did you mean visiongpt2-staged") as raised:
        plan_step(catalog, step, place)
    assert len(raised.value.problems) == 2
    with pytest.raises(DocumentError, match="Presets: none"):
        plan_step(catalog, replace(step, recipe="full", settings={"preset": "x"}), place)


def test_show_lists_presets_with_values_and_source(capsys):
    from mhe.cli.main import main

    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as left:
            main(["show", "recipes", "staged", *more])
        assert left.value.code == 0
        out = capsys.readouterr().out
        if more:
            preset = json.loads(out)["recipe"]["presets"][0]
            assert preset["values"]["stages"][1] == {"trains": ["fusion", "language"]}
            assert "section III" in preset["source"]
        else:
            assert "preset=visiongpt2-staged: LLaVA-1.6 with LoRA" in out
            assert '  scheduler="one_cycle"' in out
            assert '[{"trains": ["fusion"]}' in out
