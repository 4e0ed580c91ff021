"""What runs vLLM for real: collected everywhere, run where vLLM is installed (`make test-vllm` sets that up).

Servers take longest to start, so that each model has one for the whole session.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before torch is imported: spinning threads keep each other off two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from vllm_server import SERVED, VllmServer

HERE = Path(__file__).parent
TASTE = {"do_sample": True, "temperature": 0.9, "repetition_penalty": 1.9, "top_k": 3}


def pytest_collection_modifyitems(items):
    if find_spec("vllm") is not None:
        return
    skip = pytest.mark.skip(reason="vLLM is not installed: make test-vllm sets up an environment with it")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def data_dir():
    """The folder of real data sets."""
    root = os.environ.get("MHE_TEST_DATA")
    if not root:
        pytest.skip("MHE_TEST_DATA is not set")
    return Path(root)


def _serve(folder, place):
    server = VllmServer(folder, place)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session", params=SERVED)
def random_twin(request, tmp_path_factory):
    """A random twin, served, whose own settings would change every answer of a backend that follows them."""
    from mhe_tiny.build import build_folder

    place = tmp_path_factory.mktemp("served")
    folder = build_folder(request.param, place / request.param)
    path = folder / "generation_config.json"
    own = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**own, **TASTE}))
    yield from _serve(folder, place)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The trained model of the package, served; a test may kill it and start it again."""
    place = tmp_path_factory.mktemp("trained")
    with as_file(files("mhe_tiny") / "models" / "tiny-llava") as packaged:
        shutil.copytree(packaged, place / "tiny-llava")
    yield from _serve(place / "tiny-llava", place)
