"""The script that mends torch's companions, on a torchvision made here with the very fault."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "environments" / "mend_torch_companions.py"
# What the import of torchvision does with operators that its compiled part should have brought.
TORCHVISION = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets
"""


def import_torchvision(folder):
    code = (
        f"import site, sys; site.addsitedir({str(folder)!r}); sys.path.insert(0, {str(folder)!r})\n"
        "before = 'torch' in sys.modules\nimport torchvision\nprint(before)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_declared_operators_let_torchvision_import_and_cost_nothing_before(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(TORCHVISION)
    spec = importlib.util.spec_from_file_location("mend_torch_companions", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    broken = import_torchvision(tmp_path)
    assert broken.returncode == 1
    assert script.FAULT in broken.stderr.splitlines()[-1]
    written = script.declare_operators(tmp_path)
    assert all(path.parent == tmp_path for path in written)
    mended = import_torchvision(tmp_path)
    assert mended.returncode == 0, mended.stderr
    assert mended.stdout.strip() == "False", "torch is imported before anything asks for it"
