"""Training samples per second against a bare `Trainer`, and the memory of `qlora` against that of `full`.

Speed: `tiny-llava` is trained by what the recipe `full` runs (`mhe_hf.training.fitting.train`, with its saves, watches
and reports) and by transformers' own `Trainer` on rows that were read, rendered and tokenised beforehand: same rows in
the same order, batch, steps, rate and precision, all weights trained. In each round each side has a new process (how
fast one is depends on where its memory came to lie), and they take their steps in turn, one while the other waits, so
that what else the machine does falls on both alike. A step lasts from the end of the one before to its own end:
fetching its rows, reporting and logging are in it. Ours reads, renders and tokenises each row within its time. The
ratio is the median of the rounds' ratios; beside it stands that of the processor seconds, which other processes disturb
less, and which do not see a processor that waits.

Memory: a random LLaVA whose weights dominate is tuned on a CPU by `full` and by `qlora`, each in a process of its own.
Told is the most resident memory that the process ever had (VmHWM) less what it had when everything was imported and
before anything was loaded (VmRSS): loading, training, validating and saving are in it, libraries are not.

    PYTHONPATH=tests python tests/benchmarks/bench_tune.py [--rounds 5] [--steps 60] [--hidden 1024] [--layers 6]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import tune_cases
from mhe.catalog import open_catalog
from mhe.documents.pipeline import TrainingChoice
from mhe.pipelines import Step, StepPlan, plan_step, run_step
from mhe.protocols import RecipeJob
from mhe_hf import let_waiting_threads_sleep
from mhe_tiny import MODELS

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

REQUIRED = 0.95
MOST_MEMORY = 0.45
BATCH = 16
RATE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--hidden", type=int, default=1024, help="width of the model for memory")
    parser.add_argument("--layers", type=int, default=6, help="its layers of language")
    parser.add_argument("--memory-of", nargs=3, metavar=("RECIPE", "MODEL", "DATA"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.memory_of:
        recipe, model, data = asked.memory_of
        print(json.dumps(memory_of(recipe, Path(model), Path(data))))
        return 0
    # For both sides alike, and before torch is imported.
    let_waiting_threads_sleep()
    with tempfile.TemporaryDirectory() as place:
        result = {
            **measure_speed(Path(place), asked.rounds, asked.steps, asked.threads),
            **measure_memory(Path(place), asked.hidden, asked.layers),
        }
    print(json.dumps(result, indent=2))
    return 0 if result["ratio"] >= REQUIRED and result["memory_ratio"] <= MOST_MEMORY else 1


# ---------------------------------------------------------------- speed


def measure_speed(place: Path, rounds: int, steps: int, threads: int) -> dict[str, object]:
    release = tune_cases.write_release(place / "vqa_rad", images=160)
    found = []
    for number in range(rounds):
        folder = place / f"round-{number}"
        folder.mkdir()
        found.append(run_round(folder, release, steps, threads))
    samples = steps * BATCH
    ratios = {
        part: [each["bare"][part] / each["mhe"][part] for each in found] for part in ("seconds", "processor_seconds")
    }
    rates = {name: samples / statistics.median(each[name]["seconds"] for each in found) for name in ("bare", "mhe")}
    return {
        "samples": samples,
        "batch_size": BATCH,
        "rounds": rounds,
        "bare_samples_per_second": round(rates["bare"], 1),
        "mhe_samples_per_second": round(rates["mhe"], 1),
        "ratio": round(statistics.median(ratios["seconds"]), 4),
        "ratios": [round(ratio, 3) for ratio in ratios["seconds"]],
        "required": REQUIRED,
        "processor_ratio": round(statistics.median(ratios["processor_seconds"]), 4),
        "processor_ratios": [round(ratio, 3) for ratio in ratios["processor_seconds"]],
        "last_loss_bare": round(found[-1]["bare"]["loss"], 5),
        "last_loss_mhe": round(found[-1]["mhe"]["loss"], 5),
    }


def run_round(place: Path, release: Path, steps: int, threads: int) -> dict[str, dict[str, float]]:
    """One training by each side, step by step in turn: its seconds, processor seconds and last loss."""
    # Each starts with its own imports, and takes the environment that was set.
    context = multiprocessing.get_context("spawn")
    lines: dict[str, Connection] = {}
    for name in ("bare", "mhe"):
        lines[name], theirs = context.Pipe()
        context.Process(target=run_side, args=(name, place, release, steps, threads, theirs), daemon=True).start()
        theirs.close()
    for line in lines.values():
        assert line.recv() == "begun"
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in lines}
    losses: dict[str, float] = {}
    for step in range(steps):
        for name in sorted(lines, reverse=bool(step % 2)):
            lines[name].send("go")
            seconds[name].append(lines[name].recv())
            if step == steps - 1:
                # It validates and saves before the other goes on.
                losses[name] = lines[name].recv()
    return {
        name: {
            "seconds": sum(wall for wall, _ in seconds[name]),
            "processor_seconds": sum(processor for _, processor in seconds[name]),
            "loss": losses[name],
        }
        for name in lines
    }


def run_side(name: str, place: Path, release: Path, steps: int, threads: int, line: Connection) -> None:
    """One side's training, in a process of its own, after two steps for warmth."""
    import torch

    torch.set_num_threads(threads)
    catalog = open_catalog()
    plans = {"warm": plan_of(catalog, place, release, 2), "timed": plan_of(catalog, place, release, steps)}
    prepared = prepare_rows(plans["timed"]) if name == "bare" else []
    for which, plan in plans.items():
        folder = place / f"{name}-{which}"
        folder.mkdir()
        clock = clock_of(line if which == "timed" else None, steps)
        loss = train_ours(plan, catalog, folder, clock) if name == "mhe" else train_bare(plan, prepared, folder, clock)
    line.send(loss)


