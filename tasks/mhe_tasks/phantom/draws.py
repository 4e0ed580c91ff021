"""Random draws that are the same on every machine.

Only the raw 64-bit stream of PCG64 is used, which NumPy keeps stable, and only integer arithmetic
on it: NumPy's own distributions may change between releases, and `exp` or `sin` differ in the last
bit between processors, which would change the digest of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
IntArray = NDArray[np.int32]

_MASK = (1 << 32) - 1


class Draws:
    """A stream of random integers that depends on a 64-bit seed alone."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def below(self, bound: int) -> int:
        """Return an integer in [0, bound); the bias is under bound / 2**32."""
        return ((int(self._bits.random_raw()) & _MASK) * bound) >> 32

    def between(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def one_of(self, choices: Sequence[T]) -> T:
        """Return one of the choices, each with equal probability."""
        return choices[self.below(len(choices))]

    def noise(self, height: int, width: int) -> IntArray:
        """Return bell-shaped noise of mean 0 and standard deviation 148, as a (height, width) array.

        Each value is a sum of four independent bytes: close to normal, and exact everywhere.
        """
        raw = np.atleast_1d(self._bits.random_raw((height * width + 1) // 2))
        words = raw.astype("<u8").view("<u4")[: height * width]
        pairs = (words & 0x00FF00FF) + ((words >> 8) & 0x00FF00FF)
        total: IntArray = ((pairs & 0xFFFF) + (pairs >> 16)).astype(np.int32) - 510
        return total.reshape(height, width)
