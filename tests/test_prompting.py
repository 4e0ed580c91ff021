from __future__ import annotations

from dataclasses import replace

import pytest

from mhe import BytesSource, Generation, Image, Response, Sample
from mhe.answers import answer_of, extract_answer
from mhe.documents.task import AnswerRule, ImageRule, Prompt, TaskSpec
from mhe.prompting import build_request, replace_messages

TASK = TaskSpec.from_data(
    {
        "name": "toy", "version": 1, "title": "Toy", "kind": "vqa", "summary": "x",
        "source": {"homepage": "x", "licence": "x", "citation": "x"}, "reader": {"name": "toy"},
        "splits": {"train": {}, "test": {}}, "prompt": {"user": "{question}\nShort."},
        "metrics": ["accuracy"], "primary": "accuracy", "profile": "strict",
    },
    "toy",
)  # fmt: skip
SAMPLE = Sample("s1", (Image("i1", BytesSource(b"pixels")),), ("yes",), question="Is {0} {question} %s shown?")


def test_a_question_with_braces_is_asked_as_it_is():
    request = build_request(TASK, SAMPLE, Generation(), 0)
    assert request.messages[0].text == "Is {0} {question} %s shown?\nShort."
    assert request.messages[0].images == 1


def test_the_bare_question_goes_along_where_it_is_asked_and_stays_out_of_the_digest():
    request = build_request(TASK, SAMPLE, Generation(), 0)
    assert request.messages[0].question == SAMPLE.question
    without = tuple(replace(message, question=None) for message in request.messages)
    assert replace_messages(request, without).digest == request.digest
    unasked = TASK.model_copy(update={"prompt": Prompt(user="Describe it.")})
    assert build_request(unasked, SAMPLE, Generation(), 0).messages[0].question is None
    captioned = build_request(unasked, replace(SAMPLE, question=None), Generation(), 0)
    assert captioned.messages[0].question is None


def test_the_digest_covers_what_the_model_sees_and_nothing_else():
    first = build_request(TASK, SAMPLE, Generation(), 0).digest
    assert build_request(TASK, replace(SAMPLE, references=("no",), id="other"), Generation(), 5).digest == first
    assert build_request(TASK, replace(SAMPLE, question="Other?"), Generation(), 0).digest != first
    moved = replace(SAMPLE, images=(Image("i1", BytesSource(b"other pixels")),))
    assert build_request(TASK, moved, Generation(), 0).digest != first
    smaller = TASK.model_copy(update={"images": ImageRule(resize=(224, 224))})
    assert build_request(smaller, SAMPLE, Generation(), 0).digest != first
    told = TASK.model_copy(update={"prompt": Prompt(user="{question}\nShort.", system="You are brief.")})
    assert build_request(told, SAMPLE, Generation(), 0).digest != first


def test_a_samples_seed_is_its_own():
    seeds = {build_request(TASK, replace(SAMPLE, id=str(i)), Generation(), s).seed for i in range(50) for s in range(3)}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**60 for seed in seeds)


@pytest.mark.parametrize(
    ("rule", "text", "answer"),
    [
        (AnswerRule(), "  as it is \n", "as it is"),
        (AnswerRule(drop_prefixes=("Answer:",)), "ANSWER: yes", "yes"),
        (AnswerRule(first_line=True), "\n\n yes\nbecause", "yes"),
        (
            AnswerRule(first_line=True, lowercase=True, drop_prefixes=("the answer is",)),
            "The answer is YES\u2028No",
            "yes",
        ),
        (AnswerRule(first_line=True), "   ", ""),
    ],
)
def test_answers_are_taken_by_rule(rule, text, answer):
    assert extract_answer(rule, text) == answer


def test_a_failed_response_has_no_answer():
    with pytest.raises(ValueError, match="s1"):
        answer_of(TASK, Response("s1"))
