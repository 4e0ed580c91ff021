"""How MedEvalKit finds the final answer in a response; both of its profiles use it."""

from __future__ import annotations

import re

# In this order, each applied to what the one before left.
_LEAD_INS = (
    "**answer**:",
    "**answer**",
    "*answer*:",
    "**answer:**",
    "answer is",
    "answer:",
    "答案:",
    "final answer",
    "final answer is",
)
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def final_answer(response: str) -> str:
    r"""The response in lower case, from its last `\boxed{...}` or its `<answer>` tags, after the last lead-in.

    After a lead-in white space stays, as in the original: what follows `answer is` begins with a blank.
    Nothing is left of a response that says `boxed` without a whole box.
    """
    text = response.lower()
    boxed = _boxed(text)
    tagged = " ".join(_TAGGED.findall(text)).strip()
    if boxed is not None:
        text = boxed
    elif tagged:
        text = tagged
    if "boxed" in text:
        return ""
    for lead_in in _LEAD_INS:
        text = text.rpartition(lead_in)[2]
    return text


def judged_yes_no(response: str, reference: str) -> bool:
    """Whether exactly one of the substrings yes and no occurs, and it is the reference (in lower case)."""
    said = without_stops(final_answer(response))
    return ("yes" in said) != ("no" in said) and reference in said


def without_stops(text: str) -> str:
    """The text without line feeds and full stops."""
    return text.replace("\n", "").replace(".", "")


def _boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` with balanced braces; None where there is none."""
    _, mark, rest = text.rpartition("\\boxed{")
    depth = 0
    for place, character in enumerate(rest if mark else ""):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return rest[:place].strip()
    return None
