"""Every name that a user can type, and what stands behind it.

Each hook is called when its names are first asked for, so that `mhe --help` asks plugins for commands and for nothing
else. Where two plugins register one name, the first in the order of calling keeps it (ours, then by distribution),
and the second is reported with both.
"""

from __future__ import annotations

import importlib.metadata
import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mhe.errors import MissingExtraError, UnknownNameError, UserError
from mhe.plugins import PluginInfo, PluginProblem, PluginSet, call_each, create_manager
from mhe.values import Architecture, Provider

if TYPE_CHECKING:
    from mhe.documents.model import ModelSpec
    from mhe.documents.run import RunRecord
    from mhe.documents.task import TaskSpec
    from mhe.protocols import (
        BackendFactory,
        Command,
        DatasetReaderFactory,
        Engine,
        MetricFactory,
        Profile,
        RecipeFactory,
    )

T = TypeVar("T")


class Catalog:
    """Names to providers, over all plugins that work."""

    def __init__(self, found: PluginSet) -> None:
        self._found = found

    @property
    def plugins(self) -> list[PluginInfo]:
        """Every announced plugin, working or not."""
        return self._found.plugins

    @property
    def problems(self) -> list[PluginProblem]:
        """What went wrong in plugins so far; `check_all` calls every hook first."""
        return self._found.problems

    def check_all(self) -> list[PluginProblem]:
        """Call every listing hook, and return all problems."""
        for names in (
            self.backends, self.models, self.architectures, self.task_folders, self.readers, self.metrics,
            self.profiles, self.recipes, self.pipelines, self.engines, self.commands,
        ):  # fmt: skip
            len(names)
        return self.problems

    # ------------------------------------------------------------ names

    @cached_property
    def backends(self) -> Mapping[str, Provider[BackendFactory]]:
        """Ways to run a model."""
        return self._providers("register_backends", "backend")

    @cached_property
    def models(self) -> Mapping[str, ModelSpec]:
        """Registered models."""
        from mhe.documents.model import ModelSpec

        return self._unique("model", call_each(self._found, "register_models", ModelSpec), lambda spec: spec.name)

    @cached_property
    def architectures(self) -> Mapping[str, Architecture]:
        """Where modules live, by model type."""
        found = call_each(self._found, "register_architectures", Architecture)
        return self._unique("architecture", found, lambda item: item.model_type)

    @cached_property
    def task_folders(self) -> Mapping[str, Traversable]:
        """Folders of tasks, by the task's name: the folder's own, with `-` for `_`."""
        found = call_each(self._found, "register_task_folders", (Traversable, Path))
        return self._unique("task", found, lambda folder: folder.name.replace("_", "-"))

    @cached_property
    def readers(self) -> Mapping[str, Provider[DatasetReaderFactory]]:
        """Readers of data sets."""
        return self._providers("register_readers", "reader")

    @cached_property
    def metrics(self) -> Mapping[str, Provider[MetricFactory]]:
        """Metrics."""
        return self._providers("register_metrics", "metric")

    @cached_property
    def profiles(self) -> Mapping[str, Provider[Profile]]:
        """Scoring conventions."""
        return self._providers("register_profiles", "profile")

    @cached_property
    def recipes(self) -> Mapping[str, Provider[RecipeFactory]]:
        """Recipes."""
        return self._providers("register_recipes", "recipe")

    @cached_property
    def pipelines(self) -> Mapping[str, Traversable]:
        """Pipeline files, by the file's name without its suffix."""
        found = call_each(self._found, "register_pipelines", (Traversable, Path))
        return self._unique("pipeline", found, lambda file: file.name.rpartition(".")[0])

    @cached_property
    def engines(self) -> Mapping[str, Provider[Engine]]:
        """Where requests run."""
        return self._providers("register_engines", "engine")

    @cached_property
    def commands(self) -> Mapping[str, Provider[Command]]:
        """Sub-commands of plugins."""
        return self._providers("register_commands", "command")

    def _providers(self, hook: str, kind: str) -> dict[str, Provider[T]]:
        found: list[tuple[PluginInfo, Provider[T]]] = call_each(self._found, hook, Provider)
        return self._unique(kind, found, lambda provider: provider.name)

    def _unique(self, kind: str, found: Iterable[tuple[PluginInfo, T]], name_of: Callable[[T], str]) -> dict[str, T]:
        taken: dict[str, tuple[PluginInfo, T]] = {}
        for info, item in found:
            name = name_of(item)
            if name in taken:
                owner = taken[name][0]
                message = f"the {kind} {name!r} is already registered by plugin {owner.name} ({owner.distribution})."
                hint = f"Rename one, or: pip uninstall {info.distribution}"
                info.problems.append(PluginProblem(info.name, info.distribution, message, hint))
            else:
                taken[name] = (info, item)
        return {name: item for name, (_, item) in taken.items()}

    # ------------------------------------------------------------ things

    def backend(self, name: str) -> BackendFactory:
        """The backend's factory. Like all of these: `UnknownNameError`, `MissingExtraError`."""
        return self._load("backend", self.backends, name)

    def reader(self, name: str) -> DatasetReaderFactory:
        """The reader's factory."""
        return self._load("reader", self.readers, name)

    def metric(self, name: str) -> MetricFactory:
        """The metric's factory."""
        return self._load("metric", self.metrics, name)

    def profile(self, name: str) -> Profile:
        """The profile."""
        return self._load("profile", self.profiles, name)

    def recipe(self, name: str) -> RecipeFactory:
        """The recipe's factory."""
        return self._load("recipe", self.recipes, name)

    def engine(self, name: str) -> Engine:
        """A fresh engine."""
        return self._load("engine", self.engines, name)

    def command(self, name: str) -> Command:
        """The command."""
        return self._load("command", self.commands, name)

    def _load(self, kind: str, providers: Mapping[str, Provider[T]], name: str) -> T:
        if name not in providers:
            raise UnknownNameError(kind, name, providers, hint=self._broken_plugins())
        provider = providers[name]
        try:
            return provider.load()
        except ImportError as error:
            if provider.extra is None:
                raise
            raise MissingExtraError(provider.extra, f"the {kind} {name!r}", error.name or str(error)) from error

    def _broken_plugins(self) -> str:
        broken = [plugin.name for plugin in self.plugins if not plugin.is_working]
        return f"Plugins with problems, see `mhe doctor`: {', '.join(broken)}." if broken else ""

    def task(self, name: str) -> TaskSpec:
        """A task by its name, or by the path of its `task.yaml` or folder.

        Raises `UnknownNameError`, and `DocumentError` with all problems of the file.
        """
        from mhe.task_files import read_task_file

        if name in self.task_folders:
            task = read_task_file(self.task_folders[name])
            if task.name != name:
                raise UserError(
                    f"the folder {self.task_folders[name].name} holds a task named {task.name!r}; rename one of them, "
                    f"so that the task is found as {name!r} by everyone."
                )
            return task
        path = Path(name)
        if path.suffix in (".yaml", ".yml") or (path / "task.yaml").is_file():
            return read_task_file(path)
        hint = "The path of a task.yaml can be given as well. " + self._broken_plugins()
        raise UnknownNameError("task", name, self.task_folders, hint=hint.strip())

    # ------------------------------------------------------------ trackers

    def run_finished(self, record: RunRecord, folder: Path) -> list[str]:
        """Tell every plugin of a finished run; a warning for each that raised, with its traceback."""
        warnings = []
        for info in self.plugins:
            if "run_finished" not in info.hooks or info.name not in self._found.objects:
                continue
            hook = self._found.manager.subset_hook_caller(
                "run_finished", [o for name, o in self._found.objects.items() if name != info.name]
            )
            try:
                hook(record=record, folder=folder)
            except Exception as error:  # noqa: BLE001 - a tracker may raise anything; the run stands
                warnings.append(
                    f"plugin {info.name} ({info.distribution}): run_finished raised {type(error).__name__}: {error}\n"
                    + traceback.format_exc()
                )
        return warnings


def open_catalog(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Catalog:
    """Load the plugins and return their names. `entry_points` replaces the installed ones, for tests."""
    return Catalog(create_manager(entry_points))
