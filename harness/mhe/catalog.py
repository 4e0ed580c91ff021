"""Every name that a user can type, and what stands behind it.

Each hook is called when its names are first asked for, so that `mhe --help` asks plugins for commands and for nothing
else. Where two plugins register one name, the first in the order of calling keeps it (ours, then by distribution),
and the second is reported with both.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property, partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mhe.errors import MheError, MissingExtraError, UnknownNameError, UserError
from mhe.plugins import FIRST_PARTY, PluginInfo, PluginProblem, PluginSet, call_each, create_manager
from mhe.values import Architecture, Provider

if TYPE_CHECKING:
    from mhe.documents.model import ModelSpec
    from mhe.documents.run import RunRecord
    from mhe.documents.task import TaskSpec
    from mhe.entity_taggers import EntityTagger, TaggerFactory
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

NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
"""What users type: lower case, digits, dots, dashes."""
NAMED_ELSEWHERE = ("architecture", "model class")
"""Kinds whose names are found in checkpoints, not typed."""
FAMILY = ":"
"""The last character of a provider's name that answers to every name with this beginning."""
ANY_MEMBER = "NAME"
"""Stands for the rest of such a name in lists."""


class Providers(Mapping[str, Provider[T]]):
    """Names to providers. One registered as `family:` answers to each `family:NAME`, and is listed as that."""

    def __init__(self, named: Mapping[str, Provider[T]]) -> None:
        self._families = {name: provider for name, provider in named.items() if name.endswith(FAMILY)}
        self._listed = {
            f"{name}{ANY_MEMBER}" if name in self._families else name: provider for name, provider in named.items()
        }

    def __getitem__(self, name: str) -> Provider[T]:
        family, member = family_of(name)
        if member and family in self._families:
            provider = self._families[family]
            return replace(provider, name=name, load=partial(provider.load, member))
        return self._listed[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)


def family_of(name: str) -> tuple[str, str]:
    """`family:NAME` as `family:` and `NAME`; any other name as two empty texts."""
    family, colon, member = name.partition(FAMILY)
    return (family + colon, member) if colon else ("", "")


