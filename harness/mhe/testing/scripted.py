"""Backend `scripted`: answers and fails as it is told to, and keeps what it was asked."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ConfigDict, Field

from mhe.digests import digest_of
from mhe.documents.base import Part
from mhe.errors import ErrorKind, ModelUnusableError, SampleError, UserError
from mhe.images import open_image
from mhe.predictions import read_predictions
from mhe.values import BackendDescription, Failure, Fingerprint, Response

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from mhe.documents.model import ModelSpec
    from mhe.protocols import BackendContext
    from mhe.values import Request

VERSION = "1"
_NEUTRAL: dict[str, Any] = {"answer_neutral": True}


class ScriptedOptions(Part):
    """What the backend answers, and how it misbehaves."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    answers: dict[str, str] = Field(default_factory=dict)
    """Answers by sample id."""
    answers_file: Path | None = None
    """More answers: a JSON object by sample id, or lines {"id": …, "prediction": …}."""
    answer: str = "yes"
    """What every other sample is answered."""
    echo: bool = False
    """Answer every other sample with the text of its prompt instead."""
    fail_on: dict[str, ErrorKind] = Field(default_factory=dict)
    """Sample ids that get an error of this kind instead of an answer."""
    order: Annotated[Literal["forward", "reverse", "shuffled"], Field(json_schema_extra=_NEUTRAL)] = "forward"
    """The order in which answers come."""
    delay_seconds: Annotated[float, Field(ge=0, json_schema_extra=_NEUTRAL)] = 0.0
    """Time each answer takes."""
    batch_size: Annotated[int, Field(ge=1, json_schema_extra=_NEUTRAL)] = 8
    """Answers that come at a time."""
    open_images: Annotated[bool, Field(json_schema_extra=_NEUTRAL)] = False
    """Decode every image first; one that cannot be read is its sample's error, as with a real model."""
    raise_after: Annotated[int | None, Field(ge=0, json_schema_extra=_NEUTRAL)] = None
    """Raise an exception after so many answers, as a backend does whose process dies."""


class ScriptedBackend:
    """Answers from its options; its fingerprint is the digest of what it would answer.

    `history` holds the requests it answered, in that order, and `events` the calls `load`, `generate`, `close`.
    """

    Options = ScriptedOptions

    def __init__(self, model: ModelSpec, options: ScriptedOptions, context: BackendContext) -> None:
        del model, context
        self._options = options
        self._answers: dict[str, str] | None = None
        self.history: list[Request] = []
        self.events: list[str] = []

    def describe(self) -> BackendDescription:
        """Fingerprint over the answers. Raises `ModelUnusableError` for an answers file that cannot be read."""
        options = self._options
        content = [self._all_answers(), options.answer, options.echo, options.fail_on]
        neutral = {"order", "delay_seconds", "batch_size", "open_images", "raise_after"}
        return BackendDescription(
            name="scripted",
            version=VERSION,
            fingerprint=Fingerprint(digest=digest_of(content), verified=True),
            key_options={"answer": options.answer, "echo": options.echo, "fail_on": dict(options.fail_on)},
            neutral_options=options.model_dump(mode="json", include=neutral),
            device="cpu",
            parameters=0,
        )

    def load(self) -> None:
        """Read the answers."""
        self.events.append("load")
        self._all_answers()

    def generate(self, requests: Sequence[Request], pending: Collection[str]) -> Iterator[Response]:
        """One response a pending request, in the order asked for. Raises `RuntimeError` after `raise_after`."""
        self.events.append("generate")
        wanted = frozenset(pending)
        ordered = [request for request in requests if request.sample_id in wanted]
        if self._options.order == "reverse":
            ordered.reverse()
        elif self._options.order == "shuffled":
            random.Random(0).shuffle(ordered)
        size = self._options.batch_size
        for first in range(0, len(ordered), size):
            start = time.perf_counter()
            batch = [self._respond(request) for request in ordered[first : first + size]]
            seconds = time.perf_counter() - start
            for request, (text, failure) in zip(ordered[first : first + size], batch, strict=True):
                if self._options.raise_after is not None and len(self.history) >= self._options.raise_after:
                    raise RuntimeError(f"scripted to fail after {self._options.raise_after} answers")
                self.history.append(request)
                yield Response(
                    sample_id=request.sample_id,
                    text=text,
                    error=failure,
                    prompt_tokens=sum(len(message.text.split()) for message in request.messages),
                    generated_tokens=len(text.split()) if text is not None else None,
                    finish_reason="stop" if text is not None else None,
                    seconds=seconds,
                )

    def usage(self) -> Mapping[str, float]:
        """The batch size; nothing else is measured."""
        return {"batch_size": float(self._options.batch_size)}

    def close(self) -> None:
        """Nothing is held."""
        self.events.append("close")

    def _respond(self, request: Request) -> tuple[str | None, Failure | None]:
        if self._options.delay_seconds:
            time.sleep(self._options.delay_seconds)
        if (kind := self._options.fail_on.get(request.sample_id)) is not None:
            return None, Failure(kind, "scripted to fail")
        if self._options.open_images:
            try:
                for image in request.images:
                    open_image(image)
            except SampleError as error:
                return None, Failure(error.kind, str(error))
        if (answer := self._all_answers().get(request.sample_id)) is not None:
            return answer, None
        return (request.messages[-1].text if self._options.echo else self._options.answer), None

    def _all_answers(self) -> dict[str, str]:
        if self._answers is None:
            path = self._options.answers_file
            self._answers = {**(_read_answers(path) if path is not None else {}), **self._options.answers}
        return self._answers


def _read_answers(path: Path) -> dict[str, str]:
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Lines, or a file that cannot be read: told apart below.
        whole = None
    is_line = isinstance(whole, dict) and set(whole) == {"id", "prediction"}
    if isinstance(whole, dict) and whole and not is_line and all(isinstance(text, str) for text in whole.values()):
        return whole
    try:
        return {line.id: line.text for line in read_predictions(path)}
    except UserError as error:
        raise ModelUnusableError(
            f"answers_file: {error}\nWrite one JSON object of sample ids to texts, or lines "
            '{"id": …, "prediction": …}.'
        ) from None
