"""`plain`: captions as lower-case words, without Java.

    words = runs of letters and digits of the text in lower case and in Unicode's form NFKC

A number keeps its decimal point or comma; in Chinese and in Japanese kana each character is a word; punctuation and
symbols are left out. `T2-weighted, 3.5 cm.` becomes `t2 weighted 3.5 cm`. Close to `coco` on plain English captions,
but not equal: contractions lose their apostrophe, hyphens part words, and brackets leave no token.

Blind to: case, punctuation and symbols.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_metrics.words import words

if TYPE_CHECKING:
    from collections.abc import Sequence


class Plain:
    """Lower-case words (`mhe_metrics.words`), punctuation left out."""

    name = "plain"
    version = "1"
    kind = "caption"
    source = "mhe"
    defects: Sequence[str] = ("symbols (<, >, +, %) are left out, so that `<5 mm` and `>5 mm` are equal",)
    is_default = True
    usual_metrics: Sequence[str] = ("bleu", "rouge-l", "cider")

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as its words between single blanks."""
        return [" ".join(words(text)) for text in texts]


PLAIN = Plain()
