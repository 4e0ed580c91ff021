"""Questions about a phantom, each with its only right answer.

Everything follows from the facts, and the choice of phrasing from the seed. Closed questions are right
for "yes" half of the time, whatever the image shows, so that a model that does not look gains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mhe_tasks.phantom.draws import Draws
from mhe_tasks.phantom.facts import INTENSITIES, MODALITIES, NUMBERS, POSITIONS, REGIONS, SHAPES, SIDES, SIZES, Facts

QuestionType = Literal["modality", "region", "presence", "number", "side", "size", "intensity", "position", "shape"]
# New types go to the end: each draws from the stream of those before it.
QUESTION_TYPES: tuple[QuestionType, ...] = get_args(QuestionType)

_SALT = 0x165667B19E3779F9

_CHOICES: dict[QuestionType, tuple[str, ...]] = {
    "modality": MODALITIES,
    "region": REGIONS,
    "number": NUMBERS,
    "side": SIDES,
    "size": SIZES,
    "intensity": INTENSITIES,
    "position": POSITIONS,
    "shape": SHAPES,
}
# The verb and noun agree with the number of lesions; questions of number and presence do not tell it.
_OPEN: dict[QuestionType, tuple[str, ...]] = {
    "modality": ("Which imaging modality is this?", "What modality was used to take this image?"),
    "region": ("Which region of the body is shown?", "What part of the body does this image show?"),
    "number": ("How many lesions are there?", "What is the number of lesions?"),
    "side": ("On which side of the image {are} the {lesions}?", "Where {are} the {lesions} in the image?"),
    "size": ("What is the size of the {lesions}?", "How large {are} the {lesions}?"),
    "intensity": ("What is the intensity of the {lesions}?", "How {do} the {lesions} appear?"),
    "position": ("In which quadrant of the image {are} the {lesions}?", "Which quadrant holds the {lesions}?"),
    "shape": ("What is the shape of the {lesions}?", "Which shape {do} the {lesions} have?"),
}
_CLOSED: dict[QuestionType, tuple[str, ...]] = {
    "modality": ("Is this {article} {value}?", "Is the modality of this image {value}?"),
    "region": ("Does this image show the {value}?", "Is this an image of the {value}?"),
    "number": ("Is the number of lesions {value}?", "Does the image show {value} lesions in total?"),
    "side": ("{Are} the {lesions} on the {value} side of the image?", "{Are} the {lesions} on the {value}?"),
    "size": ("{Are} the {lesions} {value}?", "{Are} the {lesions} {value} in size?"),
    "intensity": ("{Do} the {lesions} appear {value}?", "{Are} the {lesions} {value} on this image?"),
    "position": ("{Are} the {lesions} in the {value} quadrant?", "{Do} the {lesions} lie in the {value}?"),
    "shape": ("{Are} the {lesions} {value} in shape?", "{Do} the {lesions} have {article} {value} shape?"),
}
# The second says whether "yes" means that a lesion is there.
_PRESENCE = (
    ("Is there a lesion?", True),
    ("Is any lesion visible in the image?", True),
    ("Is the image free of lesions?", False),
    ("Is this image normal?", False),
)


@dataclass(frozen=True, slots=True)
class Question:
    """A question about one phantom."""

    text: str
    answer: str
    question_type: QuestionType
    answer_type: Literal["closed", "open"]


def ask_questions(facts: Facts, types: Sequence[str] = QUESTION_TYPES, per_type: int = 1) -> list[Question]:
    """Return the questions about a phantom, in the order of `QUESTION_TYPES`.

    With `per_type` 1 each type is asked once, open or closed by the toss of a coin; with 2 it is asked in both
    ways. Presence has closed questions only. What lesions look like and where they are is asked where there is one.
    Leaving out a type does not change the others.
    """
    draws = Draws(facts.seed ^ _SALT)
    questions: list[Question] = []
    for question_type in QUESTION_TYPES:
        if question_type == "presence":
            asked = [_ask_presence(facts, draws)]
        else:
            # Both are drawn even where one is kept, so that the stream does not depend on the options.
            both = [_ask_closed(question_type, facts, draws), _ask_open(question_type, facts, draws)]
            coin = draws.below(2)
            asked = both if per_type == 2 else [both[coin]]
        if question_type in types and _truth(question_type, facts) is not None:
            questions += asked
    return questions


def _truth(question_type: QuestionType, facts: Facts) -> str | None:
    """Return the fact that a type asks for; None where the image has none."""
    values: dict[QuestionType, str | None] = {
        "modality": facts.modality,
        "region": facts.region,
        "presence": "yes" if facts.number else "no",
        "number": NUMBERS[facts.number],
        "side": facts.side,
        "size": facts.size,
        "intensity": facts.intensity,
        "position": facts.position,
        "shape": facts.shape,
    }
    return values[question_type]


def _ask_open(question_type: QuestionType, facts: Facts, draws: Draws) -> Question:
    text = _inflect(draws.one_of(_OPEN[question_type]), facts)
    return Question(text, _truth(question_type, facts) or "", question_type, "open")


def _ask_closed(question_type: QuestionType, facts: Facts, draws: Draws) -> Question:
    """Ask whether a value holds: the true one or, as often, a false one."""
    phrase = draws.one_of(_CLOSED[question_type])
    truth = _truth(question_type, facts)
    is_true = draws.below(2) == 1
    false = draws.one_of([choice for choice in _CHOICES[question_type] if choice != truth])
    value = truth if is_true and truth is not None else false
    return Question(_inflect(phrase, facts, value), "yes" if is_true else "no", question_type, "closed")


def _ask_presence(facts: Facts, draws: Draws) -> Question:
    text, yes_means_lesion = draws.one_of(_PRESENCE)
    is_yes = (facts.number > 0) == yes_means_lesion
    return Question(text, "yes" if is_yes else "no", "presence", "closed")


def _inflect(phrase: str, facts: Facts, value: str = "") -> str:
    one = facts.number == 1
    article = "an" if value in ("MRI", "ultrasound", "oblong") else "a"
    verbs: dict[str, str] = {
        "are": "is" if one else "are",
        "Are": "Is" if one else "Are",
        "do": "does" if one else "do",
        "Do": "Does" if one else "Do",
    }
    return phrase.format(lesions="lesion" if one else "lesions", article=article, value=value, **verbs)
