"""`plain`: captions as lower-case words, without Java."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe_metrics.words import words

if TYPE_CHECKING:
    from collections.abc import Sequence


class Plain:
    """Lower-case words (`mhe_metrics.words`), punctuation left out.

    Close to `coco` on plain English captions, but not equal: contractions stay whole, hyphens part words, and
    brackets leave no token.
    """

    name = "plain"
    version = "1"
    kind = "caption"
    source = "mhe"
    defects: Sequence[str] = ("symbols (<, >, +, %) are left out, so that `<5 mm` and `>5 mm` are equal",)

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as its words between single blanks."""
        return [" ".join(words(text)) for text in texts]


PLAIN = Plain()
