"""From response to answer: the part of the text that is scored, by the task's own rule."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mhe.documents.task import AnswerRule, TaskSpec
    from mhe.values import Response


def answer_of(task: TaskSpec, response: Response) -> str:
    """The answer in a response. Raises `ValueError` for a response that failed: it has none."""
    if response.text is None:
        raise ValueError(f"sample {response.sample_id!r} has no text, only an error")
    return extract_answer(task.answer, response.text)


def extract_answer(rule: AnswerRule, text: str) -> str:
    """Strip, drop prefixes, keep the first line, lower the case: each only where the rule says so."""
    answer = text.strip()
    for prefix in rule.drop_prefixes:
        if answer.casefold().startswith(prefix.casefold()):
            answer = answer[len(prefix) :].lstrip()
    if rule.first_line:
        answer = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    return answer.lower() if rule.lowercase else answer
