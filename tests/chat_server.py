"""A real HTTP server on this machine that answers as OpenAI's chat endpoint does, and misbehaves on order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "org/med-vlm"


@dataclass
class Asked:
    """One chat request, as it arrived."""

    body: dict
    headers: dict[str, str]
    at: float


@dataclass
class Reply:
    """What to send back."""

    body: bytes | Callable[[], Iterator[bytes]] = b""
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """Content-Length where it is not the body's."""


def completion(text: object, *, model: str | None = MODEL, finish: str | None = "stop", **changes: object) -> dict:
    document = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 21, "completion_tokens": 3, "total_tokens": 24},
        **changes,
    }
    return {name: value for name, value in document.items() if value is not ...}


def answer(text: object, **changes: object) -> Reply:
    return Reply(json.dumps(completion(text, **changes)).encode())


def refusal(status: int, message: str, code: object = None, **headers: str) -> Reply:
    error = {"message": message, "type": "Error", "param": None, "code": code if code is not None else status}
    return Reply(json.dumps({"error": error}).encode(), status, headers=headers)


def events(pieces: list[str], *, model: str = MODEL, pause: float = 0.0, last: list[str] | None = None) -> Reply:
    """A stream: role first, then a piece an event, then how it ended, then usage."""

    def chunks() -> Iterator[bytes]:
        deltas = [({"role": "assistant", "content": ""}, None), *(({"content": piece}, None) for piece in pieces)]
        for delta, finish in [*deltas, ({}, "stop")]:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            yield _event(json.dumps({"model": model, "choices": [choice]}))
            time.sleep(pause)
        usage = {"prompt_tokens": 21, "completion_tokens": len(pieces)}
        yield from map(
            _event, [json.dumps({"model": model, "choices": [], "usage": usage}), "[DONE]"] if last is None else last
        )

    return Reply(chunks, content_type="text/event-stream; charset=utf-8")


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


def question_of(body: dict) -> str:
    """The text of the last message."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else next(part["text"] for part in content if part["type"] == "text")


def usual_answer(body: dict) -> str:
    """An answer that depends on all that was asked."""
    return hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()[:8]


class ChatServer:
    """`behave(number, body)` gives the reply to the chat request of this number, from 0 on, or None for the usual."""

    def __init__(self, behave: Callable[[int, dict], Reply | None] | None = None, port: int = 0) -> None:
        self.behave = behave or (lambda number, body: None)
        self.models = [{"id": MODEL, "object": "model", "created": 1, "owned_by": "us", "max_model_len": 4096}]
        self.models_reply: Reply | None = None
        self.version: dict | None = {"version": "1.2.3"}
        self.asked: list[Asked] = []
        self.places: list[str] = []
        self.connections = 0
        self.under_way = 0
        self.most_under_way = 0
        self.lock = threading.Lock()
        self._sockets: set = set()
        server = self

        class Http(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def get_request(self):
                connection, address = super().get_request()
                with server.lock:
                    server.connections += 1
                    server._sockets.add(connection)
                return connection, address

            def handle_error(self, request, client_address):
                """A client that has gone is no news."""

        self._http = Http(("127.0.0.1", port), _handler_of(self))
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def die(self) -> None:
        """As a killed process: the port is closed, and every connection reset."""
        self._http.shutdown()
        self._http.server_close()
        with self.lock:
            sockets, self._sockets = self._sockets, set()
        for connection in sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(2)
            connection.close()

    def note(self, body: dict, headers: dict[str, str]) -> int:
        with self.lock:
            self.asked.append(Asked(body, headers, time.monotonic()))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            return len(self.asked) - 1


def _handler_of(server: ChatServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments):
            """Silent."""

        def do_GET(self):
            server.places.append(self.path)
            if self.path == "/v1/models":
                self.reply(server.models_reply or Reply(json.dumps({"object": "list", "data": server.models}).encode()))
            elif self.path == "/version" and server.version is not None:
                self.reply(Reply(json.dumps(server.version).encode()))
            else:
                self.reply(Reply(b'{"detail": "Not Found"}', 404))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                self.reply(Reply(b'{"detail": "Not Found"}', 404))
                return
            number = server.note(body, dict(self.headers))
            try:
                self.reply(server.behave(number, body) or _usual(body))
            finally:
                with server.lock:
                    server.under_way -= 1

        def reply(self, reply: Reply) -> None:
            content = b"" if callable(reply.body) else reply.body
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            for name, value in reply.headers.items():
                self.send_header(name.replace("_", "-"), value)
            if callable(reply.body):
                self.send_header("Connection", "close")
                self.end_headers()
                for piece in reply.body():
                    self.wfile.write(piece)
                    self.wfile.flush()
                self.close_connection = True
                return
            self.send_header("Content-Length", str(len(content) if reply.length is None else reply.length))
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()
            if reply.length is not None:
                self.close_connection = True

    return Handler


def _usual(body: dict) -> Reply:
    return events(list(usual_answer(body))) if body.get("stream") else answer(usual_answer(body))


@contextlib.contextmanager
def serving(behave: Callable[[int, dict], Reply | None] | None = None, port: int = 0) -> Iterator[ChatServer]:
    server = ChatServer(behave, port)
    try:
        yield server
    finally:
        server.die()
