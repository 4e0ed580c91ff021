"""`mhe scan-layers`: which layers the loss can do without."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from mhe_compress.importance import Importance
    from mhe_compress.scan_results import LayerScan


@click.command("scan-layers", short_help="Measure how much the loss rises when each layer alone is pruned.")
@click.argument("model")
@click.option("--task", "tasks", required=True, multiple=True, help="Whose training split is looked at. Repeatable.")
@click.option(
    "--ratio", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.3, show_default=True,
    help="Share of a layer's heads or neurons that is masked.",
)  # fmt: skip
@click.option(
    "--importance", type=click.Choice(["magnitude", "activation", "taylor"]), default="taylor", show_default=True,
    help="How the weakest are told; see the recipe prune.",
)  # fmt: skip
@click.option(
    "--module", "modules", type=click.Choice(["language", "vision"]), multiple=True,
    help="Only these [default: language]. Repeatable.",
)  # fmt: skip
@click.option("--samples", type=click.IntRange(min=1), default=32, show_default=True, help="How many are drawn.")
@click.option("--limit", type=click.IntRange(min=1), help="Read only the first N training samples.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws the samples.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), default=Path("scan.json"), show_default=True,
    help="The document; the picture lies beside it as .svg.",
)  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu"]), default="auto", show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set on this machine.")
@click.option("--checkpoints-dir", type=click.Path(path_type=Path), help="Where `mhe tune` keeps checkpoints.")
@click.option("--offline", is_flag=True, help="Reach for no hub; data and models must be on this machine.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
def scan_layers_command(
    model: str,
    tasks: tuple[str, ...],
    ratio: float,
    importance: str,
    modules: tuple[str, ...],
    samples: int,
    limit: int | None,
    seed: int,
    out: Path,
    device: str,
    data_dir: Path | None,
    checkpoints_dir: Path | None,
    offline: bool,
    as_json: bool,
) -> int:
    """Measure how much the loss of MODEL rises when each of its layers alone is pruned.

    Writes a document and a picture. `mhe tune --recipe prune --set scan=FILE` takes more from layers that the loss can
    do without. Two passes over the drawn samples for each layer, and no split that is evaluated is looked at.
    """
    from mhe import open_catalog, open_job
    from mhe_compress.scan import scan_layers
    from mhe_compress.scan_picture import draw_scan

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    job = open_job(
        open_catalog(), model, tasks, limit=limit, seed=seed, data_dir=data_dir, checkpoints_dir=checkpoints_dir,
        offline=offline,
    )  # fmt: skip
    found = scan_layers(
        job,
        ratio=ratio,
        importance=cast("Importance", importance),
        samples=samples,
        modules=modules or ("language",),
        task=" + ".join(dict.fromkeys(tasks)),
        device=device,
        say=lambda text: click.echo(text, err=True),
    )
    # First what took so long: the place may turn out not to be writable.
    click.echo(json.dumps(found.model_dump(mode="json"), indent=2) if as_json else _text(found))
    _write(out, found.model_dump_json(indent=2) + "\n")
    _write(out.with_suffix(".svg"), draw_scan(found))
    click.echo(f"Scan: {out}, picture: {out.with_suffix('.svg')}", err=True)
    return 0


def _write(path: Path, text: str) -> None:
    """Whole or not at all. Raises `UserError` where nothing can be written."""
    from mhe import UserError

    draft = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}. Give another place with --out.") from None


def _text(scan: LayerScan) -> str:
    """The layers, the one that the loss can best do without first."""
    rows = sorted(scan.blocks, key=lambda block: block.rise)
    widest = max(len(block.key) for block in rows)
    lines = [f"{scan.model}: loss {scan.loss:.4f} on {scan.samples} samples of {scan.task}", ""]
    lines += [
        f"{block.key:<{widest}}  {block.kind:<7}  {block.units:>6} to {block.kept:<6}  {block.rise:+.4f}"
        for block in rows
    ]
    return "\n".join(lines)
