"""`mhe shades`: the smallest further command."""

from __future__ import annotations

import click


@click.command("shades", short_help="Print the shades of the task.")
@click.option("--split", default="test", show_default=True, help="The split.")
def shades(split):
    """Print the shades of the task, one a line."""
    from mhe import read_samples

    for sample in read_samples("shades", split):
        click.echo(f"{sample.id}\t{sample.references[0]}")
