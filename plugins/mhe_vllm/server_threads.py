"""Requests under way at once, each answer given as soon as it is there."""

from __future__ import annotations

import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mhe import Request, Response


def answer_at_once(
    requests: Sequence[Request], answer: Callable[[Request, threading.Event], Response], width: int
) -> Iterator[Response]:
    """Answers in the order in which they come, with `width` requests under way.

    The first exception of `answer` is raised after what is answered by then has been given. The event that `answer`
    is given is set in the end: what waits there is to return.
    """
    waiting: SimpleQueue[Request] = SimpleQueue()
    for request in requests:
        waiting.put(request)
    done: SimpleQueue[Response | BaseException] = SimpleQueue()
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            try:
                request = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put(answer(request, is_over))
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits for answers
                done.put(error)
                return

    # Daemons: one that waits for a slow server must not hold up Ctrl-C for minutes.
    threads = [
        threading.Thread(target=work, name=f"mhe-server-{number}", daemon=True)
        for number in range(min(width, len(requests)))
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in requests:
            found = done.get()
            if isinstance(found, BaseException):
                is_over.set()
                yield from _answered(done)
                raise found
            yield found
    finally:
        is_over.set()


def _answered(done: SimpleQueue[Response | BaseException]) -> Iterator[Response]:
    """Responses that are there already."""
    while True:
        try:
            found = done.get_nowait()
        except Empty:
            return
        if not isinstance(found, BaseException):
            yield found
