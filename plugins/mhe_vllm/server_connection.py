"""HTTP to one server: connections kept open, time limits, and sending again what failed in passing.

Failures of the connection are counted over all threads: when the server is gone, nobody can be answered, and the run
ends instead of failing sample by sample.
"""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from mhe import MissingExtraError, ModelUnusableError, SampleSystemError
from mhe_vllm.server_refusals import error_of

if TYPE_CHECKING:
    import httpx

    from mhe_vllm.server_endpoint import Endpoint
    from mhe_vllm.server_options import ServerOptions

PASSING = frozenset({408, 409, 425, 429})
"""Refusals that may be over when asked again; so may every 5xx."""
MOST_BYTES = 32_000_000
"""No answer is longer: what is comes from something that is no such server."""


class StoppedError(Exception):
    """The run ends: what waits for its turn does not go on."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, whatever its status."""

    status: int
    content_type: str
    body: bytes
    seconds: float
    """From sending to the last byte, of the attempt that was answered."""
    arrivals: tuple[tuple[int, float], ...] = ()
    """How many bytes were there after how many seconds, piece by piece."""
    retry_after: str = ""
    location: str = ""

    def seconds_at(self, place: int) -> float:
        """When the byte at this place had come."""
        return next((seconds for size, seconds in self.arrivals if size > place), self.seconds)


