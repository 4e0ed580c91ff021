"""Plugins, each loaded alone: what is broken in one is reported and costs the others nothing.

pluggy's own `load_setuptools_entrypoints` stops at the first plugin that does not import, and of two distributions
with one entry-point name it drops the second without a word; its multi-calls stop at the first exception. So we walk
the entry points, and call the hooks, one plugin at a time.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.metadata
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import pluggy

from mhe import hookspecs

GROUP = "mhe"
FIRST_PARTY = "mhe"
UNKNOWN = "unknown distribution"
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

    def report(self, message: str, hint: str = "", details: str = "") -> None:
        """Add a problem."""
        self.problems.append(PluginProblem(self.name, self.distribution, message, hint, details))


@dataclass(frozen=True, slots=True)
class HookFunction:
    """What one plugin does for one hook."""

    plugin: PluginInfo
    function: Callable[..., object]
    arguments: tuple[str, ...]
    """The hook's arguments that the function takes; pluggy lets a plugin leave some out."""

    def call(self, **values: object) -> object:
        """Call it with those of the values that it takes. What it prints goes to stderr: stdout is for results."""
        with contextlib.redirect_stdout(sys.stderr):
            return self.function(**{name: values[name] for name in self.arguments})


@dataclass(slots=True)
class PluginSet:
    """A manager with what was found while filling it."""

    manager: pluggy.PluginManager
    plugins: list[PluginInfo]
    """Every announced plugin in the order of calling: ours first, then by distribution and name."""
    functions: dict[str, list[HookFunction]]
    """By hook, in the order of calling."""

    @property
    def problems(self) -> list[PluginProblem]:
        """Of all plugins."""
        return [problem for plugin in self.plugins for problem in plugin.problems]


def hook_names() -> list[str]:
    """Every hook that `mhe.hookspecs` declares, in its order."""
    marker = f"{hookspecs.PROJECT}_spec"
    return [name for name, value in vars(hookspecs).items() if hasattr(value, marker)]