class Catalog:
    """Names to providers, over all plugins that work."""

    def __init__(self, found: PluginSet) -> None:
        self._found = found
        self._owners: dict[tuple[str, str], PluginInfo] = {}

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
            self.backends, self.models, self.architectures, self.model_classes, self.task_folders, self.readers,
            self.metrics, self.profiles, self.taggers, self.recipes, self.pipelines, self.engines, self.commands,
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
    def model_classes(self) -> Mapping[str, Provider[type]]:
        """Model classes of plugins, by the name in `architectures` of config.json."""
        return self._providers("register_model_classes", "model class")

    @cached_property
    def task_folders(self) -> Mapping[str, Traversable]:
        """Folders of tasks, by the task's name: the folder's own, with `-` for `_`."""
        found: list[tuple[PluginInfo, Traversable]] = call_each(
            self._found, "register_task_folders", (Traversable, Path)
        )
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
    def taggers(self) -> Mapping[str, Provider[TaggerFactory]]:
        """Entity taggers."""
        return self._providers("register_taggers", "tagger")

    @cached_property
    def recipes(self) -> Mapping[str, Provider[RecipeFactory]]:
        """Recipes."""
        return self._providers("register_recipes", "recipe")

    @cached_property
    def pipelines(self) -> Mapping[str, Traversable]:
        """Pipeline files, by the file's name without its suffix."""
        found: list[tuple[PluginInfo, Traversable]] = call_each(self._found, "register_pipelines", (Traversable, Path))
        return self._unique("pipeline", found, lambda file: file.name.rpartition(".")[0])

    @cached_property
    def engines(self) -> Mapping[str, Provider[Engine]]:
        """Where requests run."""
        return self._providers("register_engines", "engine")

    @cached_property
    def commands(self) -> Mapping[str, Provider[Command]]:
        """Sub-commands of plugins."""
        return self._providers("register_commands", "command")

    def _providers(self, hook: str, kind: str) -> Providers[T]:
        found: list[tuple[PluginInfo, Provider[T]]] = []
        for info, provider in call_each(self._found, hook, Provider):
            if fault := _provider_fault(provider):
                info.report(f"{hook} returned a Provider whose {fault}", "See docs/hooks.md.")
            else:
                found.append((info, provider))
        return Providers(self._unique(kind, found, lambda provider: provider.name, families=True))

    def _unique(
        self,
        kind: str,
        found: Iterable[tuple[PluginInfo, T]],
        name_of: Callable[[T], str],
        *,
        families: bool = False,
    ) -> dict[str, T]:
        named: dict[str, T] = {}
        for info, item in found:
            name = name_of(item)
            owner = self._owners.get((kind, name))
            own = name.removesuffix(FAMILY) if families else name
            if not isinstance(name, str) or (kind not in NAMED_ELSEWHERE and not NAME.fullmatch(own)):
                message = f"the {kind} name {name!r} is refused: lower case, digits, dots and dashes are allowed."
                info.report(message, "Rename it.")
            elif owner is info:
                info.report(f"the {kind} {name!r} is registered twice by this plugin.", "Rename one.")
            elif owner is not None:
                message = f"the {kind} {name!r} is already registered by plugin {owner.name} ({owner.distribution})."
                info.report(message, f"Rename one, or: pip uninstall {info.distribution}")
            else:
                self._owners[kind, name] = info
                named[name] = item
        return named

    def owner_of(self, kind: str, name: str) -> PluginInfo | None:
        """The plugin behind a name (`kind` is the noun: `task`, `backend`); None where nobody registered it."""
        return self._owners.get((kind, name)) or self._owners.get((kind, family_of(name)[0]))

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

    def tagger(self, name: str) -> TaggerFactory:
        """The tagger's factory."""
        return self._load("tagger", self.taggers, name)

    def open_tagger(self, name: str, options: Mapping[str, object]) -> EntityTagger:
        """The tagger with these options. Raises `UserError` for an option that it does not have as well."""
        from mhe.documents.base import parse_options

        factory = self.tagger(name)
        return factory(parse_options(factory.Options, options, f"options of tagger {name!r}"))

    def recipe(self, name: str) -> RecipeFactory:
        """The recipe's factory."""
        return self._load("recipe", self.recipes, name)

    def model_class(self, name: str) -> type:
        """The class."""
        return self._load("model class", self.model_classes, name)

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
            with contextlib.redirect_stdout(sys.stderr):
                return provider.load()
        except ImportError as error:
            if provider.extra is None or not _is_missing(error):
                raise self._load_error(kind, name, error, provider.extra) from error
            raise MissingExtraError(provider.extra, f"the {kind} {name!r}", error.name or str(error)) from error
        except (KeyboardInterrupt, MheError):
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            raise self._load_error(kind, name, error) from error

    def _load_error(self, kind: str, name: str, error: BaseException, extra: str | None = None) -> MheError:
        owner = self.owner_of(kind, name)
        assert owner is not None
        upgrade = f", or upgrade what it needs: pip install --upgrade 'mhe[{extra}]'" if extra else ""
        return UserError(
            f"the {kind} {name!r} of plugin {owner.name} ({owner.distribution} {owner.version}) cannot be loaded: "
            f"{type(error).__name__}: {error}\nCheck the installation: mhe doctor{upgrade}"
        )

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
        for hook in self._found.functions.get("run_finished", []):
            try:
                hook.call(record=record, folder=folder)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - a tracker may raise anything; the run stands
                warnings.append(
                    f"plugin {hook.plugin.name} ({hook.plugin.distribution}): run_finished raised "
                    f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
                )
        return warnings


def _provider_fault(provider: Provider[T]) -> str:
    """What is wrong with the fields of a provider, which nothing checks when it is made; empty where all is well."""
    if not isinstance(provider.name, str):
        return f"name is {type(provider.name).__name__}, not a text."
    if not isinstance(provider.summary, str):
        return f"summary ({provider.name}) is {type(provider.summary).__name__}, not a text."
    if not callable(provider.load):
        return f"load ({provider.name}) cannot be called: it must be a function that imports and returns the thing."
    if provider.extra is not None and not isinstance(provider.extra, str):
        return f"extra ({provider.name}) is {type(provider.extra).__name__}, not a text or None."
    return ""


def _is_missing(error: ImportError) -> bool:
    """True where a package is not installed; False where one is there and does not import, or lacks a name."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return False
    top = error.name.partition(".")[0]
    if top == FIRST_PARTY or top.startswith(f"{FIRST_PARTY}_"):
        return False
    try:
        return importlib.util.find_spec(top) is None
    except (ImportError, ValueError):
        return True


def open_catalog(entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Catalog:
    """Load the plugins and return their names. `entry_points` replaces the installed ones, for tests."""
    return Catalog(create_manager(entry_points))
