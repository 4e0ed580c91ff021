"""Scoring without a task: texts against their references, in files or in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from mhe.digests import digest_of
from mhe.errors import UserError
from mhe.text_rows import shortened
from mhe.values import Case, Sample, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
Kind = Literal["caption", "vqa"]

PROFILES: dict[Kind, str] = {"caption": "plain", "vqa": "strict"}
"""The profile where none is asked for: the one that works on every machine (`coco` needs Java)."""
METRICS: dict[Kind, tuple[str, ...]] = {
    "caption": ("bleu", "rouge-l", "cider"),
    "vqa": ("accuracy", "exact-match", "token-f1"),
}
"""The metrics where none are asked for."""


@dataclass(frozen=True, slots=True)
class TextPairs:
    """Stands in the place of a task."""

    name: str
    kind: Kind
    profile: str
    groups: tuple[str, ...] = ()


def score(
    predictions: Mapping[str, str] | Sequence[str],
    references: Mapping[str, Sequence[str] | str] | Sequence[Sequence[str] | str],
    *,
    metrics: Sequence[str] | str | None = None,
    profile: str | None = None,
    kind: Kind = "caption",
    intervals: bool = True,
    metric_options: Mapping[str, Mapping[str, object]] | None = None,
) -> dict[str, Score]:
    """Score texts against references: `mhe.score(answers, references)["bleu-4"].value`.

    Two mappings are joined by id and two sequences by position; a reference is a text or a sequence of texts. Every
    registered metric and profile of the kind can be named. Where none is, captions get `bleu`, `rouge-l` and `cider`
    under `plain`, and answers `accuracy`, `exact-match` and `token-f1` under `strict`.

    Returns value name to score, in the order of the metrics, with 95 % bootstrap intervals (each text is a resampling
    unit) unless `intervals` is false. A metric that cannot be computed here has the value None and a `reason`.
    Raises `UserError` for texts and references that do not match, and what `mhe.scoring.check_scoring` raises.
    """
    from mhe.catalog import open_catalog
    from mhe.scoring import score_cases

    if kind not in PROFILES:
        raise UserError(f"kind must be {' or '.join(PROFILES)}, not {kind!r}.")
    samples, cases = _paired(predictions, references)
    chosen = profile or PROFILES[kind]
    names = [metrics] if isinstance(metrics, str) else metrics
    records = score_cases(
        open_catalog(),
        TextPairs("this call", kind, chosen),
        cases,
        all_samples=samples,
        metrics=METRICS[kind] if names is None else names,
        profiles=[chosen],
        metric_options=metric_options,
        run_key=digest_of(["texts", [[case.sample.id, case.answer, *case.sample.references] for case in cases]]),
        with_intervals=intervals,
    )
    return {
        value.name: Score(value.name, value.value, value.low, value.high, value.samples, value.reason)
        for record in records
        for value in record.values
    }


def _paired(
    predictions: Mapping[str, str] | Sequence[str],
    references: Mapping[str, Sequence[str] | str] | Sequence[Sequence[str] | str],
) -> tuple[list[Sample], list[Case]]:
    if isinstance(predictions, str) or isinstance(references, str):
        raise UserError("predictions and references must be sequences of texts or mappings by id, not one text.")
    if isinstance(predictions, Mapping) != isinstance(references, Mapping):
        raise UserError("predictions and references must both be mappings by id, or both sequences.")
    answers = _by_id(predictions)
    right = _by_id(references)
    problems = []
    if not isinstance(predictions, Mapping) and len(answers) != len(right):
        raise UserError(f"{len(answers)} predictions for {len(right)} references: sequences are joined by position.")
    if missing := [name for name in right if name not in answers]:
        problems.append(f"{len(missing)} without a prediction: {_list(missing)}.")
    if unknown := [name for name in answers if name not in right]:
        problems.append(f"{len(unknown)} without references: {_list(unknown)}.")
    if not right:
        problems.append("there is nothing to score.")
    if untexted := [name for name, answer in answers.items() if not isinstance(answer, str)]:
        problems.append(f"predictions that are no text: {_list(untexted)}.")
    texts = {name: _texts(given) for name, given in right.items()}
    if empty := [name for name, given in texts.items() if not given or not all(isinstance(t, str) for t in given)]:
        problems.append(f"references that are neither a text nor one or more texts: {_list(empty)}.")
    if problems:
        raise UserError("predictions and references do not match:\n  " + "\n  ".join(problems))
    samples = [Sample(id=name, images=(), references=given) for name, given in texts.items()]
    return samples, [Case(sample, answers[sample.id]) for sample in samples]


def _by_id(given: Mapping[str, T] | Sequence[T]) -> dict[str, T]:
    if isinstance(given, Mapping):
        return dict(given)
    return {str(position): value for position, value in enumerate(given)}


def _texts(given: Sequence[str] | str) -> tuple[str, ...]:
    if isinstance(given, str):
        return (given,)
    # Anything else is told with its name, beside the other problems.
    return tuple(given) if isinstance(given, Iterable) else ()


def _list(names: Sequence[str]) -> str:
    return ", ".join(shortened([repr(name) for name in names], "more"))
