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


@pytest.fixture(autouse=True)
def no_server_of_the_environment(monkeypatch):
    """A key or an address of the person who runs the tests is neither needed nor sent anywhere."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Scripted runs to compare, and not to change."""
    from compare_cases import make_runs

    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    """The folder of a small CLIP of seed 7, under which one of the cosines of `clip_cases` is negative."""
    from clip_cases import build_clip

    return build_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def own_image_stores(monkeypatch):
    """Features of images are kept by the process: with this every test is as a process of its own."""
    from mhe_metrics import image_features

    monkeypatch.setattr(image_features, "_stores", {})


def _with_threads(number):
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def one_thread():
    """Threads make matrices of small models slower."""
    yield from _with_threads(1)


@pytest.fixture(scope="module")
def two_threads():
    """The same number in every process, since sums of floats depend on it."""
    yield from _with_threads(2)


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """The folder of a random model by its family's name, built once for the whole run: copy it before you change it."""
    import hf_family_models

    made = {}

    def find(name):
        if name not in made:
            made[name] = hf_family_models.FAMILIES[name](tmp_path_factory.mktemp(name))
        return made[name]

    return find


@pytest.fixture(scope="module")
def loaded_family(family_folder):
    """Model and processor by the family's name, loaded once for a module, which must leave them as they are."""
    from hf_models import spec_of
    from mhe_hf import load_model

    made = {}

    def find(name):
        if name not in made:
            made[name] = load_model(spec_of(family_folder(name)))
        return made[name]

    return find


@pytest.fixture(scope="module")
def catalog():
    """Everything that is registered, opened anew for each module."""
    from mhe import open_catalog

    return open_catalog()
