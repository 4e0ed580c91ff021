"""`mhe bench-model`: what a model costs on a task's samples, without scoring."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.batch_size import BatchSize, refuse_batch_size_in
from mhe.cli.completion import complete_backend, complete_model, complete_task
from mhe.cli.evaluate import default_runs_dir
from mhe.cli.main import catalog_of, say
from mhe.cli.progress import ProgressLine
from mhe.cli.settings import parse_settings
from mhe.cli.tables import table

if TYPE_CHECKING:
    from typing import Literal

    from mhe.documents.measurement import Measurement, Spread

QUANTITIES = (
    ("samples_per_second", "samples/s"),
    ("prompt_tokens_per_second", "prompt tokens/s"),
    ("generated_tokens_per_second", "generated tokens/s"),
    ("latency_p50", "latency p50, s"),
    ("latency_p95", "latency p95, s"),
    ("first_token_p50", "first token p50, s"),
    ("first_token_p95", "first token p95, s"),
    ("preprocess_seconds", "preprocess, s a round"),
    ("generate_seconds", "generate, s a round"),
    ("seconds", "wall, s a round"),
    ("energy_joules", "energy, J a round"),
)


@click.command("bench-model", short_help="Measure what a model costs, without scoring.")
@click.argument("model", shell_complete=complete_model)
@click.option("--task", required=True, shell_complete=complete_task, help="Whose samples are asked.")
@click.option("--backend", shell_complete=complete_backend, help="Run the model with this backend instead of its own.")
@click.option("--batch-size", type=BatchSize(), default="1", show_default=True, help="Samples in one batch, or auto.")
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds over all samples.")
@click.option("--limit", type=click.IntRange(min=1), default=16, show_default=True, help="Only the first N samples.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Make every answer exactly N tokens long.")
@click.option(
    "--random-weights", is_flag=True, help="Build the model at its true size from its configuration, weights drawn."
)
@click.option("--split", help="The split to ask; the task's own where left out.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set on this machine.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the record is written [default: below measurements in the folder of runs].",
)
@click.option("--runs-dir", type=click.Path(path_type=Path), default=None, help="The folder of runs [default: runs].")
@click.option(
    "--checkpoints-dir", type=click.Path(path_type=Path), default=None, help="Where `mhe tune` keeps checkpoints."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="generation.temperature=0.7, backend.dtype=bfloat16, backend.quantization=nf4, … Repeatable.",
)
@click.option("--offline", is_flag=True, help="Reach for no hub; data and models must be on this machine.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def bench_model(
    ctx: click.Context,
    model: str,
    task: str,
    backend: str | None,
    batch_size: int | Literal["auto"],
    repeat: int,
    limit: int,
    max_new_tokens: int | None,
    random_weights: bool,
    split: str | None,
    data_dir: Path | None,
    out: Path | None,
    runs_dir: Path | None,
    checkpoints_dir: Path | None,
    settings: tuple[str, ...],
    offline: bool,
    as_json: bool,
) -> int:
    """Measure what MODEL costs on samples of a task, without scoring.

    The model is loaded once and warmed up; then every round asks the same samples, and the median over the rounds
    is shown with the lowest and highest. Batch 1 is the protocol for latency: nothing is prepared ahead and no
    image kept. With --random-weights nothing but a configuration is needed, bundled for the registered models or in
    a folder: all answers have the limit's length, and a tokenizer that only counts stands in for one that is not
    there. What such a model writes is noise, and no other command takes it for answers.

    Exit code: 0, 3 where samples failed, and 2 for a mistake in the call.
    """
    from mhe.environment import portable_command
    from mhe.measuring import MeasureOptions, measure_model
    from mhe.model_names import resolve_model
    from mhe.run_folder import write_atomically
    from mhe.run_plan import RunOptions

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    catalog = catalog_of(ctx)
    chosen = parse_settings(settings, ("generation", "backend"))
    refuse_batch_size_in(chosen["backend"])
    if max_new_tokens is not None:
        chosen["generation"]["max_new_tokens"] = max_new_tokens
    runs = runs_dir or default_runs_dir()
    options = MeasureOptions(
        run=RunOptions(
            runs_dir=runs,
            split=split,
            limit=limit,
            data_dir=data_dir,
            offline=offline,
            generation=chosen["generation"],
            backend_options=chosen["backend"],
            command=portable_command(["mhe", *sys.argv[1:]]),
        ),
        batch_size=batch_size,
        rounds=repeat,
        random_weights=random_weights,
        exact_tokens=random_weights or max_new_tokens is not None,
    )
    spec = resolve_model(model, catalog, backend=backend, checkpoints_dir=checkpoints_dir)
    with ProgressLine(f"{spec.name} on {task}") as line:
        found = measure_model(catalog, spec, catalog.task(task), options, line.update)
    place = out or _place(runs, found)
    # First what took so long: the place may turn out not to be writable.
    click.echo(found.to_json().rstrip() if as_json else _text(found))
    write_atomically(place, found.to_json())
    say(f"Record: {place}")
    return 3 if found.failed_samples else 0


def _place(runs: Path, found: Measurement) -> Path:
    from mhe.run_folder import safe_name

    moment = found.started.replace(":", "").replace("+0000", "Z")
    task = found.task.partition("@")[0]
    return runs / "measurements" / f"{safe_name(found.model.name)}-{safe_name(task)}-{moment}.json"


def _text(found: Measurement) -> str:
    rows = []
    for name, label in QUANTITIES:
        spread: Spread | None = getattr(found.costs, name)
        cells = ["—"] * 3 if spread is None else [f"{v:.4g}" for v in (spread.median, spread.lowest, spread.highest)]
        rows.append([label, *cells])
    rounds = f"{found.rounds} round{'s' if found.rounds > 1 else ''}"
    title = f"{found.model.name} on {found.task}: {found.data.samples} samples, batch {_batch(found)}, {rounds}"
    return f"{title}\n\n{table(['', 'median', 'lowest', 'highest'], rows, right={1, 2, 3})}\n\n{_facts(found)}"


def _batch(found: Measurement) -> str:
    batch = found.batch
    return str(batch.asked) if batch.asked != "auto" else f"auto ({batch.smallest} to {batch.largest})"


def _facts(found: Measurement) -> str:
    from mhe.cli.run_tables import readable_bytes

    model, backend = found.model, found.backend
    parts = [f"device {backend.device}, {backend.precision}", f"loaded in {found.load_seconds:.2f} s"]
    if model.parameters is not None:
        parts.append(f"{model.parameters:,} parameters")
    if model.bits_per_weight is not None:
        parts.append(f"{model.bits_per_weight:g} bits a weight")
    for label, size in (("host", found.peak_host_bytes), ("device", found.peak_device_bytes)):
        if size is not None:
            parts.append(f"peak {label} memory {readable_bytes(size)}")
    lines = ["Model: " + ", ".join(parts)]
    if found.prompt_tokens is not None and found.generated_tokens is not None:
        images = f", {found.image_tokens:g} of them the image's" if found.image_tokens is not None else ""
        lines.append(
            f"Tokens of a sample, median: prompt {found.prompt_tokens.median:g}{images}; "
            f"answer {found.generated_tokens.median:g}"
        )
    if found.random_weights:
        processor = ", and a stand-in for its tokenizer" if backend.key_options.get("processor") == "stand-in" else ""
        lines.append(f"Random weights at true size{processor}: the cost is the model's, its answers are noise.")
    if found.failed_samples:
        lines.append(f"{found.failed_samples} samples failed and are not in these figures.")
    return "\n".join(lines)
