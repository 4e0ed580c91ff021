"""Stages of a training: which parameters each one trains, and at which step it ends.

Where vision, fusion and language live is the architecture table; the blocks of a module are found in the model.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator

from mhe import Part, UserError
from mhe_hf import MODULES, architecture_of, module_of
from mhe_hf.training.modules import Shares, set_trainable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from transformers import PreTrainedModel

    from mhe import Architecture

_PART = re.compile(rf"(?P<module>{'|'.join(MODULES)})(?::(?P<count>[1-9][0-9]*)(?:/(?P<of>[1-9][0-9]*))?)?")


class Stage(Part):
    """A stretch of a training."""

    trains: Annotated[tuple[str, ...], Field(min_length=1)]
    """`vision`, `fusion`, `language`, or the last blocks of one: `vision:4`, or a share of them, `vision:1/3`."""
    share: Annotated[float, Field(gt=0)] = 1.0
    """Of all steps, beside the other stages' shares."""

    @field_validator("trains")
    @classmethod
    def _parts_are_known(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        for part in parts:
            found = _PART.fullmatch(part)
            if found is None or (found["of"] and int(found["count"]) > int(found["of"])):
                raise ValueError(
                    f"{part!r} names no part of a model: give {', '.join(MODULES)}, or the last blocks of one, such as "
                    "vision:4 or vision:1/3"
                )
        modules = [part.partition(":")[0] for part in parts]
        if len(set(modules)) < len(modules):
            raise ValueError(f"each module once, and {', '.join(parts)} names one twice")
        return parts


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Stages with the parameters of a model and the steps of a training."""

    trained: tuple[frozenset[str], ...]
    """Names of the parameters that each stage trains."""
    ends: tuple[int, ...]
    """The step after which each stage is over; the last one's is the training's."""
    shares: Shares
    """Parameters that any stage trains."""
    lines: tuple[str, ...]
    """The plan for people, a line a stage."""

    @property
    def ever_trained(self) -> frozenset[str]:
        """Parameters of all stages together."""
        return frozenset().union(*self.trained)


def plan_stages(
    model: PreTrainedModel, stages: Sequence[Stage], steps: int, architectures: Mapping[str, Architecture]
) -> StagePlan:
    """Find the parameters of each stage, and let those that any stage trains require gradients, in place.

    Raises `UserError` where a stage would have no step or more blocks than there are, and what `set_trainable` raises.
    """
    modules = {part.partition(":")[0] for stage in stages for part in stage.trains}
    whole = set_trainable(model, {m: "full" for m in MODULES if m in modules}, architectures)
    architecture = architecture_of(str(model.config.model_type), architectures or None)
    trained = tuple(
        frozenset().union(*(parameters_of(model, part, architecture) for part in stage.trains)) for stage in stages
    )
    ever = frozenset().union(*trained)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in ever)
    counts = dict.fromkeys(MODULES, 0)
    for name in ever:
        counts[str(module_of(name, architecture))] += sizes[name]
    ends = stage_ends([stage.share for stage in stages], steps)
    lines = [
        f"stage {number}, steps {first + 1:,} to {last:,}: {', '.join(stage.trains)} "
        f"({sum(sizes[name] for name in names):,} parameters)"
        for number, (stage, names, (first, last)) in enumerate(
            zip(stages, trained, pairwise([0, *ends]), strict=True), 1
        )
    ]
    shares = Shares({module: (total, counts[module]) for module, (total, _) in whole.modules.items()})
    return StagePlan(trained, ends, shares, tuple(lines))


def stage_ends(shares: Sequence[float], steps: int) -> tuple[int, ...]:
    """The last step of each stage. Raises `UserError` where one would have none."""
    total = math.fsum(shares)
    ends = [round(steps * math.fsum(shares[: number + 1]) / total) for number in range(len(shares))]
    short = [number for number, (first, last) in enumerate(pairwise([0, *ends]), 1) if first == last]
    if short:
        raise UserError(
            f"{steps} steps are too few for {len(shares)} stages: stage {short[0]} would have none. Raise epochs, "
            "lower batch_size, or give fewer stages."
        )
    return tuple(ends)


def parameters_of(model: PreTrainedModel, part: str, architecture: Architecture) -> set[str]:
    """Names of the parameters of `vision`, or of the last blocks of it (`vision:4`, `vision:1/3`).

    With its last blocks goes what stands after the blocks (a last norm, a head), with the whole module what stands
    before (embeddings). A share of blocks is rounded up. Raises `UserError` for more blocks than there are.
    """
    found = _PART.fullmatch(part)
    assert found is not None, part
    module = found["module"]
    own = [name for name, _ in model.named_parameters() if module_of(name, architecture) == module]
    if found["count"] is None:
        return set(own)
    blocks = blocks_of(model, module, architecture)
    count = int(found["count"])
    if found["of"]:
        count = math.ceil(len(blocks) * count / int(found["of"]))
    if count > len(blocks) or not blocks:
        raise UserError(
            f"{part}: the {module} module of this {architecture.model_type} model has {len(blocks)} blocks. "
            f"Give {f'at most {module}:{len(blocks)}, or ' if blocks else ''}{module} for all of it."
        )
    home = {name: next((b for b in blocks if name.startswith(f"{b}.")), None) for name in own}
    first = next(number for number, name in enumerate(own) if home[name] is not None)
    last = set(blocks[len(blocks) - count :])
    return {name for number, name in enumerate(own) if home[name] in last or (home[name] is None and number > first)}


def blocks_of(model: torch.nn.Module, module: str, architecture: Architecture) -> list[str]:
    """Names of a module's blocks, from its input to its output: the members of its outermost lists of layers."""
    from torch.nn import ModuleList

    lists = [
        (name, found)
        for name, found in model.named_modules()
        if isinstance(found, ModuleList) and module_of(name, architecture) == module
    ]
    outer = [(n, f) for n, f in lists if not any(n.startswith(f"{other}.") for other, _ in lists)]
    return [f"{name}.{number}" for name, found in outer for number in range(len(found))]
