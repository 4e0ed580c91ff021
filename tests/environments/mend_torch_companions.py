"""Make an environment usable where torchvision, torchaudio or torchcodec were built for another torch than the CPU
build beside them: `python tests/environments/mend_torch_companions.py`.

vLLM for CPU asks for the three, and the package index offers builds for CUDA. Beside a CPU torch their compiled
libraries do not load, and transformers' image processors and vLLM's models end with them when they are imported.

- torchvision ends with "operator torchvision::nms does not exist". What is used of it is written in Python, so the
  two operators that its import asks for are declared before it; nobody can call them, and nothing here does.
- torchaudio and torchcodec read sound and film, which nothing here does: without them transformers and vLLM go on.

It changes the environment of the Python that runs it, and only where one of the three does not import. Child
processes see the change too.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

NAME = "torchvision_operators_declared"
FAULT = "operator torchvision::"
WITHOUT = ("torchaudio", "torchcodec")
MODULE = '''"""Declares two operators of torchvision before it is imported: mend_torch_companions.py wrote this."""

import sys


class _Declarer:
    """Finds no module; it is told when torchvision is about to be imported."""

    kept = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and cls.kept is None:
            import torch

            cls.kept = torch.library.Library("torchvision", "DEF")
            cls.kept.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            cls.kept.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _Declarer)
'''


def fault_of(module: str) -> str:
    """The last line that a fresh interpreter says when it imports a module; empty where it imports."""
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]


def declare_operators(folder: Path) -> list[Path]:
    """Write the module and the `.pth` file that imports it when Python starts; returns both."""
    module, start = folder / f"{NAME}.py", folder / f"{NAME}.pth"
    module.write_text(MODULE, encoding="utf-8")
    start.write_text(f"import {NAME}\n", encoding="utf-8")
    return [module, start]


def mend_torchvision() -> str:
    """What was done, or nothing. Raises `RuntimeError` for a fault that is not the one mended here."""
    fault = fault_of("torchvision")
    if not fault:
        return ""
    if FAULT not in fault:
        raise RuntimeError(f"torchvision does not import, for a reason that is not mended here: {fault}")
    written = declare_operators(Path(sysconfig.get_path("purelib")))
    after = fault_of("torchvision")
    if after:
        for path in written:
            path.unlink()
        raise RuntimeError(f"torchvision does not import with its operators declared either: {after}")
    return f"torchvision: {fault}; its operators are declared by {written[1]}"


def remove(module: str) -> str:
    """What was done, or nothing."""
    fault = fault_of(module)
    if not fault:
        return ""
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", module], check=True)
    return f"{module}: {fault}; uninstalled"


def main() -> int:
    """Run the command: 0 where all that is still installed imports in the end."""
    try:
        done = [mend_torchvision()] if find_spec("torchvision") is not None else []
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    done += [remove(module) for module in WITHOUT if find_spec(module) is not None]
    print("\n".join(line for line in done if line) or "torch's companions import: nothing to mend")
    return 0


if __name__ == "__main__":
    sys.exit(main())
