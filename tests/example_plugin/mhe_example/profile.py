"""Profile `first-word`: "Yes, there is." counts as "yes"."""

from __future__ import annotations

import re


class FirstWord:
    name = "first-word"
    version = "1"
    kind = "vqa"
    source = "made up for this example"
    defects = ("`left lung` is right where the answer is `left`",)

    def clean(self, texts):
        return [" ".join(re.findall(r"\w+", text.lower())[:1]) for text in texts]

    def question_type(self, sample):
        return "closed" if sample.references[0].lower() in ("yes", "no") else "open"

    def credit(self, answer, sample):
        given, *right = self.clean([answer, *sample.references])
        return float(bool(given) and given in right)


FIRST_WORD = FirstWord()
