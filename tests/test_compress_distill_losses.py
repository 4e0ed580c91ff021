"""The losses of distillation against their formulas, written out one number at a time in float64."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from mhe_compress.distill_losses import TokenLogits, soft_loss, state_loss, with_rest  # noqa: E402
from mhe_compress.distill_states import Projection, paired_layers  # noqa: E402
from mhe_compress.teacher_cache import TEMPERATURES, bytes_a_token, rest_at, top_of  # noqa: E402

PLACES, VOCABULARY = 5, 11
DIVERGENCES = ["forward_kl", "reverse_kl", "jensen_shannon"]


@pytest.fixture
def logits():
    chance = torch.Generator().manual_seed(7)
    return [3 * torch.randn(PLACES, VOCABULARY, generator=chance, dtype=torch.float64) for _ in range(2)]


def softened(row, temperature):
    """softmax(row / T) by plain Python."""
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(a, b):
    return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))


def by_formula(name, p, q):
    if name == "forward_kl":
        return kl(p, q)
    if name == "reverse_kl":
        return kl(q, p)
    m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
    return kl(p, m) / 2 + kl(q, m) / 2


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0, 5.0])
def test_the_whole_vocabulary_gives_the_formula(logits, name, temperature):
    student, teacher = logits
    wanted = (
        temperature**2
        * sum(
            by_formula(name, softened(t, temperature), softened(s, temperature))
            for s, t in zip(student.tolist(), teacher.tolist(), strict=True)
        )
        / PLACES
    )
    found = soft_loss(student, TokenLogits(teacher), temperature, name)
    assert float(found) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("top_k", [1, 4, VOCABULARY - 1])
def test_what_is_left_out_is_one_more_outcome_on_both_sides(logits, name, top_k):
    student, teacher = logits
    temperature = 2.0
    ids, kept, rest = top_of(teacher.float(), top_k)
    total = 0.0
    for place in range(PLACES):
        p, q = (softened(row[place].tolist(), temperature) for row in (teacher, student))
        chosen = sorted(sorted(range(VOCABULARY), key=lambda token, p=p: -p[token])[:top_k])
        assert ids[place].tolist() == chosen
        shares = [[c[token] for token in chosen] + [1 - sum(c[token] for token in chosen)] for c in (p, q)]
        total += by_formula(name, *shares)
    found = soft_loss(student, TokenLogits(kept, ids, rest_at(rest, temperature)), temperature, name)
    assert float(found) == pytest.approx(temperature**2 * total / PLACES, rel=1e-5)
    whole = soft_loss(student, TokenLogits(teacher), temperature, name)
    assert float(found) <= float(whole) + 1e-6, "merging outcomes cannot add divergence"


def test_more_kept_tokens_come_ever_closer_to_the_whole(logits):
    student, teacher = logits
    whole = float(soft_loss(student, TokenLogits(teacher), 2.0, "forward_kl"))
    gaps = []
    for top_k in range(1, VOCABULARY):
        ids, kept, rest = top_of(teacher.float(), top_k)
        gaps.append(whole - float(soft_loss(student, TokenLogits(kept, ids, rest_at(rest, 2.0)), 2.0, "forward_kl")))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.05
    # With one token left out nothing is merged.
    assert gaps[-1] == pytest.approx(0, abs=1e-5)


def test_the_whole_vocabulary_kept_is_exactly_what_the_teacher_said(logits):
    student, teacher = (part.float() for part in logits)
    ids, kept, rest = top_of(teacher, VOCABULARY + 5)
    assert torch.equal(ids, torch.arange(VOCABULARY).expand(PLACES, -1))
    assert torch.equal(kept, teacher)
    assert bool(torch.isneginf(rest).all())
    assert bool(torch.isneginf(rest_at(rest, 1.7)).all())
    online = soft_loss(student, TokenLogits(teacher), 3.0, "forward_kl")
    assert torch.equal(soft_loss(student, TokenLogits(kept), 3.0, "forward_kl"), online)


def test_the_rest_is_exact_at_kept_temperatures_and_close_between(logits):
    teacher = 2 * logits[1]
    ids, _, rest = top_of(teacher.float(), 3)
    left = [
        [v for token, v in enumerate(row) if token not in i]
        for row, i in zip(teacher.tolist(), ids.tolist(), strict=True)
    ]

    def exact(temperature):
        return torch.tensor([math.log(sum(math.exp(v / temperature) for v in row)) for row in left]).double()

    for temperature in TEMPERATURES:
        assert torch.allclose(rest_at(rest, temperature).double(), exact(temperature), atol=1e-5)
    for temperature in (1.2, 1.7, 2.2, 3.5, 7.0, 18.0):
        gap = rest_at(rest, temperature).double() - exact(temperature)
        assert bool((gap > -1e-5).all()), "a convex function lies below its chords"
        assert bool((gap < 0.1).all()), temperature


def test_the_rest_is_computed_without_overflow_for_sure_teachers():
    student = torch.tensor([[90.0, -90.0, 0.0, 3.0]])
    log_q = torch.log_softmax(student, dim=-1)
    shares = with_rest(log_q, torch.tensor([[0, 3]]))
    assert bool(torch.isfinite(shares).all())
    assert float(shares[0, 2]) == pytest.approx(-90, abs=1e-3)
    teacher = torch.tensor([[200.0, 1.0, -300.0, 0.0]])
    ids, kept, rest = top_of(teacher, 2)
    student.requires_grad_(requires_grad=True)
    for name in DIVERGENCES:
        loss = soft_loss(student, TokenLogits(kept, ids, rest_at(rest, 1.0)), 1.0, name)
        (gradient,) = torch.autograd.grad(loss, student)
        assert bool(torch.isfinite(loss)), name
        assert bool(torch.isfinite(gradient).all()), name


def test_high_temperatures_approach_the_difference_of_centred_logits(logits):
    """Hinton, eq. 4: at a high temperature T² · KL's gradient is (v - mean) differences / N, times the scale 1."""
    student, teacher = logits
    student = student[:1].clone().requires_grad_(requires_grad=True)
    loss = soft_loss(student, TokenLogits(teacher[:1]), 1e4, "forward_kl")
    (gradient,) = torch.autograd.grad(loss, student)
    centred = (student - student.mean()) - (teacher[:1] - teacher[:1].mean())
    assert torch.allclose(gradient, centred / VOCABULARY, atol=1e-3)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_a_student_like_its_teacher_has_no_loss_and_gradients_check(logits, name):
    student, teacher = logits
    assert float(soft_loss(teacher, TokenLogits(teacher), 2.0, name)) == pytest.approx(0, abs=1e-12)
    ids, kept, rest = top_of(teacher.float(), 4)
    targets = TokenLogits(kept.double(), ids, rest_at(rest, 2.0).double())
    one = student.clone().requires_grad_(requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: soft_loss(given, targets, 2.0, name), (one,))


