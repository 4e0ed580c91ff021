"""How torch's threads wait on a CPU. Imports nothing, so that it can be used before torch is."""

from __future__ import annotations

import os


def let_waiting_threads_sleep() -> None:
    """Have OpenMP's threads sleep while they wait, unless the user has said otherwise (`OMP_WAIT_POLICY`).

    Spinning, they keep other threads, such as the one that prepares the next batch, off the processor: on two cores
    a small model was seen to answer 2 samples a second instead of 100. It has an effect before torch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
