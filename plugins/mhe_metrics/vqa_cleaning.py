"""The answer cleaning of the VQA v2 evaluation, as LLaVA-Med and MultiMedEval use it, with its faults.

Punctuation goes, number words become digits, articles go, and contractions get their apostrophe back. Faults that come
with it: a comma between digits anywhere in a text changes how all its punctuation goes (deleted instead of replaced by
a blank); at most 32 full stops go; `none` becomes `0`; the article `a` goes from `hepatitis A` too.
"""

from __future__ import annotations

import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_FULL_STOP = re.compile(r"\.(?!\d)")
_DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
# The original hands a flag of the value 32 over in the place of the number of replacements.
_MOST_FULL_STOPS = 32
_ARTICLES = frozenset({"a", "an", "the"})
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _spelt_without_one_apostrophe() -> dict[str, str]:
    """`dont` to `don't`, `couldnt've` and `couldn'tve` to `couldn't've`, and so on."""
    table = {
        full[:place] + full[place + 1 :]: full
        for full in _CONTRACTED.split()
        for place, character in enumerate(full)
        if character == "'"
    }
    # The one entry of the published table that goes the other way.
    return table | {"somebody'd": "somebodyd"}


_CONTRACTIONS = _spelt_without_one_apostrophe()


def vqa_clean(text: str) -> str:
    """The text's cleaned words between single blanks; lower case."""
    text = text.lower()
    deletes_all = _DIGITS_AROUND_COMMA.search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        is_deleted = deletes_all or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if is_deleted else " ")
    cleaned = _FULL_STOP.sub("", cleaned, count=_MOST_FULL_STOPS)
    numbered = (_NUMBERS.get(word, word) for word in cleaned.split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in numbered if word not in _ARTICLES)
