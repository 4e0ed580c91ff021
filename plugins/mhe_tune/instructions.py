"""Instruction-format data: training pairs asked through templates, with candidate answers (MILE, section 3.2).

Each pair draws a template of its kind (closed or open) and candidates for it: wrong answers of the same kind from the
pool of the same question attribute, and the right one at a random place. A draw depends on the seed, the pair and the
pools alone, never on the order of pairs. Pools hold the answers of the training pairs, so that validation and test
add nothing to them.
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from pydantic import ValidationError

from mhe import DocumentError, Message, Part, UserError, digest_of, replace_messages

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mhe import TrainingExample

_FIELDS = re.compile(r"\{question\}|\{candidates\}")
TEMPLATES_FILE = Path(__file__).with_name("templates.yaml")
Kind = Literal["closed", "open"]
Pair = tuple[str, str, str]
"""A pair's id, question and answer: ids alone may repeat where tasks are mixed."""
Pools = dict[tuple[str, str], dict[str, str]]
"""By attribute and kind: normalised answer to its most frequent spelling."""


class Templates(Part):
    """Of one language; see `templates.yaml`."""

    separator: str
    opposites: tuple[tuple[str, str], ...]
    closed: tuple[str, ...]
    open: tuple[str, ...]


class Instruction(Part):
    """One pair in instruction format: a line of `instructions.jsonl`."""

    id: str
    question: str
    """As the data set has it."""
    answer: str
    prompt: str
    """What the model is asked in training."""
    candidates: tuple[str, ...] = ()
    """As they stand in the prompt."""
    template: str = ""
    """Language, kind and number, such as `en.closed.2`; empty for a prompt that somebody wrote."""
    part: str = ""
    """`train` or `validation` where it was drawn; not used in reading."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How instructions are drawn."""

    pools: Pools
    attribute: str
    candidates: int
    """In a prompt, the right one with them."""
    seed: int
    templates: Mapping[str, Templates]


def draw_instructions(
    train: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
    *,
    attribute: str,
    candidates: int,
    seed: int,
) -> list[Instruction]:
    """An instruction for each pair of both parts.

    Raises `UserError` for samples without a question, without the group `attribute`, and for questions in a script that
    no template is written in.
    """
    _check_samples([*train, *validation], attribute)
    drawing = Drawing(build_pools(train, attribute), attribute, candidates, seed, read_templates())
    drawn: dict[Pair, Instruction] = {}
    for part, examples in (("train", train), ("validation", validation)):
        for example in examples:
            # A weighted mixture holds a pair several times; it is one instruction.
            drawn.setdefault(pair_of(example), draw_instruction(example, drawing).model_copy(update={"part": part}))
    return list(drawn.values())


def draw_instruction(example: TrainingExample, drawing: Drawing) -> Instruction:
    """The instruction of one pair."""
    sample = example.sample
    question = sample.question or ""
    language = language_of(question, sample.id)
    templates = drawing.templates[language]
    kind = kind_of(example)
    seed = digest_of([drawing.seed, "instruction", *pair_of(example)])
    draw = random.Random(int(seed, 16))
    number = draw.randrange(len(getattr(templates, kind)))
    pool = drawing.pools.get((sample.groups[drawing.attribute], kind), {})
    shown = draw_candidates(example.answer, pool, templates, drawing.candidates, draw)
    lines = getattr(templates, kind)[number].splitlines()
    if "{candidates}" not in "\n".join(lines):
        shown = ()
    elif not shown:
        lines = [line for line in lines if "{candidates}" not in line]
    # In one pass: braces in a question or an answer are no fields.
    values = {"{question}": question, "{candidates}": templates.separator.join(shown)}
    return Instruction(
        id=sample.id,
        question=question,
        answer=example.answer,
        prompt=_FIELDS.sub(lambda field: values[field[0]], "\n".join(lines)),
        candidates=shown,
        template=f"{language}.{kind}.{number}",
    )


def draw_candidates(
    answer: str, pool: Mapping[str, str], templates: Templates, count: int, draw: random.Random
) -> tuple[str, ...]:
    """The right answer among wrong ones of its pool; none where the pool has no other."""
    own = normalised(answer)
    paired = {word for pair in templates.opposites for word in pair}
    others = [other for pair in templates.opposites if own in pair for other in pair if other != own and other in pool]
    if own in paired:
        wrong = [pool[other] for other in others[:1]]
    else:
        choices = sorted(spelling for key, spelling in pool.items() if key != own and key not in paired)
        wrong = draw.sample(choices, min(count - 1, len(choices)))
    if not wrong:
        return ()
    wrong.insert(draw.randrange(len(wrong) + 1), answer)
    return tuple(wrong)


