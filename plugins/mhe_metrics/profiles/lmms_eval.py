"""`lmms-eval`: whole answers compared after a light cleaning, yes and no under several words.

    credit = 1 if cleaned(answer) equals cleaned(reference) for any reference, else 0

Cleaned: lower case; text in round brackets goes; punctuation becomes blanks; an answer that is `x ray` becomes
`xray`; an answer that is, as a whole, one of yes, yeah, yep, true becomes yes, and one of no, nope, false becomes no;
the Chinese words likewise. Open and closed questions are judged alike. The rules are those of the task SLAKE.

Blind to: right answers in other words or another order, and what stands in brackets.
"""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING

from mhe_metrics.profiles.question_types import declared_type

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import Sample

_BRACKETED = re.compile(r"\([^)]*\)|（[^）]*）")
_CHINESE_MARKS = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》【】"
_TO_BLANKS = str.maketrans(dict.fromkeys(string.punctuation + _CHINESE_MARKS, " "))
_WORDS = {
    "yes": "yes yeah yep true 是 是的 有 包含 可以 能 会 正常",
    "no": "no nope false 否 不是 没有 无 不包含 不能 不会 不可以 不正常 异常",
    "xray": "xray",
}
_MEANING = {word: meaning for meaning, words in _WORDS.items() for word in words.split()} | {"x ray": "xray"}


class LmmsEval:
    """Equality after cleaning."""

    name = "lmms-eval"
    version = "1"
    kind = "vqa"
    source = "lmms-eval 0.7.3, lmms_eval/tasks/slake/utils.py"
    defects: Sequence[str] = (
        "`Yes, there is.` is wrong for `Yes`, and `true` is right",
        "`正常` (normal) and `有` (there is) both become yes, so that they are equal; so do `异常` and `无` as no",
        "texts of which nothing is left are equal: an empty answer is right for `(left)`",
        "a decimal point becomes a blank: `3 5` is right for `3.5`",
    )

    def clean(self, texts: Sequence[str]) -> list[str]:
        """Each text as it is compared."""
        return [_cleaned(text) for text in texts]

    def question_type(self, sample: Sample) -> str:
        """As the data set says; else `closed` where every reference is yes or no."""
        return declared_type(sample)

    def credit(self, answer: str, sample: Sample) -> float:
        """1 where the cleaned answer equals any cleaned reference, else 0."""
        return float(_cleaned(answer) in map(_cleaned, sample.references))


def _cleaned(text: str) -> str:
    plain = " ".join(_BRACKETED.sub(" ", text.strip().lower()).translate(_TO_BLANKS).split())
    return _MEANING.get(plain, plain)


LMMS_EVAL = LmmsEval()
