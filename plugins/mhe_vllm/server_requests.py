"""From a request to the body that a chat endpoint takes: messages in their order, images as data URLs."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from mhe import open_image

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe import Image, Message, Request
    from mhe_vllm.server_identity import Identity
    from mhe_vllm.server_options import ServerOptions

CACHED_BYTES = 64_000_000
PLAIN_FOR_VLLM = {"repetition_penalty": 1.0, "top_k": 0, "min_p": 0.0}
"""vLLM's server fills in what a request leaves out from the checkpoint's own generation settings: the task, not the
checkpoint, says how answers are generated. Other servers refuse fields that they do not know."""


class ImageUrls:
    """Data URLs of images: PNG of exactly the pixels that evaluation uses. Those last used are kept."""

    def __init__(self, most_bytes: int = CACHED_BYTES) -> None:
        self._most = most_bytes
        self._kept: OrderedDict[tuple[str, tuple[int, int] | None], str] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def url_of(self, image: Image) -> str:
        """The image as a `data:` URL. Raises `SampleDataError` where it cannot be read."""
        with self._lock:
            name = (image.source.digest(), image.resize)
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        buffer = io.BytesIO()
        # Without loss at any level; the lowest is the fastest.
        open_image(image).save(buffer, "PNG", compress_level=1)
        url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
        with self._lock:
            if name not in self._kept:
                self._kept[name] = url
                self._size += len(url)
            while self._size > self._most:
                _, oldest = self._kept.popitem(last=False)
                self._size -= len(oldest)
        return url


class BodyMaker:
    """Makes bodies for one model at one server."""

    def __init__(self, identity: Identity, options: ServerOptions) -> None:
        self._identity = identity
        self._options = options
        # As JSON knows it: a setting may be read as a date.
        self._extra = options.model_dump(mode="json")["extra_body"]
        self._urls = ImageUrls()

    def make(self, request: Request) -> bytes:
        """The body as JSON. Raises `SampleDataError` for an image that cannot be read."""
        return json.dumps(self._fields(request)).encode("ascii")

    def make_scored(self, request: Request, fields: Mapping[str, object], begun: str | None, tokens: int) -> bytes:
        """The same with more fields; `begun`, of so many tokens, is the beginning of the answer, where there is one.

        Raises as `make` does.
        """
        body = {**self._fields(request), **fields}
        body.pop("stream_options", None)
        if begun is not None:
            body["messages"] = [*self._messages(request), {"role": "assistant", "content": begun}]
            # One at least must be asked for.
            limit = body[self._options.limit_field]
            assert isinstance(limit, int)
            body[self._options.limit_field] = max(1, limit - tokens)
        return json.dumps(body).encode("ascii")

    def make_token(self, token: int) -> bytes:
        """A question that can be answered with one token only, for vLLM's server."""
        body: dict[str, object] = {
            "model": self._identity.model,
            "messages": [{"role": "user", "content": "?"}],
            "allowed_token_ids": [token],
            "temperature": 0.0,
            self._options.limit_field: 1,
        }
        return json.dumps({**body, **PLAIN_FOR_VLLM}).encode("ascii")

    def make_tokens(self, tokens: Sequence[int]) -> bytes:
        """Tokens whose text is wanted, for vLLM's server."""
        return json.dumps({"model": self._identity.model, "tokens": list(tokens)}).encode("ascii")

    def _fields(self, request: Request) -> dict[str, object]:
        asked, longest = request.generation, self._identity.max_model_len
        limit = asked.max_new_tokens if longest is None else min(asked.max_new_tokens, longest)
        body: dict[str, object] = {
            "model": self._identity.model,
            "messages": self._messages(request),
            self._options.limit_field: limit,
            "temperature": asked.temperature,
        }
        if asked.temperature > 0:
            body |= {"top_p": asked.top_p, "seed": request.seed}
        if asked.stop:
            body["stop"] = list(asked.stop)
        if self._options.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        if self._identity.is_vllm:
            body |= PLAIN_FOR_VLLM
        return {**body, **self._extra}

    def _messages(self, request: Request) -> list[dict[str, object]]:
        urls = [self._urls.url_of(image) for image in request.images]
        messages, first = [], 0
        for message in request.messages:
            messages.append({"role": message.role, "content": _content(message, urls[first : first + message.images])})
            first += message.images
        return messages


def _content(message: Message, urls: list[str]) -> object:
    if not urls:
        return message.text
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [*images, {"type": "text", "text": message.text}]
