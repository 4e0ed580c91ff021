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

from typing import TYPE_CHECKING

from mhe import MetricUnavailableError
from mhe_metrics.java import find_jar, run_jar

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    output = run_jar(
        find_jar("tokenizer", "stanford-corenlp-3.4.1.jar"),
        ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"],
        "".join(f"{line}\n{FENCE}\n" for line in lines),
        timeout=60 + sum(map(len, lines)) / 20_000,
    )
    found = output.split("\n")
    fences = found[1::2]
    if len(found) != 2 * len(lines) + 1 or any(fence.strip() != FENCE_TOKENS for fence in fences):
        raise MetricUnavailableError(
            f"the tokenizer gave {len(found) - 1} lines for {2 * len(lines)}, or in another order: nothing is scored "
            "rather than captions against their neighbours' references. Please report the captions."
        )
    # Split at blanks only: a fraction such as "21 3/7" may come as one token with a no-break space inside.
    return [" ".join(token for token in line.rstrip().split(" ") if token not in DROPPED) for line in found[:-1:2]]


def _one_line(text: str) -> str:
    """The text on one line, in characters that UTF-8 can carry (a lone surrogate becomes U+FFFD)."""
    joined = " ".join(text.splitlines())
    return joined.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
