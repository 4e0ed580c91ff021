"""Where the server is and with which key: read from options and environment, and shown without anything secret."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mhe import ModelUnusableError, UserError
from mhe_vllm.server_options import DEFAULT_KEY_VARIABLE, URL_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mhe_vllm.server_options import ServerOptions

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
HIDDEN = "[API key]"
SHOWN = 200
"""Characters of a server's words that a message quotes."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address without credentials, and the key."""

    url: str
    """Without a slash at its end."""
    key_variable: str
    key: str | None = field(repr=False)

    @property
    def root(self) -> str:
        """The address above `/v1`, where servers tell their version."""
        return self.url.removesuffix("/v1")

    @property
    def is_on_this_machine(self) -> bool:
        """A loopback address, to which no proxy leads."""
        return urlsplit(self.url).hostname in LOOPBACK

    def without_key(self, text: str) -> str:
        """A text of the server with the key, should it hold it, struck out."""
        return text.replace(self.key, HIDDEN) if self.key else text

    def quoted(self, content: bytes | str) -> str:
        """What came, as a message shows it: one line, cut, without the key."""
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
        # The key goes before the cut: half of it would not be recognised.
        line = " ".join(self.without_key(text).split())
        line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line)
        return line if len(line) <= SHOWN else line[:SHOWN] + "…"


def find_endpoint(options: ServerOptions, environment: Mapping[str, str] | None = None) -> Endpoint:
    """The endpoint that options and environment name.

    Raises `ModelUnusableError` where there is no address, and `UserError` for one that is none or holds credentials,
    and for a key that cannot be sent. No message shows a key.
    """
    known = os.environ if environment is None else environment
    given = options.url or known.get(URL_VARIABLE, "")
    if not given.strip():
        raise ModelUnusableError(
            f"backend server: no address. Give one: --set backend.url=http://127.0.0.1:8000/v1, or set {URL_VARIABLE}."
        )
    return Endpoint(_checked_url(given.strip()), options.key_variable, _find_key(options.key_variable, known))


def _checked_url(given: str) -> str:
    try:
        parts = urlsplit(given)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, is_address = urlsplit(""), False
    if "@" in given:
        raise UserError(
            "backend server: the address holds a user or a password, and addresses are written into records. Leave it "
            "out, and give the key in an environment variable: --set backend.key_variable=NAME"
        )
    if parts.query or parts.fragment:
        raise UserError(
            "backend server: the address ends in a query or a fragment ('?…', '#…'); give the base address alone, "
            "such as http://127.0.0.1:8000/v1"
        )
    if not is_address:
        raise UserError(f"backend server: {given!r} is no address; one looks like http://127.0.0.1:8000/v1")
    url = given.rstrip("/").removesuffix("/chat/completions")
    return f"{parts.scheme}://{parts.netloc.lower()}{urlsplit(url).path}".rstrip("/")


def _find_key(name: str, known: Mapping[str, str]) -> str | None:
    if not VARIABLE.fullmatch(name):
        # Not shown: whoever gives something else here gives the key itself.
        raise UserError(
            "backend server: backend.key_variable is the name of an environment variable (letters, digits and _), "
            f"and not the key: export {DEFAULT_KEY_VARIABLE}=…"
        )
    key = known.get(name, "").strip()
    if not key:
        if name != DEFAULT_KEY_VARIABLE:
            raise UserError(
                f"backend server: the variable {name} is not set, or empty; export {name}=… or leave "
                "backend.key_variable out"
            )
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"backend server: the content of {name} cannot be a key: it holds blanks or other characters")
    return key
