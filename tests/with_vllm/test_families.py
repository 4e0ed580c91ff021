"""The column vLLM of docs/backends.md: what it has gives the answers of transformers, what it lacks is refused."""

from __future__ import annotations

import pytest

from backend_table import ABILITIES, WITH_VLLM
from mhe import ModelUnusableError
from vllm_models import alike, answers, hf_answers, requests_of, vllm
from vllm_server import SERVED

QUESTIONS = 24


def test_those_that_are_served_elsewhere_are_claimed():
    """tests/with_vllm/test_check_backends.py asks them 400 questions."""
    assert {family.twin for family in ABILITIES if family.twin in SERVED and WITH_VLLM in family.works} == set(SERVED)


@pytest.mark.parametrize("family", [f for f in ABILITIES if f.twin not in SERVED], ids=lambda family: family.twin)
def test_what_the_page_claims(tmp_path, family):
    from mhe_tiny.build import build_folder

    folder = build_folder(family.twin, tmp_path / family.twin)
    if WITH_VLLM not in family.works:
        with pytest.raises(ModelUnusableError, match="--backend hf"), vllm(folder):
            pass
        return
    asked = requests_of("phantom-vqa", QUESTIONS, max_new_tokens=8)
    expected = hf_answers(folder, asked, image_processor="torchvision")
    assert len({response.text for response in expected.values()}) > QUESTIONS // 2, "a model of few answers"
    with vllm(folder, image_processor="torchvision") as backend:
        found = answers(backend, asked)
    assert {name: alike(r) for name, r in found.items()} == {name: alike(r) for name, r in expected.items()}
