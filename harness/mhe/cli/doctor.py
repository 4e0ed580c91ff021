"""`mhe doctor`: is this machine fit, and if not, what mends it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from mhe.cli.main import catalog_of

if TYPE_CHECKING:
    from mhe.machine_checks import Finding

USERS_MISTAKE = 2
MARKS = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}


@click.command("doctor", short_help="Check this machine, with a mend for each problem.")
@click.option("--offline", is_flag=True, help="Do not try to reach the hub.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def doctor(ctx: click.Context, offline: bool, as_json: bool) -> int:
    """Check Python, torch, device, memory, Java, hub, extras and plugins. Leaves with 2 where something is broken."""
    from mhe.machine_checks import check_machine

    findings = check_machine(catalog_of(ctx), offline=offline)
    problems = [finding for finding in findings if finding.state == "problem"]
    if as_json:
        content = {"schema_version": 1, "problems": len(problems), "findings": [_plain(f) for f in findings]}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        for finding in findings:
            click.echo(f"{MARKS[finding.state]}  {finding.name}: {finding.message}")
            if finding.mend:
                click.echo(f"         → {finding.mend}")
        click.echo("\nNothing is in the way." if not problems else f"\n{len(problems)} to mend.")
    return USERS_MISTAKE if problems else 0


def _plain(finding: Finding) -> dict[str, str]:
    return {"name": finding.name, "state": finding.state, "message": finding.message, "mend": finding.mend}
