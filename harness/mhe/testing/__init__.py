"""For the tests of plugins: a scripted backend, toy data in memory, and checks of every contract.

Nothing here is imported until it is used, and nothing needs a network, a data set or a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mhe.testing.backend_contract import check_backend, check_engine
    from mhe.testing.contracts import check_profile, check_reader, check_recipe, check_tagger
    from mhe.testing.metric_contract import check_metric
    from mhe.testing.scripted import ScriptedBackend, ScriptedOptions
    from mhe.testing.task_contract import check_model, check_task
    from mhe.testing.toys import (
        HOSTILE_TEXTS,
        ToyProfile,
        ToyReader,
        tiny_png,
        toy_cases,
        toy_requests,
        toy_samples,
        toy_task,
    )

_HOMES = {
    "mhe.testing.backend_contract": ("check_backend", "check_engine"),
    "mhe.testing.contracts": ("check_profile", "check_reader", "check_recipe", "check_tagger"),
    "mhe.testing.metric_contract": ("check_metric",),
    "mhe.testing.scripted": ("ScriptedBackend", "ScriptedOptions"),
    "mhe.testing.task_contract": ("check_model", "check_task"),
    "mhe.testing.toys": (
        "HOSTILE_TEXTS",
        "ToyProfile",
        "ToyReader",
        "tiny_png",
        "toy_cases",
        "toy_requests",
        "toy_samples",
        "toy_task",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "HOSTILE_TEXTS",
    "ScriptedBackend",
    "ScriptedOptions",
    "ToyProfile",
    "ToyReader",
    "check_backend",
    "check_engine",
    "check_metric",
    "check_model",
    "check_profile",
    "check_reader",
    "check_recipe",
    "check_tagger",
    "check_task",
    "tiny_png",
    "toy_cases",
    "toy_requests",
    "toy_samples",
    "toy_task",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mhe.testing' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
