"""`coco`: captions as Penn Treebank tokens, as COCO's caption evaluation prepares them."""

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
