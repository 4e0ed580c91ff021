"""What `--task`, `--split`, `--limit`, `--fraction` and `--weight` of `mhe tune` say about the data that is learnt."""

from __future__ import annotations

import difflib
import math
from typing import TYPE_CHECKING

from mhe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.documents.pipeline import TrainingChoice


def read_choices(
    tasks: Sequence[str], split: str | None, limit: int | None, fraction: float | None, weights: Sequence[str]
) -> tuple[TrainingChoice, ...]:
    """A choice for each task, in their order. Raises `UserError` listing all that cannot be used."""
    from mhe.documents.pipeline import TrainingChoice

    names = tuple(dict.fromkeys(tasks))
    given = {"--split": split, "--limit": limit, "--fraction": fraction, "--weight": weights or None}
    lacking = [option for option, value in given.items() if value is not None]
    if lacking and not names:
        verb = "is" if len(lacking) == 1 else "are"
        raise UserError(f"{', '.join(lacking)} {verb} of the data that --task names: give --task as well.")
    problems = []
    if limit is not None and limit < 1:
        problems.append(f"--limit {limit}: give 1 or more, or leave it out")
    if fraction is not None and not 0 < fraction <= 1:
        problems.append(f"--fraction {fraction:g}: give more than 0 and at most 1, such as 0.01 for one in a hundred")
    found, more = _read_weights(weights, names)
    problems += more
    if problems:
        raise UserError("\n".join(problems))
    share = 1.0 if fraction is None else fraction
    return tuple(
        TrainingChoice(task=name, split=split, limit=limit, fraction=share, weight=found.get(name, 1.0))
        for name in names
    )


def _read_weights(weights: Sequence[str], tasks: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """`TASK=NUMBER` as task to number, and what is wrong with the others."""
    found: dict[str, float] = {}
    problems = []
    for given in weights:
        # A task may be a path, and paths may have the sign in them.
        task, _, text = (part.strip() for part in given.rpartition("="))
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not task:
            problems.append(f"--weight {given}: write TASK=NUMBER, such as {tasks[0]}=2")
        elif task not in tasks:
            close = difflib.get_close_matches(task, tasks, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            problems.append(f"--weight {given}: no --task {task!r} is learnt.{hint} Learnt: {', '.join(tasks)}")
        elif task in found:
            problems.append(f"--weight {given}: the weight of {task} is given twice")
        elif not 0 < weight < math.inf:
            problems.append(f"--weight {given}: give a number above 0; each sample is seen so often in an epoch")
        else:
            found[task] = weight
    return found, problems
