"""Sequence-level distillation: the answers that a teacher writes to the training prompts are what a student learns.

The teacher answers through the backend `hf`, so that its prompts are rendered as in an evaluation, greedily, with the
token limit and stop texts of the task. Its answers are kept, one line of JSON each, as they come:

    $MHE_CACHE_DIR/teacher_answers/<teacher>/answers.jsonl

The folder is named by the teacher's fingerprint and the options that can change its answers; a line by the digest of
prompt, images and generation. Killed, it goes on with the answers that are missing.

Source: Kim and Rush, Sequence-Level Knowledge Distillation, EMNLP 2016, with greedy search in place of a beam.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import BackendContext, TrainingExample, UserError, cache_dir, digest_of
from mhe_compress.teacher_cache import KEY_LENGTH
from mhe_hf import HfBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mhe import InputModel, Request, Sample
    from mhe_hf import HfOptions

FORMAT = 1


class AnswerFile:
    """The kept answers of one teacher, by the digest of what it was asked; a half line that a kill left is cut off."""

    def __init__(self, identity: Mapping[str, object], root: Path | None = None) -> None:
        self._about = {"format": FORMAT, **identity}
        name = digest_of(self._about)[:KEY_LENGTH]
        self.path = (root or cache_dir()) / "teacher_answers" / name / "answers.jsonl"
        self.answers: dict[str, str] = {}
        if self.path.is_file():
            self._read()

    def add(self, key: str, answer: str) -> None:
        """Append, and let it reach the disk."""
        if not self.path.parent.is_dir():
            self.path.parent.mkdir(parents=True)
            (self.path.parent / "about.json").write_text(json.dumps(self._about, indent=2) + "\n", encoding="utf-8")
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"key": key, "answer": answer}, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.answers[key] = answer

    def _read(self) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as stream:
                stream.truncate(len(whole))
        for number, line in enumerate(whole.decode("utf-8").split("\n")[:-1], start=1):
            try:
                entry = json.loads(line)
                self.answers[str(entry["key"])] = str(entry["answer"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.path}, line {number} is no teacher's answer ({type(error).__name__}: {error}). Delete the "
                    "line: its answer is written again."
                ) from None


def question_of(example: TrainingExample, max_new_tokens: int | None) -> Request:
    """What the teacher is asked, greedily; its sample id is the key of its answer."""
    request = example.request
    changes: dict[str, object] = {"temperature": 0.0, "top_p": 1.0}
    if max_new_tokens is not None:
        changes["max_new_tokens"] = max_new_tokens
    generation = request.generation.model_copy(update=changes)
    asked = [message.question for message in request.messages]
    key = digest_of([request.digest, asked, generation.model_dump(mode="json")])[:KEY_LENGTH]
    return dataclasses.replace(request, sample_id=key, generation=generation, seed=0)


def write_answers(
    teacher: InputModel,
    options: HfOptions,
    requests: Sequence[Request],
    file: AnswerFile,
    report: Callable[[int, int], None],
    *,
    offline: bool,
) -> None:
    """Ask the teacher what it has not answered yet. Raises `UserError` for a request it cannot answer."""
    pending = {request.sample_id for request in requests} - file.answers.keys()
    if not pending:
        return
    backend = HfBackend(teacher.spec, options, BackendContext(offline, cache_dir(), _no_samples))
    try:
        backend.load()
        total = len(pending)
        for done, response in enumerate(backend.generate(requests, pending), start=1):
            if response.error is not None or response.text is None:
                what = response.error.message if response.error else "no text"
                raise UserError(
                    f"teacher {teacher.spec.name} cannot answer a training prompt: {what}\nAnswers so far are kept."
                )
            file.add(response.sample_id, response.text)
            report(done, total)
    finally:
        backend.close()


def taught_examples(
    examples: Sequence[TrainingExample], requests: Sequence[Request], answers: Mapping[str, str]
) -> tuple[list[TrainingExample], int]:
    """The examples with the teacher's answers in the place of their own, and how many it left empty, which are dropped.

    Raises `UserError` where all of them are.
    """
    taught = [
        dataclasses.replace(example, answer=answers[request.sample_id])
        for example, request in zip(examples, requests, strict=True)
        if answers[request.sample_id].strip()
    ]
    if not taught:
        raise UserError(f"the teacher answered nothing to all {len(examples)} training prompts: nothing can be learnt.")
    return taught, len(examples) - len(taught)


def _no_samples() -> Sequence[Sample]:
    raise UserError("a teacher is a model, and reads no training samples")
