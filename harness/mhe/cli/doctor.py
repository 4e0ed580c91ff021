"""`mhe doctor`: what this machine has, what is wrong with it, and what to type to mend it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import click

from mhe.cli import machine, plugin_health
from mhe.cli.main import COMMANDS, catalog_of, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.catalog import Catalog
    from mhe.cli.machine import Check

PROBLEMS = 2
WORDS = {"ok": "ok", "note": "note", "problem": "PROBLEM"}


def examine(catalog: Catalog, *, offline: bool) -> list[Check]:
    """Every check, in the order in which it is shown. The slow ones run side by side, in processes of their own."""
    with ThreadPoolExecutor(max_workers=3) as pool:
        torch = pool.submit(machine.torch_checks)
        java = pool.submit(machine.java_check)
        hub = pool.submit(machine.hub_check, offline=offline)
        return [
            machine.python_check(),
            machine.memory_check(),
            *machine.disk_checks(),
            *torch.result(),
            java.result(),
            hub.result(),
            *machine.extra_checks(),
            *plugin_health.plugin_checks(catalog, COMMANDS),
        ]


@click.command("doctor", short_help="Check this machine, with a mend for each problem.")
@click.option("--offline", is_flag=True, help="Do not try to reach the model hub.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def doctor(ctx: click.Context, offline: bool, as_json: bool) -> int:
    """Check Python, torch and its device, memory, disk, Java, the hub, extras and plugins.

    Exit code 0 where nothing hinders, 2 where something does. An extra that is not installed and a hub that cannot
    be reached are notes, not problems: much works without them.
    """
    checks = examine(catalog_of(ctx), offline=offline)
    problems = [check for check in checks if check.state == "problem"]
    if as_json:
        content = {"schema_version": 1, "problems": len(problems), "checks": [check.to_json() for check in checks]}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        click.echo(_text(checks))
        say(_verdict(len(problems)))
    return PROBLEMS if problems else 0


def _verdict(count: int) -> str:
    if not count:
        return "Nothing hinders."
    return "1 problem; its mend stands below it." if count == 1 else f"{count} problems; the mend stands below each."


def _text(checks: Sequence[Check]) -> str:
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        first, *more = check.message.splitlines() or [""]
        lines.append(f"{WORDS[check.state]:<7}  {check.name:<{width}}  {first}".rstrip())
        indent = " " * (width + 11)
        lines += [f"{indent}{line}" for line in more]
        if check.mend:
            lines += [
                f"{indent}{'mend: ' if number == 0 else '      '}{line}"
                for number, line in enumerate(check.mend.splitlines())
            ]
    return "\n".join(lines)
