"""Entry points of plugins that are made up in a test: objects in memory, with a distribution of any name."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

from mhe import Provider, hookimpl


class FakeDistribution(importlib.metadata.Distribution):
    """A distribution that consists of its name and version."""

    def __init__(self, name, version="9.9"):
        self._text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

    def read_text(self, filename):
        return self._text if filename in ("METADATA", "PKG-INFO") else None

    def locate_file(self, path):
        return path


class FakeEntryPoint:
    """What `importlib.metadata.EntryPoint` is to the loader."""

    def __init__(self, name, load, distribution="stranger", value="stranger.plugin"):
        self.name = name
        self.value = value
        self.group = "mhe"
        self.dist = FakeDistribution(distribution) if distribution else None
        self.load = load


def plugin(name="strange", distribution="stranger", **hooks):
    """An entry point whose object has these functions as hooks."""
    thing = SimpleNamespace(**{hook: hookimpl(function) for hook, function in hooks.items()})
    return FakeEntryPoint(name, lambda: thing, distribution, f"{name}.plugin")


def raising(error):
    """A function that raises, whatever it is called with."""

    def function(*_args, **_kwargs):
        raise error

    return function


def nothing():
    """What a hook returns that has nothing to offer."""
    return []


def provider(name="thing", load=lambda: "loaded", summary="a thing", extra=None):
    return Provider(name, summary, load, extra)


def good(name="good", distribution="aaa-good"):
    """A plugin with one metric, to see that it still works beside a broken one."""
    return plugin(name, distribution, register_metrics=lambda: [provider(f"{name}-metric")])
