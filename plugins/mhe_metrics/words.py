"""Words of a text in any script: the cleaning of the profiles that need no Java."""

from __future__ import annotations

import re
import unicodedata

# A number keeps its decimal point or comma. Scripts written without blanks (Chinese, Japanese kana) give one word a
# character; everything else runs on over letters, digits and the marks that belong to them.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"\d+(?:[.,]\d+)+|[{_UNSPACED}]|(?:(?![{_UNSPACED}])[\w\u0300-\u036f])+")


def words(text: str) -> list[str]:
    """The words of a text: compatibility forms unified (NFKC), lower case, punctuation and symbols left out.

    `"T2-weighted, 3.5 cm."` gives `t2`, `weighted`, `3.5`, `cm`; `"左肺。"` gives `左`, `肺`.
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())
