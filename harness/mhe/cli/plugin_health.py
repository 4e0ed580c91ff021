"""What `mhe doctor` asks of plugins and of what they register."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mhe.cli.machine import Check
from mhe.errors import MheError

if TYPE_CHECKING:
    from collections.abc import Collection

    from mhe.catalog import Catalog


def plugin_checks(catalog: Catalog, commands: Collection[str]) -> list[Check]:
    """Plugins that failed and why, tasks that cannot be read, models whose folder is not there.

    `commands` are mhe's own: a plugin's command of the same name is never reached.
    """
    catalog.check_all()
    checks = []
    for plugin in catalog.plugins:
        name = f"plugin {plugin.name}"
        if plugin.is_working:
            checks.append(Check(name, "ok", f"{plugin.distribution} {plugin.version}".strip()))
        for problem in plugin.problems:
            mend = problem.hint or f"Mend it, or: pip uninstall {problem.distribution}"
            checks.append(Check(name, "problem", f"{problem.distribution}: {problem.message}", mend))
    for name in sorted(set(catalog.commands) & set(commands)):
        owner = catalog.owner_of("command", name)
        message = f"the command {name!r} of plugin {owner.name if owner else '?'} is hidden by mhe's own."
        checks.append(Check(f"command {name}", "problem", message, "Rename it in the plugin."))
    return [*checks, *_task_checks(catalog), *_model_checks(catalog)]


def _task_checks(catalog: Catalog) -> list[Check]:
    checks = []
    for name in sorted(catalog.task_folders):
        try:
            task = catalog.task(name)
            missing = [metric for metric in task.metrics if metric not in catalog.metrics]
            if task.profile not in catalog.profiles:
                missing.append(task.profile)
            if task.reader.name not in catalog.readers:
                missing.append(task.reader.name)
        except MheError as error:
            checks.append(Check(f"task {name}", "problem", str(error), "Correct the file."))
            continue
        if missing:
            message = f"names what no plugin registers: {', '.join(missing)}"
            checks.append(Check(f"task {name}", "problem", message, "Install the plugin that has it."))
    return checks


def _model_checks(catalog: Catalog) -> list[Check]:
    from mhe.model_names import resolve_location

    checks = []
    for name, spec in sorted(catalog.models.items()):
        try:
            location = resolve_location(spec.location)
        except MheError as error:
            checks.append(Check(f"model {name}", "problem", str(error), "Install its plugin again."))
            continue
        if Path(location).is_absolute() and not Path(location).exists():
            checks.append(Check(f"model {name}", "problem", f"{location} is not there.", "Install its plugin again."))
        if spec.backend not in catalog.backends:
            message = f"its backend {spec.backend!r} is registered by no plugin."
            checks.append(Check(f"model {name}", "problem", message, "Install the plugin that has it."))
    return checks
