"""`coco`: captions as Penn Treebank tokens, as COCO's caption evaluation prepares them.

    words = tokens of Stanford's PTBTokenizer in lower case, without the tokens that are punctuation

A caption is tokenized on its own: line ends inside it become blanks, and its tokens do not depend on its neighbours.
`3.5 x 2-cm (left)` becomes `3.5 x 2-cm -lrb- left -rrb-`.

Blind to: case, and punctuation that is a token of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_metrics.ptb_tokens import ptb_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence


class Coco:
    """Lower-case tokens of Stanford's PTBTokenizer without punctuation, each caption on its own."""

    name = "coco"
    version = "1"
    kind = "caption"
    source = "Chen et al., Microsoft COCO Captions (arXiv:1504.00325); pycocoevalcap's PTBTokenizer"
    defects: Sequence[str] = (
        "brackets stay as the tokens -lrb- and -rrb-: the list of punctuation has them in capitals, after lower-casing",
        "emoji and other characters outside the tokenizer's tables vanish",
    )

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as its tokens between single blanks. Raises `MetricUnavailableError` without Java or the jar."""
        return ptb_tokens(texts)


COCO = Coco()
