"""Which requests go together, and making the next batches while the device works on this one."""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from concurrent.futures import Future

    from mhe import Request

Made = TypeVar("Made")


def form_batches(requests: Sequence[Request], size: int) -> list[tuple[Request, ...]]:
    """The whole list in its order, in batches of `size`; one batch has one way of generating.

    They depend on the list and the size alone, so that a resumed run forms the same ones.
    """
    batches = []
    for _, group in itertools.groupby(requests, key=lambda request: request.generation):
        members = tuple(group)
        batches += [members[start : start + size] for start in range(0, len(members), size)]
    return batches


def pending_batches(requests: Sequence[Request], size: int, pending: Collection[str]) -> list[tuple[Request, ...]]:
    """The batches that hold a pending sample, whole: answered samples run again beside their old neighbours."""
    wanted = set(pending)
    return [batch for batch in form_batches(requests, size) if any(r.sample_id in wanted for r in batch)]


def made_ahead(
    batches: Sequence[tuple[Request, ...]], make: Callable[[tuple[Request, ...]], Made], ahead: int
) -> Iterator[Made]:
    """`make` of each batch, in order, `ahead` of them being made in one thread while the caller works."""
    if ahead == 0:
        yield from map(make, batches)
        return
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mhe-preprocess")
    waiting: deque[Future[Made]] = deque()
    coming = iter(batches)
    try:
        for batch in itertools.islice(coming, ahead):
            waiting.append(executor.submit(make, batch))
        while waiting:
            made = waiting.popleft().result()
            for batch in itertools.islice(coming, 1):
                waiting.append(executor.submit(make, batch))
            yield made
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
