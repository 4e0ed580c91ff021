"""What runs vLLM for real: collected everywhere, run where vLLM is installed (`make test-vllm` sets that up)."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before torch is imported: spinning threads keep each other off two cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).parent


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
