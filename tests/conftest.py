"""What tests of several modules share and is dear to make."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def random_twins(tmp_path_factory):
    """The folder of a random twin by its name, built once for the whole run: copy it before you change it."""
    from mhe_tiny.build import build_folder

    root = tmp_path_factory.mktemp("random-twins")

    def find(name):
        if not (root / name).is_dir():
            build_folder(name, root / name)
        return root / name

    return find