class Connection:
    """A client that several threads use."""

    def __init__(self, endpoint: Endpoint, options: ServerOptions) -> None:
        try:
            import httpx
        except ImportError as error:
            raise MissingExtraError("server", "backend server", error.name or "httpx") from None
        self.endpoint = endpoint
        self._options = options
        headers = {"Accept": "application/json, text/event-stream"}
        if endpoint.key:
            headers["Authorization"] = f"Bearer {endpoint.key}"
        limits = httpx.Limits(
            max_connections=options.concurrency + 1, max_keepalive_connections=options.concurrency + 1
        )
        limit = httpx.Timeout(options.read_timeout, connect=options.connect_timeout, pool=None)
        self._client = httpx.Client(
            headers=headers, timeout=limit, limits=limits, trust_env=not endpoint.is_on_this_machine
        )
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._last_break = 0.0
        self._in_a_row = 0
        self.breaks = 0
        """How often the connection broke."""

    def close(self) -> None:
        """End all connections."""
        self._client.close()

    def send(
        self,
        method: str,
        url: str,
        body: bytes | None = None,
        *,
        is_patient: bool = True,
        stop: threading.Event | None = None,
    ) -> Reply:
        """The server's reply, sent for again while it fails in passing.

        Raises `SampleSystemError` where it fails to the last, `ModelUnusableError` where the server is gone or asks
        to come back much later, `StoppedError` once `stop` is set. Without `is_patient` a connection that cannot be
        had means that no server is there.
        """
        import httpx

        stop = stop or threading.Event()
        for attempt in range(self._options.retries + 1):
            self._wait_for_turn(stop)
            started = time.perf_counter()
            try:
                reply = self._attempt(method, url, body, started, stop)
            except httpx.ReadTimeout:
                self._count_break(started, f"no whole answer within {self._options.read_timeout:g} s")
                # The server is at work, and would only have more of it.
                raise SampleSystemError(
                    f"no whole answer within {self._options.read_timeout:g} s (--set backend.read_timeout=SECONDS)"
                ) from None
            except httpx.DecodingError as error:
                raise SampleSystemError(f"the server's answer cannot be unpacked: {self._named(error)}") from None
            except httpx.TransportError as error:
                trouble = self._named(error)
                if not is_patient:
                    raise ModelUnusableError(self._absent(trouble)) from None
                self._count_break(started, trouble)
            else:
                with self._lock:
                    self._in_a_row = 0
                if not is_passing(reply):
                    return reply
                trouble = f"status {reply.status}: {self.endpoint.quoted(error_of(reply.body).message) or 'no words'}"
                if attempt < self._options.retries:
                    self._back_off(attempt, reply, stop)
        raise SampleSystemError(f"the server failed {self._options.retries + 1} times, at last with {trouble}")

    def _attempt(self, method: str, url: str, body: bytes | None, started: float, stop: threading.Event) -> Reply:
        import httpx

        headers = {} if body is None else {"Content-Type": "application/json"}
        with self._client.stream(method, url, content=body, headers=headers) as response:
            pieces: list[bytes] = []
            arrivals: list[tuple[int, float]] = []
            size = 0
            for piece in response.iter_bytes():
                seconds = time.perf_counter() - started
                size += len(piece)
                pieces.append(piece)
                arrivals.append((size, seconds))
                if stop.is_set():
                    raise StoppedError
                # The client's own limit is for each piece, and a server may send one a minute.
                if seconds > self._options.read_timeout:
                    raise httpx.ReadTimeout("too slow as a whole")
                if size > MOST_BYTES:
                    raise SampleSystemError(f"the server's answer is longer than {MOST_BYTES} bytes")
            return Reply(
                status=response.status_code,
                content_type=response.headers.get("content-type", ""),
                body=b"".join(pieces),
                seconds=time.perf_counter() - started,
                arrivals=tuple(arrivals),
                retry_after=response.headers.get("retry-after", ""),
                location=response.headers.get("location", ""),
            )

    def _named(self, error: httpx.RequestError) -> str:
        return self.endpoint.quoted(f"{type(error).__name__}: {error}".removesuffix(": "))

    # ------------------------------------------------------------ waiting

    def _wait_for_turn(self, stop: threading.Event) -> None:
        while (left := self._not_before - time.perf_counter()) > 0 and not stop.is_set():
            # Not all at one moment: a server that has just come back would be met by everyone.
            stop.wait(left * random.uniform(1.0, 1.25))
        if stop.is_set():
            raise StoppedError

    def _back_off(self, attempt: int, reply: Reply, stop: threading.Event) -> None:
        asked = seconds_asked(reply.retry_after)
        if asked is None:
            stop.wait(self._wait_after(attempt))
            return
        if asked > self._options.longest_wait:
            raise ModelUnusableError(
                f"{self.endpoint.url} asks to come back in {asked:.0f} s (status {reply.status}), and one wait may "
                f"take {self._options.longest_wait:g}: run again then, or --set backend.longest_wait={asked:.0f}. "
                + HOW_TO_RESUME
            )
        with self._lock:
            self._not_before = max(self._not_before, time.perf_counter() + asked)

    def _wait_after(self, attempt: int) -> float:
        whole = min(self._options.first_wait * 2.0 ** min(attempt, 60), self._options.longest_wait)
        return whole * random.uniform(0.5, 1.0)

    def _count_break(self, started: float, trouble: str) -> None:
        """Count a failed connection; those that were under way when one failed are the same failure."""
        now = time.perf_counter()
        with self._lock:
            self.breaks += 1
            if started < self._last_break:
                return
            self._last_break = now
            self._in_a_row += 1
            count = self._in_a_row
            self._not_before = max(self._not_before, now + self._wait_after(count - 1))
        if count >= self._options.give_up_after:
            raise ModelUnusableError(
                f"{self.endpoint.url} could not be reached {count} times in a row, at last with {trouble}. "
                "Start the server again. " + HOW_TO_RESUME
            )

    def _absent(self, trouble: str) -> str:
        return (
            f"no server answers at {self.endpoint.url} ({trouble}). Start it, or give another address: "
            "--set backend.url=http://HOST:PORT/v1"
        )


HOW_TO_RESUME = "What a run with --reuse-unverified has answered is kept, and the same command goes on from there."


def is_passing(reply: Reply) -> bool:
    """Whether asking again may help; not where money is wanted."""
    return reply.status >= 500 or (reply.status in PASSING and b"insufficient_quota" not in reply.body)


def seconds_asked(retry_after: str, now: datetime | None = None) -> float | None:
    """Seconds that a `Retry-After` header asks for, given in seconds or as a date; None where it says nothing."""
    text = retry_after.strip()
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = parsedate_to_datetime(text)
        except ValueError:
            return None
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds = (moment - (now or datetime.now(UTC))).total_seconds()
    return max(0.0, seconds) if seconds < float("inf") else None
