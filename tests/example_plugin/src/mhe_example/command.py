"""Command `mhe example-threshold`."""

from __future__ import annotations

from pathlib import Path

import click

from mhe_example.backend import read_threshold


@click.command("example-threshold")
@click.argument("folder", type=click.Path(path_type=Path))
def show_threshold(folder: Path) -> None:
    """Print the one weight of the model in FOLDER."""
    click.echo(read_threshold(folder))
