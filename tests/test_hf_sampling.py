"""Sampling: the noise is Gumbel's, frequencies are the model's, and neighbours do not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import hf_models
from hf_models import answers, ask, open_backend, picture
from mhe import Generation
from mhe_hf.sampling import SeededSampling, gumbel_noise, within_top_p

CPU = torch.device("cpu")
FIXED_NOISE = [[-0.415482, 0.697847, 0.385508], [1.430173, 1.484006, 1.249187]]


def sample(scores: torch.Tensor, draws: int, *, temperature: float = 1.0, top_p: float = 1.0) -> np.ndarray:
    """How often each token is drawn from one distribution, over so many seeds."""
    counts = np.zeros(scores.shape[-1])
    for start in range(0, draws, 1000):
        seeds = range(start, start + 1000)
        sampler = SeededSampling(seeds, temperature=temperature, top_p=top_p, prompt_length=5)
        drawn = sampler(torch.zeros(1000, 5, dtype=torch.long), scores.expand(1000, -1)).argmax(dim=-1)
        counts += np.bincount(drawn.numpy(), minlength=len(counts))
    return counts


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    expected = probabilities * counts.sum()
    assert (counts[expected == 0] == 0).all()
    kept = expected > 0
    return float(((counts[kept] - expected[kept]) ** 2 / expected[kept]).sum())


@pytest.mark.parametrize(("vocabulary", "limit"), [(8, 24.3), (64, 103.4)])
def test_frequencies_match_the_distribution(vocabulary, limit):
    """`limit` is the 0.999 quantile of chi-square with one degree less than the vocabulary."""
    scores = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1))
    counts = sample(scores, 40_000)
    assert chi_square(counts, scores.softmax(-1).double().numpy()) < limit


def test_frequencies_match_with_temperature_and_top_p():
    scores = torch.tensor([2.0, 1.5, 1.0, 0.0, -1.0, -3.0])
    probabilities = within_top_p(scores / 0.7, 0.9).softmax(-1).double().numpy()
    assert (probabilities > 0).sum() == 3
    assert chi_square(sample(scores, 40_000, temperature=0.7, top_p=0.9), probabilities) < 13.8


def test_positions_and_neighbouring_seeds_are_independent():
    noise = torch.stack([gumbel_noise(range(500), position, 4, CPU) for position in range(4)])
    flat = noise.permute(1, 0, 2).reshape(500, -1)
    correlation = torch.corrcoef(torch.cat([flat, flat.roll(1, 0)], dim=1).T).abs()
    correlation.fill_diagonal_(0)
    assert correlation.max() < 0.2
    assert abs(noise.mean().item() - 0.5772) < 0.05
    assert abs(noise.std().item() - math.pi / math.sqrt(6)) < 0.05


def test_noise_is_fixed_for_ever():
    """A published run is drawn again with the same noise: these numbers may not change."""
    noise = gumbel_noise([0, 2**60 + 7], 3, 3, CPU)
    torch.testing.assert_close(noise, torch.tensor(FIXED_NOISE), atol=1e-5, rtol=0)


def test_noise_of_a_row_does_not_depend_on_the_others():
    together = gumbel_noise([5, 6, 7], 2, 50, CPU)
    assert torch.equal(together[1:2], gumbel_noise([6], 2, 50, CPU))
    assert torch.equal(together[:, :20], gumbel_noise([5, 6, 7], 2, 20, CPU))


@pytest.mark.parametrize(("top_p", "kept"), [(1.0, 4), (0.95, 3), (0.5, 1), (0.6, 2), (0.01, 1)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    scores = torch.tensor([[0.1, 0.55, 0.3, 0.05]]).log()
    left = within_top_p(scores, top_p).isfinite()
    assert left.sum() == kept
    assert left[0, 1]


def test_answers_do_not_depend_on_batch_neighbours_or_order(tmp_path):
    folder = hf_models.build_llava(tmp_path / "llava")
    asked = Generation(max_new_tokens=6, temperature=0.8, top_p=0.95)
    requests = [ask(f"q{n}", image=picture(n % 3), generation=asked, seed=1000 + n) for n in range(12)]
    found = []
    for size, order in ((1, 1), (8, 1), (5, -1)):
        backend = open_backend(folder, batch_size=size)
        found.append({name: response.text for name, response in answers(backend, requests[::order]).items()})
        backend.close()
    assert found[0] == found[1] == found[2]
    # The same question about the same image, with another seed, is answered otherwise.
    assert len({found[0][f"q{n}"] for n in (0, 3, 6, 9)}) > 1


def test_sampling_follows_the_seed(tmp_path):
    folder = hf_models.build_llava(tmp_path / "llava")
    backend = open_backend(folder)
    asked = Generation(max_new_tokens=6, temperature=1.0)
    one = answers(backend, [ask("a", image=picture(0), generation=asked, seed=1)])["a"].text
    again = answers(backend, [ask("a", image=picture(0), generation=asked, seed=1)])["a"].text
    other = answers(backend, [ask("a", image=picture(0), generation=asked, seed=2)])["a"].text
    assert one == again != other
    backend.close()
