"""Which requests go together, and making the next batches while the device works on this one."""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from mhe import Request
    from mhe_hf.batch_size import BatchSize

Made = TypeVar("Made")

SAME_LENGTH = 4
"""Prompts whose lengths differ by fewer tokens than this keep their order."""


def form_batches(requests: Sequence[Request], size: int) -> list[tuple[Request, ...]]:
    """The whole list in its order, in batches of `size`; one batch has one way of generating.

    They depend on the list and the size alone, so that a resumed run forms the same ones.
    """
    batches = []
    for members in _alike(requests):
        batches += [members[start : start + size] for start in range(0, len(members), size)]
    return batches


def pending_batches(requests: Sequence[Request], size: int, pending: Collection[str]) -> list[tuple[Request, ...]]:
    """The batches that hold a pending sample, whole: answered samples run again beside their old neighbours."""
    wanted = set(pending)
    return [batch for batch in form_batches(requests, size) if any(r.sample_id in wanted for r in batch)]


def sized_batches(
    requests: Sequence[Request], size: BatchSize, length: Callable[[Request], float]
) -> Iterator[tuple[Request, ...]]:
    """Each request once, the longest prompts first, in batches of the size that holds when a batch is asked for.

    `length` is in tokens. The longest come first so that memory runs out at the start or not at all. Requests that show
    the same images stay together, the longest of them telling their place: they are opened, and where the model allows
    encoded, once.
    """
    for members in _alike(requests):
        steps = {request.sample_id: length(request) // SAME_LENGTH for request in members}
        longest: dict[Hashable, float] = {}
        first: dict[Hashable, int] = {}
        for place, request in enumerate(members):
            shown = _shown(request)
            longest[shown] = max(longest.get(shown, 0.0), steps[request.sample_id])
            first.setdefault(shown, place)

        def order(request: Request) -> tuple[float, int, float]:
            shown = _shown(request)
            return -longest[shown], first[shown], -steps[request.sample_id]  # noqa: B023 - used in this round alone

        ordered = deque(sorted(members, key=order))
        while ordered:
            yield tuple(ordered.popleft() for _ in range(min(size.rows, len(ordered))))


def _shown(request: Request) -> Hashable:
    """The images of a request; one without is alone."""
    return tuple((image.id, image.resize) for image in request.images) or request.sample_id


def _alike(requests: Sequence[Request]) -> Iterator[tuple[Request, ...]]:
    """Neighbours in the list that are generated in one way."""
    for _, group in itertools.groupby(requests, key=lambda request: request.generation):
        yield tuple(group)


def made_ahead(
    batches: Iterable[tuple[Request, ...]], make: Callable[[tuple[Request, ...]], Made], ahead: int
) -> Iterator[Made]:
    """`make` of each batch, in order, `ahead` of them being made in one thread while the caller works.

    A batch is taken from `batches` in the caller's thread, when there is room for it.
    """
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
