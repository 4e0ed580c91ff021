"""Scoring without a task: texts against their references, in files or in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

from mhe.digests import digest_of
from mhe.errors import UserError
from mhe.images import FileSource
from mhe.text_rows import shortened
from mhe.values import Case, Image, Sample, Score

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")
Kind = Literal["caption", "vqa"]


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
    images: Mapping[str, str | PathLike[str]] | Sequence[str | PathLike[str]] | None = None,
) -> dict[str, Score]:
    """Score texts against references: `mhe.score(answers, references)["bleu-4"].value`.

    Two mappings are joined by id and two sequences by position; a reference is a text or a sequence of texts. Every
    registered metric and profile of the kind can be named. Where none is, the default profile of the kind is used,
    and the metrics that it names as usual (`mhe show profiles NAME`).

    `images` are files, for metrics that look at them, joined as the texts are; what has none makes such a metric null.

    Returns value name to score, in the order of the metrics, with 95 % bootstrap intervals (each text is a resampling
    unit, and texts on one image are drawn together) unless `intervals` is false. A metric that cannot be computed here
    has the value None and a `reason`.
    Raises `UserError` for texts, references and images that do not match, and what `mhe.scoring.check_scoring` raises.
    """
    from mhe.catalog import open_catalog
    from mhe.scoring import score_cases
    from mhe.usual_scoring import usual_scoring

    if kind not in get_args(Kind):
        raise UserError(f"kind must be {' or '.join(get_args(Kind))}, not {kind!r}.")
    samples, cases = _paired(predictions, references)
    if images is not None:
        samples = _with_images(samples, images, is_by_id=isinstance(predictions, Mapping))
        cases = [Case(sample, case.answer) for sample, case in zip(samples, cases, strict=True)]
    catalog = open_catalog()
    asked = (metrics,) if isinstance(metrics, str) else tuple(metrics or ())
    chosen = usual_scoring(catalog, kind, profile=profile, metrics=asked)
    records = score_cases(
        catalog,
        TextPairs("this call", kind, chosen.profile),
        cases,
        all_samples=samples,
        metrics=chosen.metrics,
        profiles=[chosen.profile],
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


def _with_images(
    samples: Sequence[Sample],
    images: Mapping[str, str | PathLike[str]] | Sequence[str | PathLike[str]],
    *,
    is_by_id: bool,
) -> list[Sample]:
    if isinstance(images, str) or isinstance(images, Mapping) != is_by_id:
        raise UserError("images must be files by id where the texts are by id, and a sequence where they are one.")
    if not is_by_id and len(images) != len(samples):
        raise UserError(f"{len(images)} images for {len(samples)} texts: sequences are joined by position.")
    given = _by_id(images)
    known = {sample.id for sample in samples}
    problems = []
    if unknown := [name for name in given if name not in known]:
        problems.append(f"{len(unknown)} without a text: {_list(unknown)}.")
    if unusable := [name for name, place in given.items() if not isinstance(place, str | PathLike)]:
        problems.append(f"images that are no path: {_list(unusable)}.")
    if problems:
        raise UserError("images and texts do not match:\n  " + "\n  ".join(problems))
    return [
        replace(sample, images=(Image(str(given[sample.id]), FileSource(Path(given[sample.id]))),))
        if sample.id in given
        else sample
        for sample in samples
    ]


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