def plan_of(catalog, place: Path, release: Path, steps: int) -> StepPlan:
    settings = {
        "learning_rate": RATE, "batch_size": BATCH, "max_steps": steps, "scheduler": "constant", "warmup": 0,
        "evaluate_every": steps, "save_every": steps, "keep": "last", "device": "cpu",
    }  # fmt: skip
    step = Step(
        "bench", "full", tune_cases.model_at(MODELS / "tiny-llava"), settings=settings,
        data=(TrainingChoice(task="vqa-rad"),),
    )  # fmt: skip
    return plan_step(catalog, step, tune_cases.place_at(place / "checkpoints", release))


def job_of(plan: StepPlan, catalog, folder: Path) -> RecipeJob:
    assert plan.data is not None
    return RecipeJob(
        base=plan.base, inputs={}, train=plan.data.train, validation=plan.data.validation, folder=folder, seed=0,
        report=lambda _phase, _numbers: None, tasks=plan.data.tasks, architectures=catalog.architectures, offline=True,
    )  # fmt: skip


def clock_of(line: Connection | None, steps: int):
    """A callback that tells how long each step took, in seconds and processor seconds, and waits for its turn."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        began = (0.0, 0.0)

        def await_turn(self):
            if line is not None:
                assert line.recv() == "go"
                self.began = time.perf_counter(), time.process_time()

        def on_train_begin(self, args, state, control, **extra):
            if line is not None:
                line.send("begun")
            self.await_turn()

        def on_step_end(self, args, state, control, **extra):
            ended = time.perf_counter(), time.process_time()
            if line is not None:
                line.send((ended[0] - self.began[0], ended[1] - self.began[1]))
            if state.global_step < steps:
                self.await_turn()

    return Clock()


def train_ours(plan: StepPlan, catalog, folder: Path, clock) -> float:
    from mhe_hf.training.fitting import load_base, plan_schedule, train
    from mhe_hf.training.modules import set_trainable

    job, options = job_of(plan, catalog, folder), plan.options
    model, processor, _ = load_base(options, job)
    set_trainable(model, dict.fromkeys(("vision", "fusion", "language"), "full"), job.architectures)
    trainer, _ = train(model, processor, options, job, plan_schedule(options, job), [clock])
    return last_loss(trainer)


def prepare_rows(plan: StepPlan) -> list[dict[str, object]]:
    from mhe_hf import load_processor
    from mhe_hf.training.batches import EXAMPLE_INDEX, RowCollator

    assert plan.data is not None
    collate = RowCollator(load_processor(plan.base.spec))
    rows = [collate([(0, (example,))]) for example in plan.data.train]
    return [{name: value[0] for name, value in row.items() if name != EXAMPLE_INDEX} for row in rows]


def train_bare(plan: StepPlan, rows: list[dict[str, object]], folder: Path, clock) -> float:
    """What a careful user would write: rows in memory, padded to the longest of a batch."""
    import torch
    from torch.nn.utils.rnn import pad_sequence
    from transformers import LlavaForConditionalGeneration, PrinterCallback, Trainer, TrainingArguments, set_seed

    fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}

    def collate(batch):
        joined = {
            name: pad_sequence([row[name] for row in batch], batch_first=True, padding_value=fill)
            for name, fill in fills.items()
        }
        return {**joined, "pixel_values": torch.stack([row["pixel_values"] for row in batch])}

    set_seed(0)
    model = LlavaForConditionalGeneration.from_pretrained(plan.base.spec.location, dtype=torch.float32)
    steps = int(plan.options.max_steps)  # type: ignore[attr-defined]
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, learning_rate=RATE, per_device_train_batch_size=BATCH,
        lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, use_cpu=True, dataloader_pin_memory=False,
        save_strategy="no", logging_steps=max(1, steps // 100), seed=0, data_seed=0, remove_unused_columns=False,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, collate, rows, callbacks=[clock])  # type: ignore[arg-type]
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return last_loss(trainer)


def last_loss(trainer) -> float:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][-1]


# ---------------------------------------------------------------- memory


def measure_memory(place: Path, hidden: int, layers: int) -> dict[str, object]:
    from hf_models import build_llava

    model = build_llava(place / "wide", hidden=hidden, layers=layers)
    release = tune_cases.write_release(place / "small" / "vqa_rad")
    found: dict[str, dict[str, int]] = {}
    for recipe in ("full", "qlora"):
        words = [sys.executable, __file__, "--memory-of", recipe, str(model), str(release)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr)
        found[recipe] = json.loads(done.stdout.splitlines()[-1])
    mib = {recipe: (numbers["peak"] - numbers["imported"]) / 2**20 for recipe, numbers in found.items()}
    return {
        "parameters": found["full"]["parameters"],
        "import_mib": {recipe: round(numbers["imported"] / 2**20) for recipe, numbers in found.items()},
        "full_mib": round(mib["full"]),
        "qlora_mib": round(mib["qlora"]),
        "memory_ratio": round(mib["qlora"] / mib["full"], 4),
        "memory_allowed": MOST_MEMORY,
    }


def memory_of(recipe: str, model: Path, release: Path) -> dict[str, int]:
    """Bytes of this process: with everything imported, and at most until the step was done."""
    import bitsandbytes  # noqa: F401 - what either recipe may import is imported before the first look
    import peft  # noqa: F401
    from transformers import LlavaForConditionalGeneration, Trainer  # noqa: F401

    import mhe_hf.training.adapter_training
    import mhe_hf.training.answering
    import mhe_hf.training.batches
    import mhe_hf.training.watching  # noqa: F401

    catalog = open_catalog()
    settings = {"batch_size": 1, "max_steps": 3, "evaluate_every": 3, "save_every": 3, "keep": "last", "device": "cpu"}
    settings |= {"quantized_modules": ["language"]} if recipe == "qlora" else {}
    step = replace(tune_cases.step_on(model), recipe=recipe, settings=settings)
    imported = resident("VmRSS")
    with tempfile.TemporaryDirectory() as place:
        done = run_step(catalog, step, tune_cases.place_at(Path(place), release))
    return {"imported": imported, "peak": resident("VmHWM"), "parameters": done.checkpoint.parameters}


def resident(name: str) -> int:
    """Bytes by a name in the process's status, which only Linux has."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    sys.exit(main())