def create_manager(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> PluginSet:
    """Load every plugin of the group `mhe`; nothing that one of them does can fail the call, except an interruption.

    `entry_points` replaces the installed ones, for tests.
    """
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    found = PluginSet(manager, [], {})
    points = installed_entry_points(found) if entry_points is None else entry_points
    owners: dict[str, PluginInfo] = {}
    known: dict[int, tuple[str, str]] = {}
    described = [(_distribution(point, known), point) for point in points]
    for (distribution, version), point in sorted(described, key=_order):
        info = PluginInfo(point.name, distribution, version, point.value)
        owner = owners.setdefault(point.name, info)
        if owner is not info and (owner.distribution, owner.place) == (info.distribution, info.place):
            # One distribution seen twice, as an editable install beside its own metadata.
            continue
        found.plugins.append(info)
        if owner is info:
            _load(point, info, found)
        else:
            message = f"the entry-point name {point.name!r} is taken by {owner.distribution}; both announce it."
            info.report(message, f"Uninstall one: pip uninstall {info.distribution}")
    return found


def installed_entry_points(found: PluginSet) -> list[importlib.metadata.EntryPoint]:
    """The announced plugins of every installed distribution; unreadable metadata is a problem of its distribution."""
    try:
        return list(importlib.metadata.entry_points(group=GROUP))
    except Exception:  # noqa: BLE001 - one unreadable entry_points.txt fails the call for all distributions
        points: list[importlib.metadata.EntryPoint] = []
    for distribution in importlib.metadata.distributions():
        try:
            points += distribution.entry_points.select(group=GROUP)
        except Exception as error:  # noqa: BLE001 - the parsers raise what they meet
            name = _text(lambda d=distribution: d.name) or UNKNOWN  # type: ignore[misc]
            info = PluginInfo("?", name, "", "entry_points.txt")
            info.report(f"its entry_points.txt cannot be read: {type(error).__name__}: {error}", "Install it again.")
            found.plugins.append(info)
    return points


def _order(described: tuple[tuple[str, str], importlib.metadata.EntryPoint]) -> tuple[bool, str, str, str]:
    (distribution, _), point = described
    return (distribution != FIRST_PARTY, distribution.lower(), point.name, point.value)


def _distribution(point: importlib.metadata.EntryPoint, known: dict[int, tuple[str, str]]) -> tuple[str, str]:
    """Name and version. Metadata is parsed anew at each access, so they are kept by distribution."""
    dist = point.dist
    if dist is None:
        return UNKNOWN, ""
    if id(dist) not in known:
        known[id(dist)] = (_text(lambda: dist.name) or UNKNOWN, _text(lambda: dist.version))
    return known[id(dist)]


def _text(read: Callable[[], str | None]) -> str:
    """A field of a distribution's metadata; empty where the file is missing or damaged."""
    try:
        return read() or ""
    except (KeyError, OSError, UnicodeError, ValueError):
        return ""


@contextlib.contextmanager
def _blamed(info: PluginInfo, message: str, hint: str = "") -> Iterator[None]:
    """Turn whatever a plugin raises into a problem of its own: also SystemExit, never an interruption."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a plugin may raise anything, SystemExit included
        info.report(f"{message}{type(error).__name__}: {error}", hint, traceback.format_exc())


def _load(point: importlib.metadata.EntryPoint, info: PluginInfo, found: PluginSet) -> None:
    plugin: object = None
    with _blamed(info, "does not import: ", f"Mend it, or: pip uninstall {info.distribution}"):
        plugin = point.load()
    if info.problems:
        return
    with _blamed(info, "does not fit the hooks: ", "See docs/hooks.md."):
        misnamed = _misnamed_hooks(plugin)
        for name, hint in misnamed.items():
            info.report(f"{name} is marked as a hook, and there is no such hook.", hint)
        if not misnamed:
            found.manager.register(plugin, name=info.name)
    if info.problems:
        # pluggy keeps a plugin that it found unfit; one that was there before under another name stays.
        if found.manager.get_plugin(info.name) is plugin and plugin is not None:
            found.manager.unregister(plugin)
        return
    for caller in found.manager.get_hookcallers(plugin) or []:
        for implementation in caller.get_hookimpls():
            if implementation.plugin is plugin and caller.spec is not None:
                function = HookFunction(info, implementation.function, tuple(implementation.argnames))
                found.functions.setdefault(caller.name, []).append(function)
                info.hooks = (*info.hooks, caller.name)


def _misnamed_hooks(plugin: object) -> dict[str, str]:
    """Marked functions that no hook bears the name of, with a hint each: nobody would ever call them.

    `hookimpl(optionalhook=True)` marks one that only another version of mhe knows.
    """
    known = hook_names()
    problems = {}
    for name in dir(plugin):
        options: Mapping[str, object] | None = getattr(getattr(plugin, name, None), f"{hookspecs.PROJECT}_impl", None)
        if not isinstance(options, Mapping) or options.get("optionalhook"):
            continue
        hook = str(options.get("specname") or name)
        if hook not in known:
            close = difflib.get_close_matches(hook, known, n=1)
            problems[hook] = f"Did you mean {close[0]}?" if close else f"Hooks: {', '.join(known)}."
    return problems


def call_each(found: PluginSet, hook: str, kind: type[T] | tuple[type, ...]) -> list[tuple[PluginInfo, T]]:
    """Call a listing hook of each plugin alone, and check what it returns.

    A plugin that raises, or returns something else than a list of `kind`, gets a problem and gives nothing.
    """
    results: list[tuple[PluginInfo, T]] = []
    kinds = kind if isinstance(kind, tuple) else (kind,)
    wanted = f"a list of {kinds[0].__name__}"
    for hook_function in found.functions.get(hook, []):
        info = hook_function.plugin
        items: object = ()
        with _blamed(info, f"{hook} raised "):
            items = hook_function.call()
        if isinstance(items, str | bytes) or not isinstance(items, Sequence):
            info.report(f"{hook} returned {type(items).__name__}, where {wanted} belongs.", "See docs/hooks.md.")
            continue
        for item in items:
            if isinstance(item, kinds):
                results.append((info, item))  # type: ignore[arg-type]
            else:
                message = f"{hook} returned {type(item).__name__} {_shown(item)} in its list, where {wanted} belongs."
                info.report(message, "See docs/hooks.md.")
    return results


def _shown(item: object) -> str:
    """A short `repr`, also of things whose own one raises."""
    try:
        text = repr(item)
    except Exception:  # noqa: BLE001 - a plugin's own __repr__
        return ""
    return text if len(text) <= 60 else text[:59] + "…"
