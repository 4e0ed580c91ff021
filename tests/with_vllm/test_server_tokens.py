"""How close the choice of tokens was, as vLLM's real server tells it through the backend `server`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mhe import SampleModelError
from mhe.backend_checks import Explainer, compare_answers
from mhe.testing.ability_contract import check_tokens
from mhe_hf import HfBackend, HfOptions
from vllm_models import context, requests_of, spec_of

TOKENS = 8
TOLD = 20
NEAR = 1e-4


def test_the_chances_are_those_of_transformers(random_twin, tmp_path):
    asked = requests_of("phantom-vqa", 6, max_new_tokens=TOKENS)
    own = HfBackend(
        spec_of(random_twin.folder),
        HfOptions(dtype="float32", device="cpu", image_processor="torchvision"),
        context(tmp_path),
    )
    own.load()
    compared = 0
    try:
        with random_twin.opened(tmp_path) as backend:
            for request in asked:
                told, expected = backend.next_tokens(request, (), 50), own.next_tokens(request, (), TOLD)
                assert [place[0].id for place in told] == [place[0].id for place in expected]
                for place, wanted in zip(told, expected, strict=True):
                    assert len(place) == TOLD
                    chances = {chance.id: chance for chance in place}
                    # The last of them may be another that is as likely.
                    for other in wanted[: TOLD - 2]:
                        found = chances[other.id]
                        assert found.log_probability == pytest.approx(other.log_probability, abs=NEAR)
                        assert (found.text, found.is_end) == (other.text, other.is_end)
                        compared += 1
    finally:
        own.close()
    assert compared > 100


def test_the_backend_keeps_what_one_that_tells_chances_must(trained, tmp_path):
    asked = requests_of("phantom-vqa", 3, max_new_tokens=TOKENS)
    responses = trained.answers(asked, tmp_path)
    with trained.opened(tmp_path) as backend:
        check_tokens(backend, asked, responses)
        places = backend.next_tokens(asked[0], (), 5)
        assert places[-1][0].is_end
        assert places[-1][0].text.strip() == responses[asked[0].sample_id].text


def test_the_server_as_reference_tells_where_answers_part(trained, tmp_path):
    (asked,) = requests_of("phantom-vqa", 1, max_new_tokens=TOKENS)
    responses = trained.answers([asked], tmp_path)
    with trained.opened(tmp_path) as backend:
        best, second = backend.next_tokens(asked, (), 2)[0]
        other = {asked.sample_id: _saying(responses[asked.sample_id], second.text.strip())}
        explainer = Explainer(lambda: backend)
        ((difference,), unanswered) = compare_answers([asked], responses, other, explainer)
    assert unanswered == 0
    assert difference.verdict == "disagreement"
    (fork,) = difference.forks
    assert (fork.place, fork.best.id, fork.other.id) == (1, best.id, second.id)
    assert fork.gap == pytest.approx(best.log_probability - second.log_probability, abs=NEAR)


def test_a_beginning_that_is_read_as_other_tokens_is_refused(trained, tmp_path):
    (asked,) = requests_of("phantom-vqa", 1, max_new_tokens=TOKENS)
    with trained.opened(tmp_path) as backend:
        first = backend.next_tokens(asked, (), TOLD)[0]
        # The chat template writes a blank before every answer, and this token has none.
        bare = next(chance for chance in first if chance.token.strip() == chance.token and not chance.is_end)
        with pytest.raises(SampleModelError, match="cannot be made to begin its answer"):
            backend.next_tokens(asked, (bare.id,), 3)


def _saying(response, text):
    return replace(response, text=text, generated_tokens=None)