def test_16_bit_logits_are_widened_before_anything_is_summed(logits):
    student, teacher = (part.bfloat16() for part in logits)
    found = soft_loss(student, TokenLogits(teacher), 2.0, "forward_kl")
    assert found.dtype == torch.float32
    assert torch.equal(found, soft_loss(student.float(), TokenLogits(teacher.float()), 2.0, "forward_kl"))


def test_states_are_compared_by_mean_squares_through_a_projection():
    student, teacher = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    assert float(state_loss(student, teacher)) == 2.0
    same = Projection(2, 2, 1)
    assert torch.equal(same([student])[0], student), "it starts as identity at equal widths"
    assert Projection(2, 5, 2)([student, student])[1].shape == (1, 5)


def test_layers_are_paired_by_depth():
    assert paired_layers(2, 4) == [(0, 1), (1, 3)]
    assert paired_layers(2, 3) == [(0, 1), (1, 2)]
    assert paired_layers(3, 3) == [(0, 0), (1, 1), (2, 2)]
    assert paired_layers(16, 32)[-1] == (15, 31)


def test_the_bytes_of_a_token_are_those_that_are_written():
    ids, kept, rest = top_of(torch.randn(1, 300), 64)
    assert bytes_a_token(64) == 4 + 4 * ids.numel() + 4 * kept.numel() + 4 * rest.numel()
