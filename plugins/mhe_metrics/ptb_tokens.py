r"""Penn Treebank tokens of captions, as COCO's evaluation prepares them, through a client of our own.

pycocoevalcap's client writes one caption a line and pairs lines with captions by position. Three things go wrong
there and not here:

- A caption that holds a line end of any kind (`\r`, U+2028, U+0085, …) becomes two, and every later caption is
  scored against its neighbour's references. Here all of them become blanks first.
- A caption that becomes empty at the end of the file is lost. Here it stays an empty text.
- The tokenizer looks beyond the line: whether the last period of "... in twin B." belongs to the token `b.` depends
  on the first letter of the *next* caption. Here a line that says `The` follows each caption, so that a caption's
  tokens depend on it alone and its end counts as the end of a sentence; that these lines come back at every second
  place also proves that nothing has shifted.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mhe import MetricUnavailableError
from mhe_metrics.java import run_jar
from mhe_metrics.tokenizer_jar import ARGUMENTS, TokenizerFailedError, TokenizerJar, find_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

MANY = 400
"""Lines from which on a process is kept."""
FENCE = "The"
FENCE_TOKENS = "the"
DROPPED = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
"""What COCO's evaluation takes for punctuation. The bracket names never match, since tokens come in lower case."""


def ptb_tokens(texts: Sequence[str]) -> list[str]:
    """Each text as lower-case Penn Treebank tokens between single blanks, punctuation left out.

    Raises `MetricUnavailableError` where Java or the jar is absent, or the tokenizer fails or loses a line.
    """
    if not texts:
        return []
    lines = [_one_line(text) for text in texts]
    found = _tokenized([line for text in lines for line in (text, FENCE)])
    if len(found) != 2 * len(lines) or any(fence.strip() != FENCE_TOKENS for fence in found[1::2]):
        raise MetricUnavailableError(
            f"the tokenizer gave {len(found)} lines for {2 * len(lines)}, or in another order: nothing is scored "
            "rather than captions against their neighbours' references. Please report the captions."
        )
    # Split at blanks only: a fraction such as "21 3/7" may come as one token with a no-break space inside.
    return [" ".join(token for token in line.rstrip().split(" ") if token not in DROPPED) for line in found[::2]]


_kept: list[TokenizerJar] = []
_turn = threading.Lock()


def _tokenized(lines: Sequence[str]) -> list[str]:
    """The lines that the tokenizer gives for these lines; of many, from a process that is kept for the next call."""
    timeout = 60 + sum(map(len, lines)) / 20_000
    if len(lines) >= MANY:
        with _turn:
            try:
                if not _kept:
                    _kept.append(TokenizerJar())
                return _kept[0].ask(lines, timeout=timeout)
            except (TokenizerFailedError, OSError):
                # A process of its own, below, gives the same lines, or the reason why it cannot.
                while _kept:
                    _kept.pop().close()
    text = "".join(f"{line}\n" for line in lines)
    return run_jar(find_tokenizer(), ARGUMENTS, text, timeout=timeout).split("\n")[:-1]


def _one_line(text: str) -> str:
    """The text on one line, in characters that UTF-8 can carry (a lone surrogate becomes U+FFFD)."""
    joined = " ".join(text.splitlines())
    return joined.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
