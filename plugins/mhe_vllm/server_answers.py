"""From what a server sends to a response; whatever is not a whole answer of the right model says what came."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mhe import ModelUnusableError, Response, SampleError, SampleModelError, SampleSystemError
from mhe_vllm.server_endpoint import HIDDEN
from mhe_vllm.server_refusals import error_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mhe import Request
    from mhe_vllm.server_connection import Reply
    from mhe_vllm.server_endpoint import Endpoint

EVENT = b"data:"
LAST_EVENT = "[DONE]"


@dataclass(slots=True)
class Answer:
    """A completion, put together from one document or from many events."""

    text: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    generated_tokens: int | None = None
    first_token_seconds: float | None = None


class AnswerReader:
    """Reads the answers of one model."""

    def __init__(self, endpoint: Endpoint, name: str, *, is_streamed: bool) -> None:
        self._endpoint = endpoint
        self._name = name
        self._is_streamed = is_streamed

    def read(self, request: Request, reply: Reply, prepared_seconds: float) -> Response:
        """The response to a request.

        Raises `SampleSystemError` for anything but a whole answer, `SampleModelError` for one that was withheld,
        `ModelUnusableError` for the answer of another model.
        """
        answer = self._streamed(reply) if self._is_streamed else self._whole(reply)
        if answer.text is None:
            raise self._bad("the answer has no text", reply)
        if self._endpoint.key and self._endpoint.key in answer.text:
            raise SampleSystemError(f"the server's answer holds the key that it was sent ({HIDDEN})")
        text, reason = _cut(answer.text, request.generation.stop), self._reason(answer, reply)
        return Response(
            request.sample_id,
            text=text.strip(),
            prompt_tokens=answer.prompt_tokens,
            generated_tokens=answer.generated_tokens,
            finish_reason="stop" if text != answer.text else reason,
            seconds=prepared_seconds + reply.seconds,
            first_token_seconds=answer.first_token_seconds,
        )

    def document(self, reply: Reply, *, names_model: bool) -> dict[str, object]:
        """A whole JSON object, of this model where it must name one. Raises as `read` does."""
        self._check_kind(reply, "json")
        document = self._document(reply.body, reply)
        if names_model:
            self._check_name(document, reply)
        return document

    def _reason(self, answer: Answer, reply: Reply) -> Literal["stop", "length"]:
        if answer.finish_reason == "stop":
            return "stop"
        if answer.finish_reason == "length":
            return "length"
        if answer.finish_reason == "content_filter":
            raise SampleModelError("the server's content filter withheld the answer")
        raise self._bad(f"the answer ended for no reason that is known ({answer.finish_reason!r})", reply)

    def _bad(self, what: str, reply: Reply) -> SampleError:
        came = self._endpoint.quoted(reply.body)
        return SampleSystemError(f"{what}: {f'the server sent {came}' if came else 'the server sent nothing'}")

    def _check_kind(self, reply: Reply, wanted: str) -> None:
        if not reply.body.strip():
            raise self._bad("an empty answer", reply)
        if wanted not in reply.content_type.lower():
            kind = self._endpoint.quoted(reply.content_type) or "nothing"
            raise self._bad(f"an answer of content type {kind}, where {wanted} was asked for", reply)

    def _check_name(self, document: dict[str, object], reply: Reply) -> None:
        found = document.get("model")
        if not isinstance(found, str):
            raise self._bad("an answer that does not name its model", reply)
        if found != self._name:
            name = self._endpoint.quoted(found)
            raise ModelUnusableError(
                f"{self._endpoint.url} was asked for model {self._name!r}, and {name!r} answered. If that is another "
                f"name of the same model: --set backend.answers_as={name}"
            )

    # ------------------------------------------------------------ one document

    def _whole(self, reply: Reply) -> Answer:
        self._check_kind(reply, "json")
        document = self._document(reply.body, reply)
        self._check_name(document, reply)
        choice = self._choice(document, reply)
        if choice is None:
            raise self._bad("an answer without choices", reply)
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        answer = Answer(text if isinstance(text, str) else None, _text(choice.get("finish_reason")))
        _count(answer, document)
        return answer

    def _document(self, text: bytes | str, reply: Reply) -> dict[str, object]:
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            raise self._bad("an answer that is not whole JSON", reply) from None
        if not isinstance(document, dict):
            raise self._bad("an answer that is no JSON object", reply)
        return document

    def _choice(self, document: dict[str, object], reply: Reply) -> dict[str, object] | None:
        choices = document.get("choices")
        if not isinstance(choices, list):
            raise self._bad("an answer without choices", reply)
        if not choices:
            return None
        if not isinstance(choices[0], dict):
            raise self._bad("an answer whose choice is no object", reply)
        return choices[0]

    # ------------------------------------------------------------ many events

    def _streamed(self, reply: Reply) -> Answer:
        self._check_kind(reply, "text/event-stream")
        answer, is_whole = Answer(), False
        for place, event in _events(reply.body):
            if event == LAST_EVENT:
                is_whole = True
                break
            document = self._document(event, reply)
            if "error" in document:
                said = self._endpoint.quoted(error_of(event.encode()).message)
                raise SampleSystemError(f"the server ended its answer with an error: {said}")
            self._check_name(document, reply)
            self._add(answer, document, reply, place)
        if not is_whole:
            raise self._bad("a stream that ended before its end", reply)
        return answer

    def _add(self, answer: Answer, document: dict[str, object], reply: Reply, place: int) -> None:
        _count(answer, document)
        choice = self._choice(document, reply)
        if choice is None:
            return
        answer.finish_reason = _text(choice.get("finish_reason")) or answer.finish_reason
        delta = choice.get("delta")
        piece = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(piece, str):
            answer.text = (answer.text or "") + piece
            if piece and answer.first_token_seconds is None:
                answer.first_token_seconds = reply.seconds_at(place)


def _events(body: bytes) -> Iterator[tuple[int, str]]:
    """Content of each server-sent event, with the place of its last byte. Events here are of one line."""
    place = 0
    for line in body.split(b"\n"):
        place += len(line) + 1
        if line.startswith(EVENT):
            yield place - 2, line[len(EVENT) :].decode("utf-8", "replace").strip()


def _count(answer: Answer, document: dict[str, object]) -> None:
    usage = document.get("usage")
    if isinstance(usage, dict):
        answer.prompt_tokens = _number(usage.get("prompt_tokens"))
        answer.generated_tokens = _number(usage.get("completion_tokens"))


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _cut(text: str, stops: tuple[str, ...]) -> str:
    """The text before the first stop text, for servers that send that too."""
    cuts = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(cuts)] if cuts else text
