"""What a backend must keep that can do more than answer: tell how close tokens were, show prompts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from mhe.backend_abilities import RendersPrompts, ScoresTokens
from mhe.errors import SampleError
from mhe.images import BytesSource
from mhe.testing.contracts import require
from mhe.values import Image, TokenChance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mhe.protocols import ModelBackend
    from mhe.values import Request, Response

MOST = 3
ASKED = 2
"""Requests whose tokens are looked at: each is generated again several times."""
CLOSE = 1e-3
"""How far log-probabilities of one place may lie apart when it is computed again."""


def check_rendering(backend: ModelBackend, requests: Sequence[Request]) -> list[str | None]:
    """Prompts, as told before `load()`; nothing of a backend that cannot show them."""
    if not isinstance(backend, RendersPrompts):
        return []
    texts: list[object] = [backend.render_prompt(request) for request in requests]
    told = [text for text in texts if text is None or isinstance(text, str)]
    require(len(told) == len(texts), "render_prompt() returns a text, or None for a model that reads none")
    return told


def check_tokens(backend: ModelBackend, requests: Sequence[Request], whole: Mapping[str, Response]) -> None:
    """The scores of tokens against the answers of the same loaded backend, where it tells scores."""
    if not isinstance(backend, ScoresTokens):
        return
    answered = [r for r in requests if whole[r.sample_id].text is not None and r.generation.temperature <= 0]
    for request in answered[:ASKED]:
        _check_request(backend, request, whole[request.sample_id])
    for request in answered[:1]:
        _check_refusal(backend, request)


def _check_request(backend: ScoresTokens, request: Request, response: Response) -> None:
    name = request.sample_id
    places = _checked_places(backend.next_tokens(request, (), MOST), MOST, name)
    require(
        0 < len(places) <= request.generation.max_new_tokens,
        f"next_tokens() has a place for each token of the answer: {name} has {len(places)}, "
        f"of {request.generation.max_new_tokens} at most",
    )
    if response.generated_tokens is not None and not request.generation.stop:
        require(
            len(places) == response.generated_tokens,
            f"next_tokens() has a place for each token that generate() counts: {name} has {len(places)}, "
            f"and generated_tokens is {response.generated_tokens}",
        )
    if not request.generation.stop:
        told = _whole(places[-1][0].text)
        require(
            told == _whole(response.text or ""),
            f"the likeliest tokens of next_tokens() are the greedy answer: {name} has {told!r}, not {response.text!r}",
        )
    ends = [number for number, place in enumerate(places[:-1]) if place[0].is_end]
    require(not ends, f"next_tokens() ends where the answer does: {name} goes on after a token with is_end")
    alone = _checked_places(backend.next_tokens(request, (), 1), 1, name)
    _require_same(
        [place[:1] for place in places], alone, f"next_tokens() of one token a place is the likeliest: {name}"
    )
    if len(places[0]) > 1 and not places[0][1].is_end:
        _check_forced(backend, request, places)


def _check_forced(backend: ScoresTokens, request: Request, places: list[list[TokenChance]]) -> None:
    """The answer is made to begin as it would not."""
    other = places[0][1]
    forced = _checked_places(backend.next_tokens(request, (other.id,), MOST), MOST, request.sample_id)
    where = f"next_tokens() with `before` counts places from the answer's first token: {request.sample_id}"
    _require_same(places[:1], forced[:1], where)
    if len(forced) > 1:
        begun = _whole(other.text)
        kept = [chance.text.strip() for chance in forced[1] if not chance.is_end]
        require(
            all(text.startswith(begun) for text in kept),
            f"next_tokens() goes on from `before`: {request.sample_id} was made to begin with {begun!r}, "
            f"and its second place tells {kept}",
        )


def _checked_places(told: Sequence[Sequence[TokenChance]], most: int, name: str) -> list[list[TokenChance]]:
    places = [list(place) for place in told]
    for number, place in enumerate(places):
        where = f"{name}, place {number}"
        require(0 < len(place) <= most, f"next_tokens() tells 1 to `most` tokens a place: {where} has {len(place)}")
        require(
            all(isinstance(chance, TokenChance) for chance in place),
            f"next_tokens() tells TokenChance: {where} has {[type(chance).__name__ for chance in place]}",
        )
        chances = [chance.log_probability for chance in place]
        fine = all(math.isfinite(chance) and chance <= CLOSE for chance in chances)
        require(fine, f"log_probability is a natural logarithm, finite and at most 0: {where} has {chances}")
        require(
            chances == sorted(chances, reverse=True), f"next_tokens() tells the likeliest first: {where}: {chances}"
        )
        total = sum(map(math.exp, chances))
        require(total <= 1 + CLOSE, f"probabilities of one place add up to 1 at most: {where} has {total}")
        require(len({c.id for c in place}) == len(place), f"next_tokens() tells a token once a place: {where}")
    return places


def _require_same(first: list[list[TokenChance]], second: list[list[TokenChance]], promise: str) -> None:
    require(len(first) == len(second), f"{promise} ({len(first)} places and {len(second)})")
    for one, other in zip(first, second, strict=True):
        pairs = list(zip(one, other, strict=False))
        near = all(abs(a.log_probability - b.log_probability) <= CLOSE for a, b in pairs)
        # Tokens that are tied may change places.
        same = near and all(a.id == b.id or _is_tied(a, one) for a, b in pairs)
        require(len(one) == len(other) and same, f"{promise} ({one} and {other})")


def _whole(text: str) -> str:
    """Without a character that is begun at the end: a token to come may end it, and an answer leaves it out."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}").strip()


def _is_tied(chance: TokenChance, place: list[TokenChance]) -> bool:
    near = [other for other in place if abs(other.log_probability - chance.log_probability) <= CLOSE]
    return len(near) > 1


def _check_refusal(backend: ScoresTokens, request: Request) -> None:
    broken = Image("broken", BytesSource(b"this is no image"))
    damaged = replace(request, images=tuple(broken for _ in request.images))
    try:
        backend.next_tokens(damaged, (), MOST)
    except SampleError:
        return
    except Exception as error:
        raise AssertionError(
            f"next_tokens() raises SampleError for a damaged image, not {type(error).__name__}: {error}"
        ) from error
