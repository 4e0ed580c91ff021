"""Means from sums."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]


def mean(total: FloatArray, count: FloatArray) -> FloatArray:
    """`total / count`, element by element, NaN where the count is 0."""
    import numpy as np

    quotient: FloatArray = np.divide(
        total, count, out=np.full(np.broadcast(total, count).shape, np.nan), where=np.asarray(count) > 0
    )
    return quotient
