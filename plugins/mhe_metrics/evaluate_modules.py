"""Metric scripts of Hugging Face `evaluate`: from the hub, from its cache, or from a folder that the user names.

`evaluate.load` looks for a script in a folder of the metric's name in the current directory before it asks the hub,
and runs it. Here a name is only ever one on the hub, and a script is run from the very file that was found or named.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from mhe import MetricUnavailableError, UserError, digest_of, file_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
CANONICAL = "evaluate-metric"
"""The owner of the metrics without one."""
INSTALL = "pip install 'mhe[evaluate]'"
ON = frozenset({"1", "ON", "YES", "TRUE"})


class EvaluationModule(Protocol):
    """What is used of `evaluate.EvaluationModule`."""

    features: Mapping[str, object] | list[Mapping[str, object]]
    """Types of `predictions` and `references`, or a list of alternatives."""

    def download_and_prepare(self) -> None:
        """Fetch what the metric needs besides its script."""
        ...

    def compute(self, *, predictions: object, references: object, **options: object) -> object:
        """The result: a dictionary."""
        ...


def check_hub_name(name: str) -> None:
    """Raises `UserError` for what cannot be the name of a metric on the hub."""
    if not HUB_NAME.fullmatch(name):
        raise UserError(
            f"evaluate:{name}: a metric has a name of the form NAME or owner/NAME. "
            f"For a script of your own: --metrics evaluate:ITS_NAME --set metrics.evaluate:ITS_NAME.folder=PATH"
        )


def find_script(name: str, folder: str | None) -> Path:
    """The script of a metric, `<last part of its name>.py`: in `folder`, else the hub's, else the latest in the cache.

    Raises `MetricUnavailableError` where there is none.
    """
    file = f"{name.rpartition('/')[2]}.py"
    if folder is not None:
        script = Path(folder).expanduser() / file
        if not script.is_file():
            raise MetricUnavailableError(f"metrics.evaluate:{name}.folder={folder}: there is no {file} in it")
        return script
    try:
        return _hub_script(name if "/" in name else f"{CANONICAL}/{name}", file)
    except ImportError as error:
        told = INSTALL if (error.name or "").partition(".")[0] in ("evaluate", "datasets") else _told(error)
        raise MetricUnavailableError(f"evaluate:{name} cannot be had: {told}") from None


def _hub_script(name: str, file: str) -> Path:
    from evaluate.loading import CachedEvaluationModuleFactory, HubEvaluationModuleFactory, init_dynamic_modules

    place = Path(init_dynamic_modules())
    reason = "the environment asks to stay offline"
    found = None
    if not _is_offline():
        try:
            found = HubEvaluationModuleFactory(name).get_module()
        except ImportError:
            raise
        except Exception as error:  # noqa: BLE001 - the hub's client raises errors of several libraries
            reason = _told(error)
    try:
        found = found or CachedEvaluationModuleFactory(name.replace("/", "--")).get_module()
    except FileNotFoundError:
        typed = name.removeprefix(f"{CANONICAL}/")
        raise MetricUnavailableError(
            f"the script {name} can be had neither from the hub ({reason}) nor from {place}, where "
            f"evaluate.load({typed!r}) leaves it on a machine with a network; or give the folder of a copy: "
            f"--set metrics.evaluate:{typed}.folder=PATH"
        ) from None
    return place.joinpath(*found.module_path.split(".")[1:-1], file)


def _is_offline() -> bool:
    from evaluate import config

    return bool(config.HF_EVALUATE_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in ON


def script_digest(script: Path) -> str:
    """Hex SHA-256 over the names and contents of all Python files in the script's folder and below.

    Raises `MetricUnavailableError` where one cannot be read.
    """
    folder = script.parent
    try:
        return digest_of({path.relative_to(folder).as_posix(): file_digest(path) for path in folder.rglob("*.py")})
    except OSError as error:
        raise MetricUnavailableError(f"{error.filename} cannot be read ({error.strerror})") from None


def open_module(script: Path, *, config: str | None, cache_dir: Path) -> EvaluationModule:
    """Run the script and return an instance of its metric, ready to compute. Raises `MetricUnavailableError`."""
    try:
        import evaluate
    except ImportError:
        raise MetricUnavailableError(f"{script.name} needs the package evaluate: {INSTALL}") from None
    # A package of one module, so that the script may import what lies beside it.
    package = types.ModuleType(f"mhe_evaluate_{script_digest(script)}")
    package.__path__ = [str(script.parent)]
    sys.modules[package.__name__] = package
    try:
        module = importlib.import_module(f"{package.__name__}.{script.stem}")
    except Exception as error:
        raise MetricUnavailableError(f"{script} cannot be run ({_told(error)})") from error
    own = [thing for thing in vars(module).values() if getattr(thing, "__module__", None) == module.__name__]
    found = [thing for thing in own if isinstance(thing, type) and issubclass(thing, evaluate.EvaluationModule)]
    if not found:
        raise MetricUnavailableError(f"{script} has no class of its own that derives from evaluate.Metric")
    try:
        opened: EvaluationModule = found[0](
            config_name=config, keep_in_memory=True, cache_dir=str(cache_dir / "evaluate"), seed=0
        )
        opened.download_and_prepare()
    except Exception as error:
        raise MetricUnavailableError(f"the metric of {script} cannot be made ready ({_told(error)})") from error
    return opened


def takes_lists(module: EvaluationModule) -> bool:
    """True where all references of a sample are given together, False where a text is."""
    alternatives = module.features if isinstance(module.features, list) else [module.features]
    return any(_is_list(alternative["references"]) for alternative in alternatives if "references" in alternative)


def _is_list(feature: object) -> bool:
    # `datasets` has had several classes for lists; a single text is a Value in all of them.
    from datasets import Value

    return not isinstance(feature, Value)


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
