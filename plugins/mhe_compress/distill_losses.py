"""How far a student's next-token distribution is from its teacher's, and how far its hidden states.

With p the teacher's and q the student's distribution, both softened by the temperature T (softmax of logits / T), the
soft loss is T² · D(p, q), meaned over the answer's tokens; T² keeps its gradients as large as those of the hard loss.

    forward_kl       Σ p log(p / q)
    reverse_kl       Σ q log(q / p)
    jensen_shannon   ½ KL(p ‖ m) + ½ KL(q ‖ m), m = ½ (p + q)

A teacher of whom only the k likeliest tokens are known is compared over k + 1 outcomes: these tokens, and *any other*,
whose probability is that of all the rest together, on both sides. Nothing is renormalised away: a student that gives
the rest too much is pulled back. This is never more than the divergence over the whole vocabulary, and equal to it
where k is the whole vocabulary.

Source: Hinton, Vinyals, Dean, arXiv:1503.02531, section 2; states: TinyBERT (Jiao et al., 2020), eq. 8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Divergence = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


@dataclass(frozen=True, slots=True)
class TokenLogits:
    """What a teacher says of the next token at n places."""

    logits: torch.Tensor
    """Shape (n, k), as the model gave them: at temperature 1."""
    ids: torch.Tensor | None = None
    """Shape (n, k): whose logits they are; None where they are those of the whole vocabulary, in its order."""
    rest: torch.Tensor | None = None
    """Shape (n,): log Σ exp(logit / T) over all other tokens, at the temperature T of the loss; None with `ids`."""


def soft_loss(student: torch.Tensor, teacher: TokenLogits, temperature: float, divergence: Divergence) -> torch.Tensor:
    """T² times the divergence, meaned over the n places; `student` are logits of shape (n, vocabulary)."""
    log_q = torch.log_softmax(_wide(student) / temperature, dim=-1)
    given = _wide(teacher.logits) / temperature
    if teacher.ids is not None:
        assert teacher.rest is not None, "a part of the vocabulary comes with the rest"
        given = torch.cat([given, teacher.rest.to(given.dtype)[:, None]], dim=-1)
        log_q = with_rest(log_q, teacher.ids)
    log_p = torch.log_softmax(given, dim=-1)
    return temperature**2 * _DIVERGENCES[divergence](log_p, log_q).mean()


def with_rest(log_chances: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Shape (n, k + 1): the log-probabilities of `ids`, and of any other token; k is less than the vocabulary."""
    others = log_chances.scatter(-1, ids, -math.inf).logsumexp(dim=-1, keepdim=True)
    return torch.cat([log_chances.gather(-1, ids), others], dim=-1)


def state_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of (projected) states, both of shape (n, teacher's width)."""
    return (_wide(student) - _wide(teacher)).square().mean()


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32: sums over a vocabulary in 16 bits lose what distils."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _kl(log_a: torch.Tensor, log_b: torch.Tensor) -> torch.Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(dim=-1)


def _jensen_shannon(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_kl(log_p, log_m) + _kl(log_q, log_m)) / 2


_DIVERGENCES: Mapping[Divergence, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "forward_kl": _kl,
    "reverse_kl": lambda log_p, log_q: _kl(log_q, log_p),
    "jensen_shannon": _jensen_shannon,
}
