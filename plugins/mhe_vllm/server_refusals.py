"""What a server's refusal means: for this sample, or for the whole run.

Refusals that every sample would meet end the run with what to set; the others are the sample's own error.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe import Failure

if TYPE_CHECKING:
    from mhe_vllm.server_connection import Reply
    from mhe_vllm.server_endpoint import Endpoint

TOO_LONG = re.compile(
    r"context[ _]?(length|window|size)|max_model_len|maximum model length|too long|too many (input |prompt )?tokens|"
    r"longer than the (maximum|model)|available context",
    flags=re.IGNORECASE,
)
NO_IMAGES = re.compile(
    r"not a multimodal model|not support (images?|multi-?modal|vision)|images? (inputs? )?(is|are) not supported|"
    r"at most \d+ image|mmproj",
    flags=re.IGNORECASE,
)
ABOUT_IMAGE = re.compile(r"image|multi-?modal|pixel", flags=re.IGNORECASE)
UNKNOWN_FIELD = re.compile(
    r"unsupported (parameter|value)|unrecognized request argument|unknown (parameter|field|name)|extra inputs|"
    r"extra_forbidden|cannot be greater than max_model_len",
    flags=re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ServerError:
    """What a server said of a refusal."""

    message: str
    code: str = ""
    param: str = ""


def error_of(body: bytes) -> ServerError:
    """The error in a body, in one of the shapes in use; the body itself where there is none."""
    text = body.decode("utf-8", "replace")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ServerError(text)
    if isinstance(found, dict):
        inner = found.get("error", found)
        if isinstance(inner, str):
            return ServerError(inner)
        if isinstance(inner, dict):
            for name in ("message", "detail"):
                said = inner.get(name)
                if said:
                    message = said if isinstance(said, str) else json.dumps(said)
                    return ServerError(message, str(inner.get("code") or ""), str(inner.get("param") or ""))
    return ServerError(text)


def end_of_run(reply: Reply, endpoint: Endpoint, model: str | None) -> str:
    """Why a refusal ends the run, with what to set; empty where it is the sample's own."""
    said = error_of(reply.body)
    words = endpoint.quoted(said.message) or "without a word"
    begin = f"{endpoint.url} refuses (status {reply.status}: {words})."
    if reply.status in (401, 403):
        state = "was refused" if endpoint.key else "is not set"
        return (
            f"{begin} The key in {endpoint.key_variable} {state}: export {endpoint.key_variable}=…, or name the "
            "variable that holds it: --set backend.key_variable=NAME"
        )
    if reply.status == 402 or said.code == "insufficient_quota":
        return f"{begin} The account has no credit left."
    if 300 <= reply.status < 400:
        return f"{begin} It points to {endpoint.quoted(reply.location) or 'nowhere'}: give that to --set backend.url"
    if reply.status in (404, 405):
        is_about_model = model is not None and "model" in said.message.lower()
        gone = f"It has no model {model!r} any more: --set backend.model=ID"
        elsewhere = "The address is that of another service; it mostly ends in /v1: --set backend.url=…/v1"
        return f"{begin} {gone if is_about_model else elsewhere}"
    is_about_request = reply.status in (400, 422) and model is not None
    return _mistake_of_settings(begin, said) if is_about_request else ""


def _mistake_of_settings(begin: str, said: ServerError) -> str:
    if NO_IMAGES.search(said.message):
        return (
            f"{begin} It takes no image, or not so many: serve a vision-language model, with vLLM "
            "--limit-mm-per-prompt '{\"image\": N}' for requests of N images."
        )
    if UNKNOWN_FIELD.search(said.message) or said.code in ("unsupported_parameter", "unsupported_value"):
        return (
            f"{begin} It does not take a setting of the request: see backend.limit_field and backend.extra_body "
            "(mhe show backends server), and --set generation.…"
        )
    return ""


def failure_of(reply: Reply, endpoint: Endpoint) -> Failure:
    """A refusal as the sample's error; a prompt that is too long is never cut."""
    said = error_of(reply.body)
    words = endpoint.quoted(said.message) or "without a word"
    if said.code == "context_length_exceeded" or TOO_LONG.search(said.message):
        return Failure("model", f"the prompt is beyond the model's context: {words}")
    if ABOUT_IMAGE.search(said.message):
        return Failure("model", f"the server refuses the image (status {reply.status}): {words}")
    return Failure("model", f"the server refuses the request (status {reply.status}): {words}")
