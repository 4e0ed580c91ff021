"""How close the choice of each token was, as vLLM's own server tells it.

Other servers tell the likeliest tokens by their text alone, and two tokens may have one text. vLLM's tells their
numbers, and turns numbers into text. An answer is made to begin with given tokens by handing their text back as the
beginning of the assistant's turn: the chat template and the tokenizer may make other tokens of it, so that the server
is asked which ones it read.
"""

from __future__ import annotations

import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe import ModelUnusableError, SampleModelError, SampleSystemError, TokenChance
from mhe_vllm.server_connection import HOW_TO_RESUME
from mhe_vllm.server_refusals import end_of_run, failure_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe import Request
    from mhe_vllm.server_answers import AnswerReader
    from mhe_vllm.server_connection import Connection, Reply
    from mhe_vllm.server_identity import Identity
    from mhe_vllm.server_requests import BodyMaker

MOST_TOLD = 20
"""Tokens a place that vLLM's server tells unless it is started with --max-logprobs."""
HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"
CONTROL = re.compile(r"\s*[<\[].*[>\]]\s*", flags=re.DOTALL)
"""How a token may look that is no text or ends an answer; the server is asked about each."""
NUMBER = re.compile(r"token_id:(\d+)")
THREADS = 8
IMPOSSIBLE = -9999.0
"""What the server tells for a token of no probability."""

Chances = list[tuple[int, float]]
"""Tokens and their log-probabilities, likeliest first."""


@dataclass(frozen=True, slots=True)
class _Told:
    prompt: tuple[int, ...]
    """Tokens that the server read."""
    given: list[Chances]
    """At the last places of the prompt."""
    written: list[Chances]
    """At each place that was generated."""


