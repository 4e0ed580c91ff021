"""Which model a server says that it serves: what stands in the place of a content digest, marked as unverified."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from mhe import Fingerprint, ModelUnusableError, SampleSystemError, digest_of
from mhe_vllm.server_refusals import end_of_run, error_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mhe_vllm.server_connection import Connection

REPORTED = ("id", "root", "parent", "max_model_len", "owned_by")
"""What is kept of a listed model: the rest (when it was created, permissions) changes from one question to the next."""
SHOWN_MODELS = 20


@dataclass(frozen=True, slots=True)
class Identity:
    """A model at a server."""

    url: str
    model: str
    reported: Mapping[str, object]
    """`REPORTED`, as far as the server tells, and its `version`."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Digest over all of it: `verified` is false, for no content can be seen."""
        content = {"endpoint": self.url, "model": self.model, "reported": dict(self.reported)}
        return Fingerprint(digest=digest_of(content), verified=False)

    @property
    def shown(self) -> dict[str, object]:
        """What a record keeps of it; of folders on the server's machine their names alone."""
        return {
            "url": self.url,
            "model": _without_folders(self.model),
            "reported": {name: _without_folders(value) for name, value in self.reported.items()},
        }

    @property
    def is_vllm(self) -> bool:
        """Whether vLLM's own server answers."""
        return self.reported.get("owned_by") == "vllm"

    @property
    def max_model_len(self) -> int | None:
        """Context in tokens, where the server tells."""
        found = self.reported.get("max_model_len")
        return found if isinstance(found, int) and found > 0 else None


def _without_folders(value: object) -> object:
    is_path = isinstance(value, str) and PurePath(value).is_absolute()
    return f"…/{PurePath(str(value)).name}" if is_path else value


def identify(connection: Connection, model: str, *, is_patient: bool = False) -> Identity:
    """Ask the server for its models and its version.

    Raises `ModelUnusableError` where no server is there, it does not list its models, or not this one.
    """
    url = connection.endpoint.url
    listed = _listed_models(connection, is_patient=is_patient)
    found = listed.get(model)
    if found is None:
        raise ModelUnusableError(_unlisted(url, model, sorted(listed)))
    reported = {name: found[name] for name in REPORTED if isinstance(found.get(name), str | int)}
    version = _version(connection, is_patient=is_patient)
    return Identity(url, model, reported if version is None else {**reported, "version": version})


def _listed_models(connection: Connection, *, is_patient: bool) -> dict[str, dict[str, object]]:
    endpoint = connection.endpoint
    place = f"{endpoint.url}/models"
    try:
        reply = connection.send("GET", place, is_patient=is_patient)
    except SampleSystemError as error:
        raise ModelUnusableError(f"{place}: {error}") from None
    if reply.status != 200:
        raise ModelUnusableError(
            end_of_run(reply, endpoint, None)
            or f"{place}: status {reply.status}: {endpoint.quoted(error_of(reply.body).message)}"
        )
    try:
        rows = json.loads(reply.body)["data"]
        return {row["id"]: row for row in rows if isinstance(row["id"], str)}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ModelUnusableError(
            f"{place} gives no list of models: {endpoint.quoted(reply.body) or 'nothing'}. "
            "Is the address that of an OpenAI-compatible server, with its /v1?"
        ) from None


def _unlisted(url: str, model: str, listed: list[str]) -> str:
    close = difflib.get_close_matches(model, listed, n=1, cutoff=0.5)
    choice = close[0] if close else listed[0] if len(listed) == 1 else "ID"
    suggestion = f" Did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(listed[:SHOWN_MODELS]) or "none"
    more = f" and {len(listed) - SHOWN_MODELS} more" if len(listed) > SHOWN_MODELS else ""
    return (
        f"{url} serves no model {model!r}.{suggestion}\nIt serves: {shown}{more}.\n"
        f"Name one: --set backend.model={choice}"
    )


def _version(connection: Connection, *, is_patient: bool) -> str | None:
    """What `/version` says; None where there is no such place."""
    place = f"{connection.endpoint.root}/version"
    try:
        reply = connection.send("GET", place, is_patient=is_patient)
    except SampleSystemError as error:
        raise ModelUnusableError(f"{place}: {error}") from None
    if reply.status != 200:
        return None
    try:
        version = json.loads(reply.body)["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) else None
