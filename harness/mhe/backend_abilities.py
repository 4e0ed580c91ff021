"""What a backend may be able to do besides answering: a method more, which is looked for where it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.values import Request, TokenChance


@runtime_checkable
class ScoresTokens(Protocol):
    """A loaded backend that can tell how close the choice of each token was: optional, for `mhe check-backends`."""

    def next_tokens(self, request: Request, before: Sequence[int], most: int) -> Sequence[Sequence[TokenChance]]:
        """The `most` likeliest tokens at each place of the greedy answer to the request alone, likeliest first.

        The answer is made to begin with the tokens `before`, whatever their chance, and goes on greedily from there;
        places are counted from the answer's first token, those of `before` included. Raises `SampleError` where the
        request cannot be answered.
        """
        ...


@runtime_checkable
class RendersPrompts(Protocol):
    """A backend that can show the text its model reads: optional, for `mhe show tasks TASK --sample N --model M`."""

    def render_prompt(self, request: Request) -> str | None:
        """The text up to where the answer begins; None for a model that is shown the image alone.

        Called before `load`, and needs no weights. Raises `SampleError` for a request that the model cannot be asked,
        and `ModelUnusableError`.
        """
        ...
