"""Plugins, each loaded alone: what is broken in one is reported and costs the others nothing.

pluggy's own `load_setuptools_entrypoints` stops at the first plugin that does not import, and of two distributions
with one entry-point name it drops the second without a word; its multi-calls stop at the first exception. So we walk
the entry points, and call the hooks, one plugin at a time.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pluggy

from mhe import hookspecs

GROUP = "mhe"
FIRST_PARTY = "mhe"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PluginProblem:
    """What is wrong with a plugin, and what to do."""

    plugin: str
    distribution: str
    message: str
    hint: str = ""
    details: str = ""
    """The traceback, where there is one."""

    def __str__(self) -> str:
        return f"plugin {self.plugin} ({self.distribution}): {self.message}" + (f" {self.hint}" if self.hint else "")


@dataclass(slots=True)
class PluginInfo:
    """One announced plugin."""

    name: str
    distribution: str
    version: str
    place: str
    """`module:attribute` of the entry point."""
    hooks: tuple[str, ...] = ()
    problems: list[PluginProblem] = field(default_factory=list)

    @property
    def is_working(self) -> bool:
        """Registered, and nothing of it refused so far."""
        return not self.problems


@dataclass(slots=True)
class PluginSet:
    """A manager with what was found while filling it."""

    manager: pluggy.PluginManager
    plugins: list[PluginInfo]
    objects: dict[str, object]
    """Registered plugin objects by name, in the order of calling: ours first, then by distribution and name."""

    @property
    def problems(self) -> list[PluginProblem]:
        """Of all plugins."""
        return [problem for plugin in self.plugins for problem in plugin.problems]


def create_manager(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> PluginSet:
    """Load every plugin of the group `mhe`; nothing that one of them does can fail the call, except an interruption."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    found = PluginSet(manager, [], {})
    points = importlib.metadata.entry_points(group=GROUP) if entry_points is None else entry_points
    owners: dict[str, PluginInfo] = {}
    for point in sorted(points, key=_order):
        info = PluginInfo(point.name, _distribution(point), point.dist.version if point.dist else "", point.value)
        if (owner := owners.get(point.name)) is not None:
            if (owner.distribution, owner.place) == (info.distribution, info.place):
                # One distribution seen twice, as an editable install beside its own metadata.
                continue
            message = f"the name {point.name!r} is taken by {owner.distribution}; both announce it."
            info.problems.append(_problem(info, message, f"Uninstall one: pip uninstall {info.distribution}"))
            found.plugins.append(info)
            continue
        owners[point.name] = info
        found.plugins.append(info)
        _load(point, info, found)
    return found


def _order(point: importlib.metadata.EntryPoint) -> tuple[bool, str, str]:
    distribution = _distribution(point)
    return (distribution != FIRST_PARTY, distribution, point.name)


def _distribution(point: importlib.metadata.EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "unknown distribution"


def _problem(info: PluginInfo, message: str, hint: str = "", details: str = "") -> PluginProblem:
    return PluginProblem(info.name, info.distribution, message, hint, details)


def _load(point: importlib.metadata.EntryPoint, info: PluginInfo, found: PluginSet) -> None:
    try:
        plugin = point.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a plugin may raise anything, SystemExit included
        message = f"does not import: {type(error).__name__}: {error}"
        hint = f"Mend it, or: pip uninstall {info.distribution}"
        info.problems.append(_problem(info, message, hint, traceback.format_exc()))
        return
    if problem := _misnamed_hook(plugin, info):
        info.problems.append(problem)
    try:
        found.manager.register(plugin, name=info.name)
    except (pluggy.PluginValidationError, ValueError) as error:
        if found.manager.is_registered(plugin):
            found.manager.unregister(plugin)
        info.problems.append(_problem(info, f"does not fit the hooks: {error}", "See docs/hooks.md."))
        return
    info.hooks = tuple(caller.name for caller in found.manager.get_hookcallers(plugin) or [] if caller.spec)
    found.objects[info.name] = plugin


def _misnamed_hook(plugin: object, info: PluginInfo) -> PluginProblem | None:
    """A function that is marked as a hook and has no hook's name would never be called, and nobody would know."""
    known = [name for name in dir(hookspecs) if hasattr(getattr(hookspecs, name), "mhe_spec")]
    for name in dir(plugin):
        if hasattr(getattr(plugin, name, None), "mhe_impl") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"Hooks: {', '.join(known)}."
            return _problem(info, f"{name} is marked as a hook, and there is no such hook.", hint)
    return None


def call_each(found: PluginSet, hook: str, kind: type[T] | tuple[type, ...]) -> list[tuple[PluginInfo, T]]:
    """Call a listing hook of each plugin alone, and check what it returns.

    A plugin that raises, or returns something else than a list of `kind`, gets a problem and gives nothing.
    """
    results: list[tuple[PluginInfo, T]] = []
    for info in found.plugins:
        if hook not in info.hooks or info.name not in found.objects:
            continue
        try:
            items = getattr(found.objects[info.name], hook)()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything
            message = f"{hook} raised {type(error).__name__}: {error}"
            info.problems.append(_problem(info, message, details=traceback.format_exc()))
            continue
        if isinstance(items, str) or not isinstance(items, Sequence):
            info.problems.append(_problem(info, f"{hook} returned {type(items).__name__}, not a list"))
            continue
        for item in items:
            if isinstance(item, kind):
                results.append((info, item))
            else:
                info.problems.append(_problem(info, f"{hook} returned a {type(item).__name__} in its list: {item!r}"))
    return results
