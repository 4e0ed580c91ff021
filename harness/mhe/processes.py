"""Several processes of one training, as `torchrun` and `accelerate launch` start them: who this one is.

Every process plans the step alike and takes part in the training. The first (rank 0) alone takes locks, writes and
speaks; the others wait until its checkpoint is there. All of them must see the folder of checkpoints.
"""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from mhe.errors import FirstProcessGoneError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

T = TypeVar("T")

GRACE_SECONDS = 30.0
"""How long the first process may hold no lock before it is taken for gone."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that were started together."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0


def launched_processes(environment: Mapping[str, str] | None = None) -> Processes:
    """What RANK and WORLD_SIZE say; one process where they are not set.

    Raises `UserError` for numbers that cannot be, and where `accelerate launch` was asked for several processes and
    started one, as it does with `--cpu`.
    """
    found = os.environ if environment is None else environment
    rank, count = found.get("RANK"), found.get("WORLD_SIZE")
    if count is None:
        # accelerate names a port for its processes only where it is asked for more than one.
        if "ACCELERATE_MIXED_PRECISION" in found and "MASTER_PORT" in found:
            raise UserError(
                "accelerate launch was asked for several processes and started only this one, as it does with --cpu. "
                "On CPUs: torchrun --nproc_per_node 2 -m mhe.cli.main tune …"
            )
        return Processes()
    try:
        processes = Processes(int(rank or "0"), int(count))
    except ValueError:
        processes = Processes(0, 0)
    if (rank is None and processes.count > 1) or not 0 <= processes.rank < processes.count:
        raise UserError(
            f"RANK={rank} and WORLD_SIZE={count} name no process of a group. Start it with torchrun, or unset both."
        )
    return processes


@contextmanager
def first_process_speaks() -> Iterator[None]:
    """In every process but the first, nothing written to stdout and stderr appears; errors leave the block as ever."""
    if launched_processes().is_first:
        yield
        return
    with ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123 - a device, no path of ours
        stack.enter_context(redirect_stdout(nowhere))
        stack.enter_context(redirect_stderr(nowhere))
        yield


def wait_for_first(find: Callable[[], T | None], is_at_work: Callable[[], bool], pause: float = 0.2) -> T:
    """What `find` returns, asked again while the first process is at work.

    Raises `FirstProcessGoneError` where it has not been at work for `GRACE_SECONDS` and there is nothing to be found.
    """
    last_seen = time.monotonic()
    while (found := find()) is None:
        if is_at_work():
            last_seen = time.monotonic()
        elif time.monotonic() - last_seen > GRACE_SECONDS:
            raise FirstProcessGoneError("the first process ended without a checkpoint; its own message says why.")
        time.sleep(pause)
    return found