def build_pools(examples: Iterable[TrainingExample], attribute: str) -> Pools:
    """The answers of the training pairs by attribute and kind."""
    counts: dict[tuple[str, str], dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for example in examples:
        key = (example.sample.groups[attribute], kind_of(example))
        counts[key][normalised(example.answer)][example.answer.strip()] += 1
    return {
        key: {own: min(found, key=lambda text: (-found[text], text)) for own, found in answers.items()}
        for key, answers in counts.items()
    }


def kind_of(example: TrainingExample) -> Kind:
    """As the data set says it; a question that it does not class is open."""
    return "closed" if example.sample.answer_type == "closed" else "open"


def normalised(answer: str) -> str:
    """Without regard to case, Unicode form, white space and a full stop at the end: what counts as the same answer."""
    return " ".join(unicodedata.normalize("NFKC", answer).casefold().split()).rstrip(".。")


def language_of(question: str, sample_id: str) -> str:
    """`zh` for a question with Chinese characters, `en` for one in Latin letters. Raises `UserError` for others."""
    scripts = {unicodedata.name(letter, "?").split()[0] for letter in question if letter.isalpha()}
    if "CJK" in scripts and not scripts & {"HIRAGANA", "KATAKANA", "HANGUL"}:
        return "zh"
    # Greek letters stand in English questions as symbols.
    strange = sorted(scripts - {"LATIN", "GREEK", "FULLWIDTH", "MICRO", "FEMININE", "MASCULINE"})
    if strange:
        raise UserError(
            f"sample {sample_id}: the question is written in {', '.join(strange)} letters, and there are templates for "
            "English and Chinese only. Write the instructions yourself, a line a pair, and give "
            "--set instructions=FILE.jsonl."
        )
    return "en"


def read_templates() -> dict[str, Templates]:
    """The templates by language."""
    found = yaml.safe_load(TEMPLATES_FILE.read_text(encoding="utf-8"))
    return {language: Templates.model_validate(content) for language, content in found.items()}


def _check_samples(examples: Sequence[TrainingExample], attribute: str) -> None:
    for example in examples:
        sample = example.sample
        if not sample.question:
            raise UserError(
                f"sample {sample.id} has no question, so there is nothing to make an instruction of: this recipe is "
                "for question answering."
            )
        if attribute not in sample.groups:
            raise UserError(
                f"sample {sample.id} has no group {attribute!r} to draw candidate answers by. Give "
                f"--set attribute=GROUP; it has: {', '.join(sorted(sample.groups)) or 'none'}."
            )


# ---------------------------------------------------------------- as examples and as a file


def pair_of(example: TrainingExample) -> Pair:
    """What names a pair."""
    return example.sample.id, example.sample.question or "", example.answer


def instructed(examples: Sequence[TrainingExample], instructions: Sequence[Instruction]) -> tuple[TrainingExample, ...]:
    """The examples with the instructions' prompts in the place of the user's text."""
    prompts = {(line.id, line.question, line.answer): line.prompt for line in instructions}
    return tuple(
        replace(
            example,
            request=replace_messages(
                example.request,
                [
                    Message(m.role, prompts[pair_of(example)], m.images) if m.role == "user" else m
                    for m in example.request.messages
                ],
            ),
        )
        for example in examples
    )


def instruction_lines(instructions: Sequence[Instruction]) -> str:
    """As `instructions.jsonl` has them."""
    return "".join(json.dumps(line.model_dump(mode="json"), ensure_ascii=False) + "\n" for line in instructions)


def read_instructions(path: Path, examples: Sequence[TrainingExample]) -> list[Instruction]:
    """Instructions that were written out, or written by hand, for exactly these pairs.

    Raises `DocumentError` with every problem: lines that cannot be read, pairs that are missing, doubled or not among
    the examples, answers that differ.
    """
    problems: list[str] = []
    found: dict[Pair, Instruction] = {}
    pairs = dict.fromkeys(pair_of(example) for example in examples)
    answers = {pair[:2]: pair[2] for pair in pairs}
    # Not splitlines(): a question may hold a line end of Unicode.
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = Instruction.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            problems.append(f"line {number}: {f'{where}: ' if where else ''}{first['msg']}")
            continue
        key = (line.id, line.question, line.answer)
        if key[:2] not in answers:
            problems.append(f"line {number}: no training or validation pair is {line.id}, {line.question!r}")
        elif key not in pairs:
            problems.append(f"line {number}: the answer to {line.id} is {answers[key[:2]]!r}, not {line.answer!r}")
        elif key in found:
            problems.append(f"line {number}: {line.id}, {line.question!r} stands there twice")
        elif not line.prompt.strip():
            problems.append(f"line {number}: the prompt of {line.id} is empty")
        found.setdefault(key, line)
    missing = [key[0] for key in pairs if key not in found]
    if missing:
        problems.append(
            f"{len(missing)} of {len(pairs)} pairs are missing: {', '.join(missing[:5])}"
            f"{', …' if len(missing) > 5 else ''}"
        )
    if problems:
        shown = [*problems[:20], *([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])]
        hint = "A file fits the tasks, splits and limits that it was made for. Leave `instructions` out to draw them."
        raise DocumentError(str(path), shown, hint=hint)
    return list(found.values())
