"""Sampling that does not depend on the batch: noise from each sample's own seed and the token's position.

Adding Gumbel noise to log-probabilities and taking the largest draws from the distribution (Gumbel 1954; Maddison et
al., A* Sampling, 2014). The noise of a token is a hash of seed, position and token, so that it is the same on every
device, in every order, and beside any neighbours. Temperature and top-p act before the noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from collections.abc import Sequence

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class SeededSampling(LogitsProcessor):
    """Turns greedy decoding into sampling, row by row.

    `seeds` has one seed a row, in the order of the batch; `prompt_length` is the padded length of the prompts (for
    an encoder-decoder, of what its decoder starts from), so that a position counts generated tokens only.
    """

    supports_continuous_batching = False

    def __init__(self, seeds: Sequence[int], *, temperature: float, top_p: float, prompt_length: int) -> None:
        self._seeds = list(seeds)
        self._temperature = temperature
        self._top_p = top_p
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores of shape (rows, vocabulary) whose largest entry is the sampled token."""
        position = input_ids.shape[1] - self._prompt_length
        shaped = within_top_p(scores.float() / self._temperature, self._top_p)
        noise = gumbel_noise(self._seeds, position, scores.shape[-1], scores.device)
        noisy: torch.FloatTensor = shaped + noise  # type: ignore[assignment]
        return noisy


def within_top_p(scores: torch.Tensor, top_p: float) -> torch.Tensor:
    """Scores with everything outside the smallest set of probability `top_p` at minus infinity (Holtzman 2020)."""
    if top_p >= 1.0:
        return scores
    ordered, order = scores.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return scores.masked_fill(dropped, float("-inf"))


def gumbel_noise(seeds: Sequence[int], position: int, vocabulary: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise of shape (len(seeds), vocabulary), float32, a function of seed, position and token."""
    # Apple's devices have no 64-bit floats.
    place = torch.device("cpu") if device.type == "mps" else device
    keys = torch.tensor([_signed(_scramble(_scramble(seed & _MASK) ^ position)) for seed in seeds], device=place)
    counters = torch.arange(1, vocabulary + 1, dtype=torch.int64, device=place) * _signed(_GOLDEN)
    bits = _scramble_tensor(keys[:, None] + counters[None, :])
    uniform = (_shift(bits, 11).double() + 0.5) * 2.0**-53
    return (-(-uniform.log()).log()).float().to(device)


def _scramble(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood 2014)."""
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def _scramble_tensor(value: torch.Tensor) -> torch.Tensor:
    """The same on 64-bit tensors, whose products wrap as unsigned ones do."""
    value = (value ^ _shift(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift(value, 31)


def _shift(value: torch.Tensor, places: int) -> torch.Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (value >> places) & ((1 << (64 - places)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
