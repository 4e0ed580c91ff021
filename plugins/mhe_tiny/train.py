"""Train small models and write their folders, scores included: `python -m mhe_tiny.train tiny-llava --out FOLDER`.

Without `--out` a model is written into the package; without a name, every model that the package lacks is trained,
one after the other. With the same versions, processor and number of threads, equal seeds give equal bytes.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from mhe import UserError
from mhe_hf import let_waiting_threads_sleep, save_published
from mhe_tiny import MODELS
from mhe_tiny.build import BUILDERS, find_builder

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from mhe_tiny.plan import Plan

STREAMS_A_SEED = 1024
"""Each training seed has its own streams of images; the first is the tokenizer's and the published train split."""


def train_folder(name: str, folder: Path, *, seed: int, plan: Plan, threads: int) -> None:
    """Build, train and save a small model."""
    let_waiting_threads_sleep()
    import torch

    from mhe_tiny.build import build
    from mhe_tiny.halving import halve_weights
    from mhe_tiny.lessons import stream_lessons
    from mhe_tiny.training import Course, train

    torch.set_num_threads(threads)
    builder = find_builder(name)
    model, processor = build(name, seed)
    learner = builder.architecture.build_learner(model, processor)
    began = time.monotonic()

    def report(stage: str, step: int, total: int, loss: float) -> None:
        if step % 50 == 0 or step == total - 1:
            seconds = time.monotonic() - began
            sys.stderr.write(f"{name} {stage} {step}/{total} loss {loss:.4f} {seconds:.0f}s\n")

    lessons = stream_lessons(builder.curriculum, 1 + seed * STREAMS_A_SEED)
    train(Course(learner, model, lessons, plan, report))
    save_published(model, cast("ProcessorMixin", processor), folder)
    if builder.is_halved:
        halve_weights(folder)


def missing_names() -> list[str]:
    """Return the small models that have no weights in the package."""
    return [name for name in sorted(BUILDERS) if not (MODELS / name / "model.safetensors").is_file()]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m mhe_tiny.train", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(sorted(BUILDERS))}")
    parser.add_argument("--out", type=Path, help="folder to write, for one model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    names: list[str] = chosen.names or missing_names()
    if chosen.out is not None and len(names) != 1:
        parser.error(f"--out is the folder of one model, and {len(names)} are to be trained; name one")
    try:
        builders = {name: find_builder(name) for name in names}
    except UserError as error:
        parser.error(str(error))
    from mhe_tiny.report import write_readme

    for name, builder in builders.items():
        lengths = {"vision_steps": chosen.vision_steps, "steps": chosen.steps}
        plan = replace(builder.plan, **{key: value for key, value in lengths.items() if value is not None})
        command = f"python -m mhe_tiny.train {name} --seed {chosen.seed} --out FOLDER"
        command += "".join(f" --{key.replace('_', '-')} {value}" for key, value in lengths.items() if value is not None)
        folder = chosen.out or MODELS / name
        # The weights come last: interrupted, nothing lies in the folder that looks like a model.
        draft = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        train_folder(name, draft, seed=chosen.seed, plan=plan, threads=chosen.threads)
        write_readme(name, draft, command)
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(draft.iterdir(), key=lambda path: path.suffix == ".safetensors"):
            path.replace(folder / path.name)
        draft.rmdir()


if __name__ == "__main__":
    main()
