"""Setting up environments: torch's companions are mended, on a torchvision made here with the very fault, and a peer
that cannot be installed is told by the benchmark that wants it, and stops nothing else.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = HERE / "environments" / "mend_torch_companions.py"
# What the import of torchvision does with operators that its compiled part should have brought.
TORCHVISION = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets
"""


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_torchvision(folder):
    code = (
        f"import site, sys; site.addsitedir({str(folder)!r}); sys.path.insert(0, {str(folder)!r})\n"
        "before = 'torch' in sys.modules\nimport torchvision\nprint(before)"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_declared_operators_let_torchvision_import_and_cost_nothing_before(tmp_path):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(TORCHVISION)
    script = module_at(SCRIPT)
    broken = import_torchvision(tmp_path)
    assert broken.returncode == 1
    assert script.FAULT in broken.stderr.splitlines()[-1]
    written = script.declare_operators(tmp_path)
    assert all(path.parent == tmp_path for path in written)
    mended = import_torchvision(tmp_path)
    assert mended.returncode == 0, mended.stderr
    assert mended.stdout.strip() == "False", "torch is imported before anything asks for it"


@pytest.fixture
def install_peers(monkeypatch):
    """The script, with a `pip` that is not to be had."""
    script = module_at(HERE / "environments" / "install_peers.py")
    nothing = [sys.executable, "-c", "print('no such version: lmms-eval'); raise SystemExit(7)"]
    monkeypatch.setattr(script, "steps", lambda folder, torch: [[sys.executable, "-c", "pass"], nothing])
    return script


def test_peers_that_cannot_be_installed_leave_the_reason_for_the_benchmark(tmp_path, monkeypatch, install_peers):
    folder = tmp_path / "venv-peers"
    assert install_peers.main([str(folder)]) == 0
    reason = (folder / "why-not.txt").read_text(encoding="utf-8")
    assert "no such version: lmms-eval" in reason
    assert "status 7" in reason
    assert not (folder / "installed.txt").exists()

    peers = module_at(HERE / "benchmarks" / "peers.py")
    monkeypatch.setattr(peers, "ENVIRONMENT", folder)
    with pytest.raises(peers.PeerMissingError, match="no such version: lmms-eval"):
        peers.Peer(tmp_path, [], 16, 1)
    (folder / "why-not.txt").unlink()
    with pytest.raises(peers.PeerMissingError, match="make peers"):
        peers.Peer(tmp_path, [], 16, 1)


def test_peers_are_installed_once_for_one_list(tmp_path, monkeypatch, install_peers):
    folder = tmp_path / "venv-peers"
    ran = tmp_path / "ran"
    step = [sys.executable, "-c", f"open({str(ran)!r}, 'a').write('x')"]
    monkeypatch.setattr(install_peers, "steps", lambda folder, torch: [step])
    for torch, times in (("torch==2.13.0", 1), ("torch==2.13.0", 1), ("torch==2.12.0", 2)):
        assert install_peers.main([str(folder), "--torch", torch]) == 0
        assert ran.read_text() == "x" * times
    assert not (folder / "why-not.txt").exists()


def test_a_peer_that_does_not_start_or_dies_is_told_with_its_last_words(tmp_path, monkeypatch):
    peers = module_at(HERE / "benchmarks" / "peers.py")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "installed.txt").write_text("")
    script = tmp_path / "script.py"
    monkeypatch.setattr(peers, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(peers, "SCRIPT", script)
    script.write_text("raise SystemExit('no decord here')")
    with pytest.raises(peers.PeerMissingError, match=r"status 1: no decord here"):
        peers.Peer(tmp_path, [], 16, 1)
    script.write_text(
        "import json\nprint('{}', flush=True)\n"
        "print(json.dumps({'seconds': 2.0, 'processor_seconds': 3.0, 'texts': ['yes'] * int(input())}), flush=True)\n"
        "input()\nraise SystemExit('killed')"
    )
    peer = peers.Peer(tmp_path, [], 16, 1)
    assert peer.answer(3) == (2.0, 3.0, ["yes"] * 3)
    with pytest.raises(peers.PeerMissingError, match="status 1: killed"):
        peer.answer(3)
    peer.close()
