r"""`imageclef`: captions as the organisers of ImageCLEFmedical prepare them.

    words = split at blanks(delete ASCII punctuation(replace each run of digits by `number`(lower case)))

In this order: `3.5 x 2-cm` becomes `numbernumber x numbercm`. White space is unified, which changes no score that works
on words.

Blind to: case, punctuation, and every number: sizes, counts and levels of the spine are all alike.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_DIGITS = re.compile(r"\d+")
_DELETED = str.maketrans("", "", string.punctuation)


class ImageClef:
    """Lower-case words without punctuation, all numbers alike."""

    name = "imageclef"
    version = "1"
    kind = "caption"
    source = "ImageCLEFmedical Caption 2025, the organisers' evaluation code"
    defects: Sequence[str] = (
        "all numbers are alike: `3 mm` and `30 mm` are equal",
        "words beside deleted punctuation run together: `2-cm` becomes `numbercm`, `T1/T2` becomes `tnumbertnumber`",
    )

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as its words between single blanks."""
        return [" ".join(_DIGITS.sub("number", text.lower()).translate(_DELETED).split()) for text in texts]


IMAGECLEF = ImageClef()
