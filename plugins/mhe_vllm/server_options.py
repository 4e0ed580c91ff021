"""Options of the backend `server`. What may change an answer is part of the run key; what may not says so."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic.config import JsonDict

from mhe import BackendOptions

_NEUTRAL: JsonDict = {"answer_neutral": True}
DEFAULT_KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
OWN_FIELDS = frozenset(
    {
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "model",
        "n",
        "seed",
        "stop",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
    }
)
"""Fields of a request's body that the task, the model's name or another option decides."""


class ServerOptions(BackendOptions):
    """Which server is asked, and how."""

    url: Annotated[str | None, Field(json_schema_extra=_NEUTRAL)] = None
    """Base address, such as http://127.0.0.1:8000/v1; the variable OPENAI_BASE_URL where empty. It is part of the
    fingerprint, without the slash at its end."""
    model: Annotated[str | None, Field(json_schema_extra=_NEUTRAL)] = None
    """The model's id at the server; the model's location where empty. It is part of the fingerprint."""
    answers_as: str | None = None
    """The model's name in the server's answers, where it is not the id: an alias may answer under its full name."""
    key_variable: Annotated[str, Field(json_schema_extra=_NEUTRAL)] = DEFAULT_KEY_VARIABLE
    """Name of the environment variable that holds the API key. The key itself is written nowhere."""
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Under which name the server takes the limit of generated tokens."""
    extra_body: dict[str, Any] = {}
    """More fields of each request's body, such as {repetition_penalty: 1.0}."""
    concurrency: Annotated[int, Field(ge=1, le=1024, json_schema_extra=_NEUTRAL)] = 16
    """Requests under way at once."""
    stream: Annotated[bool, Field(json_schema_extra=_NEUTRAL)] = False
    """Receive answers token by token, which tells the time to the first one."""
    connect_timeout: Annotated[float, Field(gt=0, json_schema_extra=_NEUTRAL)] = 10.0
    """Seconds until a connection must stand."""
    read_timeout: Annotated[float, Field(gt=0, json_schema_extra=_NEUTRAL)] = 600.0
    """Seconds until an answer must be there whole."""
    retries: Annotated[int, Field(ge=0, json_schema_extra=_NEUTRAL)] = 6
    """How often a request is sent again after 429, 5xx or a broken connection."""
    first_wait: Annotated[float, Field(gt=0, json_schema_extra=_NEUTRAL)] = 0.5
    """Seconds before the first of them; doubled each time."""
    longest_wait: Annotated[float, Field(gt=0, json_schema_extra=_NEUTRAL)] = 60.0
    """Seconds that one wait may take. A server that asks for more (Retry-After) ends the run, to be gone on with."""
    give_up_after: Annotated[int, Field(ge=1, json_schema_extra=_NEUTRAL)] = 6
    """Connections that may fail in a row, those of one moment counted once, before the run ends."""

    @field_validator("extra_body")
    @classmethod
    def _decides_nothing_twice(cls, body: dict[str, object]) -> dict[str, object]:
        taken = sorted(OWN_FIELDS & set(body))
        if taken:
            raise ValueError(
                f"{', '.join(taken)}: decided by the task (--set generation.…), the model or another option"
            )
        return body
