"""Train a small model and write its folder, scores included: `python -m mhe_tiny.train tiny-llava --out FOLDER`.

With the same versions, processor and number of threads, equal seeds give equal bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mhe_hf import let_waiting_threads_sleep, save_published
from mhe_tiny.build import BUILDERS

VISION_STEPS = 500
STEPS = 1800
STREAMS_A_SEED = 1024
"""Each training seed has its own streams of images; the first is the tokenizer's and the published train split."""


def train_folder(name: str, folder: Path, *, seed: int, vision_steps: int, steps: int, threads: int) -> None:
    """Build, train and save a small model."""
    let_waiting_threads_sleep()
    import torch

    from mhe_tiny.build import build
    from mhe_tiny.lessons import stream_lessons
    from mhe_tiny.training import Course, Plan, train

    torch.set_num_threads(threads)
    model, processor = build(name, seed)
    began = time.monotonic()

    def report(stage: str, step: int, total: int, loss: float) -> None:
        if step % 50 == 0 or step == total - 1:
            seconds = time.monotonic() - began
            sys.stderr.write(f"{stage} {step}/{total} loss {loss:.4f} {seconds:.0f}s\n")

    plan = Plan(vision_steps=vision_steps, steps=steps)
    train(Course(model, processor, stream_lessons(1 + seed * STREAMS_A_SEED), plan, report))
    save_published(model, processor, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m mhe_tiny.train", description=__doc__)
    parser.add_argument("name", choices=sorted(BUILDERS))
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vision-steps", type=int, default=VISION_STEPS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    command = f"python -m mhe_tiny.train {chosen.name} --seed {chosen.seed} --out FOLDER"
    if (chosen.vision_steps, chosen.steps) != (VISION_STEPS, STEPS):
        command += f" --vision-steps {chosen.vision_steps} --steps {chosen.steps}"
    train_folder(
        chosen.name,
        chosen.out,
        seed=chosen.seed,
        vision_steps=chosen.vision_steps,
        steps=chosen.steps,
        threads=chosen.threads,
    )
    from mhe_tiny.report import write_readme

    write_readme(chosen.out, command)


if __name__ == "__main__":
    main()
