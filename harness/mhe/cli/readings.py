"""How to read a value, in words: its direction and its range."""

from __future__ import annotations


def direction_text(higher_is_better: bool | None) -> str:
    """`higher is better`, `lower is better`, or that neither is."""
    if higher_is_better is None:
        return "no direction"
    return "higher is better" if higher_is_better else "lower is better"


def range_text(
    floor: float | None,
    ceiling: float | None,
    higher_is_better: bool | None,
    *,
    lowest: str = "−∞",
    highest: str = "∞",
) -> str:
    """From the smallest to the largest possible value, such as `0 to 1`, whichever of them is the better."""
    low, high = (ceiling, floor) if higher_is_better is False else (floor, ceiling)
    return f"{lowest if low is None else f'{low:g}'} to {highest if high is None else f'{high:g}'}"