class TokenScorer:
    """Asks one model at one server. For one thread."""

    def __init__(self, connection: Connection, identity: Identity, bodies: BodyMaker, answers: AnswerReader) -> None:
        self._connection = connection
        self._identity = identity
        self._bodies = bodies
        self._answers = answers
        self._texts: dict[tuple[int, ...], str] = {}
        self._kinds: dict[int, tuple[bool, bool]] = {}
        self._prompt: tuple[str, tuple[int, ...]] | None = None

    def next_tokens(self, request: Request, before: Sequence[int], most: int) -> list[list[TokenChance]]:
        """See `mhe.ScoresTokens`; at most `MOST_TOLD` tokens a place.

        Raises `SampleModelError` where the server does not tell them, or cannot be made to begin with `before`.
        """
        if not self._identity.is_vllm:
            raise SampleModelError(
                f"{self._identity.url} does not tell tokens by their numbers, as vLLM's own server does: compare with "
                "a reference that runs here, such as --backends hf:1,server"
            )
        told = min(most, MOST_TOLD)
        places = self._forced(request, tuple(before), told) if before else self._free(request, told).written
        if not places:
            raise SampleSystemError(f"{self._identity.url} tells no log-probabilities")
        return self._chances(places, before, told)

    # ------------------------------------------------------------ asking

    def _free(self, request: Request, told: int) -> _Told:
        found = self._ask(request, told, {}, ())
        self._prompt = request.digest, found.prompt
        return found

    def _forced(self, request: Request, before: tuple[int, ...], told: int) -> list[Chances]:
        if self._prompt is None or self._prompt[0] != request.digest:
            self._free(request, told)
        assert self._prompt is not None
        prompt = self._prompt[1]
        room = max(0, request.generation.max_new_tokens - len(before))
        text = self._text(before)
        fields = {"add_generation_prompt": False, "continue_final_message": True, "prompt_logprobs": told}
        # Templates differ in whether they write the blank before an answer.
        for begun in filter(None, dict.fromkeys((text, text.strip()))):
            found = self._ask(request, told, fields, before, begun)
            if found.prompt == prompt + before:
                return [*found.given, *found.written[:room]]
        raise SampleModelError(
            f"the server cannot be made to begin its answer with {text!r}: its chat template or tokenizer makes other "
            "tokens of it"
        )

    def _ask(
        self, request: Request, told: int, fields: Mapping[str, object], before: Sequence[int], begun: str = ""
    ) -> _Told:
        asked = {
            "stream": False,
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": told,
            "return_tokens_as_token_ids": True,
            "return_token_ids": True,
            **fields,
        }
        body = self._bodies.make_scored(request, asked, begun or None, len(before))
        document = self._post(f"{self._identity.url}/chat/completions", body)
        return self._read(document, before, told)

    def _read(self, document: dict[str, object], before: Sequence[int], told: int) -> _Told:
        try:
            prompt = tuple(int(token) for token in document["prompt_token_ids"])  # type: ignore[attr-defined]
            content = document["choices"][0]["logprobs"]["content"] or []  # type: ignore[index]
            written = [_of_content(place) for place in content]
            is_as_asked = bool(before) and prompt[-len(before) :] == tuple(before)
            rows = document["prompt_logprobs"][-len(before) :] if is_as_asked else []  # type: ignore[index]
            given = [_of_prompt(row, token, told) for row, token in zip(rows, before, strict=False)]
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise SampleSystemError(
                f"{self._identity.url} was asked for log-probabilities and token numbers, and does not tell them"
            ) from None
        return _Told(prompt, given, written)

    def _post(self, url: str, body: bytes) -> dict[str, object]:
        reply: Reply = self._connection.send("POST", url, body)
        if reply.status != 200:
            reason = end_of_run(reply, self._connection.endpoint, self._identity.model)
            if reason:
                raise ModelUnusableError(f"{reason} {HOW_TO_RESUME}")
            raise SampleModelError(failure_of(reply, self._connection.endpoint).message)
        return self._answers.document(reply, names_model=url.endswith("/completions"))

    # ------------------------------------------------------------ texts

    def _chances(self, places: list[Chances], before: Sequence[int], most: int) -> list[list[TokenChance]]:
        tokens = sorted({token for place in places for token, _ in place})
        with ThreadPoolExecutor(THREADS, "mhe-tokens") as pool:
            list(pool.map(self._kind, tokens))
            written: list[tuple[int, ...]] = [()]
            for number, place in enumerate(places[:-1]):
                chosen = before[number] if number < len(before) else place[0][0]
                written.append((*written[-1], chosen))
            wanted = {
                self._words((*so_far, token))
                for so_far, place in zip(written, places, strict=True)
                for token, _ in place
            }
            list(pool.map(self._text, wanted))
        return [
            [self._chance(token, chance, so_far) for token, chance in place[:most]]
            for so_far, place in zip(written, places, strict=True)
        ]

    def _chance(self, token: int, chance: float, so_far: tuple[int, ...]) -> TokenChance:
        is_end = self._kind(token)[0]
        text = self._text(self._words((*so_far, token)))
        return TokenChance(
            id=token,
            token=self._text((token,)),
            log_probability=chance,
            # A character that is begun may be ended by the next token, so it is shown; not where there is none.
            text=text.rstrip(HALF_CHARACTER) if is_end else text,
            is_end=is_end,
        )

    def _words(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Without tokens that are no text."""
        return tuple(token for token in tokens if not self._kind(token)[1])

    def _text(self, tokens: tuple[int, ...]) -> str:
        if tokens and tokens not in self._texts:
            body = self._bodies.make_tokens(tokens)
            told = self._post(f"{self._connection.endpoint.root}/detokenize", body).get("prompt")
            if not isinstance(told, str):
                raise SampleSystemError(f"{self._connection.endpoint.root}/detokenize gives no text")
            self._texts[tokens] = told
        return self._texts[tokens] if tokens else ""

    def _kind(self, token: int) -> tuple[bool, bool]:
        """Whether a token ends an answer, and whether it is no text."""
        if token not in self._kinds:
            is_control = CONTROL.fullmatch(self._text((token,))) is not None
            self._kinds[token] = self._asked_kind(token) if is_control else (False, False)
        return self._kinds[token]

    def _asked_kind(self, token: int) -> tuple[bool, bool]:
        document = self._post(f"{self._identity.url}/chat/completions", self._bodies.make_token(token))
        try:
            choice = document["choices"][0]  # type: ignore[index]
            return choice["finish_reason"] == "stop", not choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            raise SampleSystemError(f"{self._identity.url} does not tell what token {token} is") from None


def _of_content(place: Mapping[str, object]) -> Chances:
    """What a place of `logprobs` tells; of equal tokens the one that was chosen first."""
    chosen = _number(place["token"])
    others = {_number(row["token"]): float(row["logprob"]) for row in place["top_logprobs"]}  # type: ignore[attr-defined]
    found = {chosen: float(place["logprob"]), **others}  # type: ignore[arg-type]
    return _sorted(found, chosen)


def _of_prompt(row: Mapping[str, Mapping[str, float]], token: int, most: int) -> Chances:
    """What a place of `prompt_logprobs` tells, with the token that stands there."""
    found = _sorted({int(name): float(told["logprob"]) for name, told in row.items()}, None)
    kept = found[:most]
    return (
        kept
        if any(name == token for name, _ in kept)
        else [*kept[: most - 1], (token, float(row[str(token)]["logprob"]))]
    )


def _sorted(found: Mapping[int, float], chosen: int | None) -> Chances:
    possible = {token: chance for token, chance in found.items() if math.isfinite(chance) and chance > IMPOSSIBLE}
    return sorted(possible.items(), key=lambda item: (-item[1], item[0] != chosen))


def _number(token: object) -> int:
    found = NUMBER.fullmatch(str(token))
    if found is None:
        raise ValueError(token)
    return int(found[1])
