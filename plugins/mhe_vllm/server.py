"""The backend `server`: any OpenAI-compatible endpoint, asked over HTTP.

    mhe eval --model MODEL --backend server --set backend.url=http://127.0.0.1:8000/v1 --task TASK --reuse-unverified

- The weights cannot be seen. What the server tells of itself stands in their place, marked as unverified, and a run is
  gone on with, or used again, only with --reuse-unverified, from its first start on.
- The server applies its own chat template, image processor and limits. Prompts are those of the other backends where
  it uses the checkpoint's template; prompt_tokens, which every backend records, tell. A question that holds a control
  token of the model is refused by the other backends, and here read as the server reads it.
- Half a character at an answer's end is left out by vLLM's server, as by the other backends; a server of another kind
  may show a sign for it.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, ClassVar

from mhe import BackendDescription, Failure, ModelUnusableError, Response, SampleError
from mhe_vllm.server_answers import AnswerReader
from mhe_vllm.server_connection import HOW_TO_RESUME, Connection
from mhe_vllm.server_endpoint import find_endpoint
from mhe_vllm.server_identity import Identity, identify
from mhe_vllm.server_options import ServerOptions
from mhe_vllm.server_refusals import end_of_run, failure_of
from mhe_vllm.server_requests import BodyMaker
from mhe_vllm.server_threads import answer_at_once
from mhe_vllm.server_tokens import TokenScorer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from pydantic import BaseModel

    from mhe import BackendContext, ModelSpec, Request, TokenChance

VERSION = "1"
"""Raised when a change here can change an answer."""


class ServerBackend:
    """Asks one model at one server."""

    Options: ClassVar[type[BaseModel]] = ServerOptions
    takes_any_name: ClassVar[bool] = True

    def __init__(self, model: ModelSpec, options: BaseModel, context: BackendContext, /) -> None:
        del context
        self._spec = model
        self._options = ServerOptions.model_validate(options.model_dump())
        self._identity: Identity | None = None
        self._connection: Connection | None = None
        self._bodies: BodyMaker | None = None
        self._answers: AnswerReader | None = None
        self._tokens: TokenScorer | None = None
        self._lock = threading.Lock()
        self._known_breaks = 0
        self._preprocess_seconds = 0.0
        self._generate_seconds = 0.0

    @property
    def _model(self) -> str:
        return self._options.model or self._spec.location

    def describe(self) -> BackendDescription:
        """What the server tells of itself and its model, asked for once.

        Raises `ModelUnusableError` where no server is there or it does not serve the model, `UserError` for an
        address or a key that cannot be used, and `MissingExtraError` without httpx.
        """
        endpoint = find_endpoint(self._options)
        if self._identity is None:
            connection = Connection(endpoint, self._options)
            try:
                self._identity = identify(connection, self._model)
            finally:
                connection.close()
        return BackendDescription(
            name="server",
            version=f"server backend {VERSION}",
            fingerprint=self._identity.fingerprint,
            key_options=self._options.in_key(),
            neutral_options={**self._options.neutral(), **self._identity.shown},
        )

    def load(self) -> None:
        """Open the connection. Raises as `describe` does."""
        self.describe()
        assert self._identity is not None
        endpoint = find_endpoint(self._options)
        self._connection = Connection(endpoint, self._options)
        self._bodies = BodyMaker(self._identity, self._options)
        name = self._options.answers_as or self._identity.model
        self._answers = AnswerReader(endpoint, name, is_streamed=self._options.stream)
        self._tokens = TokenScorer(self._connection, self._identity, self._bodies, self._answers)

    def generate(self, requests: Sequence[Request], pending: Collection[str]) -> Iterator[Response]:
        """Answers of the pending requests as they come, `concurrency` requests at once.

        Raises `ModelUnusableError`, which ends the run, where the server is gone, refuses the key, or answers with
        another model; what was answered before is kept.
        """
        if self._connection is None:
            raise RuntimeError("generate was called before load")
        wanted = set(pending)
        asked = [request for request in requests if request.sample_id in wanted]
        started = time.perf_counter()
        try:
            yield from answer_at_once(asked, self._answer, self._options.concurrency)
        finally:
            self._generate_seconds += time.perf_counter() - started

    def _answer(self, request: Request, stop: threading.Event) -> Response:
        connection, bodies, answers, identity = self._connection, self._bodies, self._answers, self._identity
        assert connection is not None
        assert bodies is not None
        assert answers is not None
        assert identity is not None
        started = time.perf_counter()
        try:
            body = bodies.make(request)
            prepared = time.perf_counter() - started
            with self._lock:
                self._preprocess_seconds += prepared
            reply = connection.send("POST", f"{identity.url}/chat/completions", body, stop=stop)
            if reply.status != 200:
                reason = end_of_run(reply, connection.endpoint, identity.model)
                if reason:
                    raise ModelUnusableError(f"{reason} {HOW_TO_RESUME}")
                return Response(request.sample_id, error=failure_of(reply, connection.endpoint))
            self._check_identity(connection, identity)
            return answers.read(request, reply, prepared)
        except SampleError as error:
            return Response(request.sample_id, error=Failure(error.kind, str(error)))

    def _check_identity(self, connection: Connection, identity: Identity) -> None:
        """After a broken connection: a server that was started again may serve another model under the same name."""
        with self._lock:
            breaks = connection.breaks
            if breaks == self._known_breaks:
                return
            now = identify(connection, identity.model, is_patient=True)
            if now != identity:
                raise ModelUnusableError(
                    f"{identity.url} was interrupted and now tells something else of model {identity.model!r}: "
                    f"{dict(now.reported)}, before: {dict(identity.reported)}. What it answers now belongs to a run "
                    "of its own: start one."
                )
            self._known_breaks = breaks

    def next_tokens(self, request: Request, before: Sequence[int], most: int) -> Sequence[Sequence[TokenChance]]:
        """The likeliest tokens at each place of the answer, from vLLM's server; see `mhe.ScoresTokens`.

        Raises `SampleError` for another server, which does not tell them, and for a beginning that it cannot be given.
        """
        if self._tokens is None:
            raise RuntimeError("next_tokens was called before load")
        return self._tokens.next_tokens(request, before, most)

    def usage(self) -> Mapping[str, float]:
        """Seconds in which images were encoded (over all threads) and answers awaited, and requests under way."""
        return {
            "preprocess_seconds": self._preprocess_seconds,
            "generate_seconds": self._generate_seconds,
            "batch_size": float(self._options.concurrency),
        }

    def close(self) -> None:
        """End all connections."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
