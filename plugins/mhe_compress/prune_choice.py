"""How many units leave a block, and which: ratios to legal numbers, scores to indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mhe import UserError
from mhe_compress.blocks import Block, Heads, Neurons, key_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

Grouping = Literal["auto", "within", "whole"]
"""With grouped-query attention: equally many heads leave each group, or whole groups leave; `auto` is the nearer."""


@dataclass(frozen=True, slots=True)
class Count:
    """What a block keeps."""

    units: int
    """Query heads, or neurons."""
    key_value_heads: int = 0
    """0 for neurons."""

    def takes_whole_groups(self, block: Block) -> bool:
        """Whether key and value heads leave as well."""
        return isinstance(block, Heads) and self.key_value_heads < block.key_value_heads


@dataclass(frozen=True, slots=True)
class Kept:
    """Which units stay, in their old order."""

    units: tuple[int, ...]
    key_value_heads: tuple[int, ...] = ()


WIDE = 1024
"""Neurons from which on a layer can afford a coarse step."""


def step_of(width: int, multiple: int | None) -> int:
    """What the width of a feed-forward network is a multiple of, afterwards."""
    if multiple is None:
        multiple = 64 if width >= WIDE else 8
    return multiple if width > multiple else 1


def legal_count(block: Block, ratio: float, grouping: Grouping = "auto", multiple: int | None = None) -> Count:
    """The legal number nearest to what this ratio leaves; of two equally near ones the larger.

    Raises `UserError` where that is none at all.
    """
    wanted = block.units * (1 - ratio)
    if isinstance(block, Heads):
        return _nearest_heads(block, ratio, wanted, grouping)
    step = step_of(block.width, multiple)
    nearest = min({*range(step, block.width + 1, step), block.width}, key=lambda width: (abs(width - wanted), -width))
    if wanted < 0.5:
        raise UserError(_leaves_none(block, ratio, "neuron", 1 - nearest / block.width))
    return Count(block.width if ratio == 0 else nearest)


def _nearest_heads(block: Heads, ratio: float, wanted: float, grouping: Grouping) -> Count:
    whole = [Count(groups * block.group, groups) for groups in range(1, block.key_value_heads + 1)]
    within = [Count(heads * block.key_value_heads, block.key_value_heads) for heads in range(1, block.group + 1)]
    choices = {"auto": [*within, *whole], "within": within, "whole": whole}[grouping]
    if grouping == "within" and block.group == 1:
        # Every head is a group of its own: there is only one way.
        choices = whole
    nearest = min(choices, key=lambda count: (abs(count.units - wanted), -count.units, -count.key_value_heads))
    if wanted < 0.5:
        fewest = min(choice.units for choice in choices)
        raise UserError(_leaves_none(block, ratio, "head", 1 - fewest / block.heads))
    return nearest


def _leaves_none(block: Block, ratio: float, what: str, most: float) -> str:
    return (
        f"a ratio of {ratio:g} leaves no {what} of the {block.units} of {block.name}: at most {most:.4g} can leave, "
        f"such as 0.3."
    )


def choose_units(block: Block, count: Count, scores: torch.Tensor) -> Kept:
    """The units with the highest scores, in their old order; of equal ones the first.

    With grouped-query attention the weakest heads of every group leave, or the weakest groups.
    """
    if isinstance(block, Neurons):
        return Kept(_best(scores, range(block.width), count.units))
    if not count.takes_whole_groups(block):
        each = count.units // block.key_value_heads
        groups = [range(start, start + block.group) for start in range(0, block.heads, block.group)]
        kept = [unit for group in groups for unit in _best(scores, group, each)]
        return Kept(tuple(kept), tuple(range(block.key_value_heads)))
    by_group = scores.reshape(block.key_value_heads, block.group).sum(1)
    own = _best(by_group, range(block.key_value_heads), count.key_value_heads)
    return Kept(tuple(head for one in own for head in range(one * block.group, (one + 1) * block.group)), own)


def _best(scores: torch.Tensor, units: Sequence[int], number: int) -> tuple[int, ...]:
    values = scores.tolist()
    return tuple(sorted(sorted(units, key=lambda unit: (-values[unit], unit))[:number]))


def describe_counts(blocks: Sequence[Block], counts: Mapping[str, Count], asked: Mapping[str, float]) -> list[str]:
    """Sentences: for each kind of block its number before and after, and where that is not what was asked for."""
    lines = []
    for module in dict.fromkeys(block.place.module for block in blocks):
        for kind, noun in ((Heads, "heads"), (Neurons, "neurons")):
            own = [block for block in blocks if block.place.module == module and isinstance(block, kind)]
            if own:
                lines.append(_sentence(f"{module} {noun}", own, counts, asked.get(f"{module} {noun}")))
    return lines


def _sentence(name: str, blocks: Sequence[Block], counts: Mapping[str, Count], asked: float | None) -> str:
    before = sum(block.units for block in blocks)
    after = sum(counts[key_of(block)].units for block in blocks)
    if before == after:
        return f"{name}: none taken out"
    pairs = {(block.units, counts[key_of(block)].units) for block in blocks}
    if len(pairs) == 1:
        was, left = pairs.pop()
        how = f"{was} to {left} in each of {len(blocks)} layers"
    else:
        lefts = [counts[key_of(block)].units for block in blocks]
        how = f"{before} to {after} over {len(blocks)} layers, {min(lefts)} to {max(lefts)} in one"
    share = 1 - after / before
    wanted = "" if asked is None else f"; {asked:.4g} was asked for"
    if asked is not None and abs(share - asked) > 1e-9:
        wanted += ", and this is the nearest legal number"
    first = blocks[0]
    groups = ""
    if isinstance(first, Heads) and first.group > 1:
        whole = counts[key_of(first)].takes_whole_groups(first)
        groups = ", whole groups of grouped-query attention" if whole else ", equally many of every key-value group"
    return f"{name}: {how}{groups} ({share:.4g} taken out{wanted})"
