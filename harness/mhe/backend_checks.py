"""One model through several backends, greedily in float32, and how far their answers agree.

Each backend makes a run as `mhe eval` does, so that a check that was stopped goes on where it was. The runs lie apart
from others, by backend and batch size: the batch size is declared not to change answers, so that runs that differ in
it alone have one key, and one folder would hold the answers of the first.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

from mhe.agreement import LIKELIEST, Explanation, explain_difference, without_half_characters
from mhe.backend_abilities import ScoresTokens
from mhe.errors import SampleError, UserError
from mhe.evaluation import run
from mhe.model_names import resolve_model
from mhe.run_folder import RunFolder
from mhe.run_plan import plan_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from mhe.agreement import Fork
    from mhe.catalog import Catalog
    from mhe.documents.run import RunRecord
    from mhe.evaluation import Progress
    from mhe.protocols import ModelBackend
    from mhe.run_plan import RunOptions, RunPlan
    from mhe.values import Request, Response

Verdict: TypeAlias = Literal["tie", "half character", "disagreement", "not told"]
AGREEING: frozenset[Verdict] = frozenset({"tie", "half character"})

FOLDER = "check-backends"
GREEDY: Mapping[str, object] = {"temperature": 0.0}
PRECISION = "float32"
AT_ONCE = ("batch_size", "concurrency")
"""Names of the option that says how many samples a backend works on at once."""
HALF_CHARACTER = "the answer ends within a character: one backend shows a sign for its bytes, and the other nothing"
NOT_SCORED = "the reference's backend does not tell the chances of tokens"


@dataclass(frozen=True, slots=True)
class BackendChoice:
    """A backend, and how many samples it works on at once (None: its own choice)."""

    name: str
    batch_size: int | None = None

    @property
    def label(self) -> str:
        """As it was given: `hf:16`."""
        return self.name if self.batch_size is None else f"{self.name}:{self.batch_size}"

    @classmethod
    def parse(cls, text: str) -> BackendChoice:
        """`hf:16` or `vllm`. Raises `UserError` for a batch size below 1."""
        name, colon, size = text.strip().rpartition(":")
        if not colon or not size.lstrip("-").isdigit():
            return cls(text.strip())
        if int(size) < 1:
            raise UserError(f"--backends {text}: a batch has 1 sample or more.")
        return cls(name, int(size))


@dataclass(frozen=True, slots=True)
class Difference:
    """One sample that a backend answered otherwise than the reference."""

    sample: str
    verdict: Verdict
    reference: str | None
    """What the reference answered; None where it could not."""
    other: str | None
    forks: tuple[Fork, ...]
    """Where the tokens part; see `Explanation`."""
    causes: tuple[str, ...]
    """What is known to differ; empty where nothing is."""
    reason: str | None = None
    """What is not known of the forks, and why."""


@dataclass(frozen=True, slots=True)
class CheckedRun:
    """One backend's answers beside the reference's."""

    choice: BackendChoice
    folder: Path
    record: RunRecord
    unanswered: int
    """By both."""
    differences: tuple[Difference, ...]

    @property
    def equal(self) -> int:
        """Samples whose texts are equal."""
        return self.record.counts.samples - self.unanswered - len(self.differences)

    def count(self, verdict: Verdict) -> int:
        """Differences with that verdict."""
        return Counter(difference.verdict for difference in self.differences)[verdict]

    @property
    def agrees(self) -> bool:
        """Whether every sample was answered, with the same tokens or tied ones."""
        return not self.unanswered and all(difference.verdict in AGREEING for difference in self.differences)


@dataclass(frozen=True, slots=True)
class BackendCheck:
    """What `mhe check-backends` shows."""

    samples: int
    reference: CheckedRun
    others: tuple[CheckedRun, ...]

    @property
    def agrees(self) -> bool:
        """Whether all backends agree."""
        return all(checked.agrees for checked in (self.reference, *self.others))


def check_backends(
    catalog: Catalog,
    model: str,
    task: str,
    choices: Sequence[BackendChoice],
    options: RunOptions,
    *,
    settings: Mapping[str, Mapping[str, object]],
    checkpoints_dir: Path | None,
    progress: Callable[[str], AbstractContextManager[Progress]],
) -> BackendCheck:
    """Run the requests through every backend and compare with the first.

    `settings` are options by backend name; those of `options` hold for all. `progress` makes, for a backend, what is
    told how far it is. Raises `UserError` for fewer than two backends, one given twice and an option a backend lacks,
    `UnknownNameError`, and what `run` raises.
    """
    labels = [choice.label for choice in choices]
    twice = sorted(label for label, times in Counter(labels).items() if times > 1)
    if len(choices) < 2 or twice:
        what = f"{', '.join(twice)} given twice" if twice else f"{', '.join(labels) or 'nothing'} given"
        raise UserError(f"--backends: {what}. Give two or more different ones, such as --backends hf:1,hf:16")
    # Every mistake in the call is found before the first model is loaded.
    plans = [
        _plan(catalog, model, task, choice, options, settings.get(choice.name, {}), checkpoints_dir)
        for choice in choices
    ]
    outcomes = []
    for choice, plan in zip(choices, plans, strict=True):
        with progress(choice.label) as update:
            outcomes.append(run(plan, update))
    answers = [_responses(plan) for plan in plans]
    explainer = Explainer(plans[0].open_backend)
    checked = []
    try:
        for choice, outcome, found in zip(choices, outcomes, answers, strict=True):
            settings_apart = tuple(_different_settings(outcomes[0].record, outcome.record))
            differences, unanswered = compare_answers(plans[0].requests, answers[0], found, explainer, settings_apart)
            checked.append(CheckedRun(choice, outcome.folder, outcome.record, unanswered, tuple(differences)))
    finally:
        explainer.close()
    return BackendCheck(len(plans[0].requests), checked[0], tuple(checked[1:]))


# ---------------------------------------------------------------- runs


def _plan(
    catalog: Catalog,
    model: str,
    task: str,
    choice: BackendChoice,
    options: RunOptions,
    settings: Mapping[str, object],
    checkpoints_dir: Path | None,
) -> RunPlan:
    spec = resolve_model(model, catalog, backend=choice.name, checkpoints_dir=checkpoints_dir)
    known = catalog.backend(choice.name).Options.model_fields
    chosen = dict(settings)
    if "dtype" in known:
        chosen.setdefault("dtype", PRECISION)
    if choice.batch_size is not None:
        field = next((name for name in AT_ONCE if name in known), None)
        if field is None:
            raise UserError(f"--backends {choice.label}: the backend {choice.name} has no batch size to choose.")
        chosen[field] = choice.batch_size
    return plan_run(
        catalog,
        spec,
        catalog.task(task),
        replace(
            options,
            runs_dir=options.runs_dir / FOLDER / choice.label.replace(":", "-"),
            generation={**options.generation, **GREEDY},
            backend_options={**options.backend_options, **chosen},
        ),
    )


def _responses(plan: RunPlan) -> dict[str, Response]:
    digests = {request.sample_id: request.digest for request in plan.requests}
    return RunFolder(plan.folder.path).responses(digests)


# ---------------------------------------------------------------- differences


def compare_answers(
    requests: Sequence[Request],
    reference: Mapping[str, Response],
    found: Mapping[str, Response],
    explainer: Explainer,
    settings: tuple[str, ...] = (),
) -> tuple[list[Difference], int]:
    """Where the answers differ, in the order of the requests, and how many samples neither has answered.

    `settings` are causes that hold for all of them.
    """
    differences, unanswered = [], 0
    for request in requests:
        first, second = reference.get(request.sample_id), found.get(request.sample_id)
        texts = [None if response is None else response.text for response in (first, second)]
        if texts == [None, None]:
            unanswered += 1
        elif texts[0] != texts[1]:
            differences.append(_difference(request, first, second, settings, explainer))
    return differences, unanswered


def _difference(
    request: Request,
    first: Response | None,
    second: Response | None,
    settings: tuple[str, ...],
    explainer: Explainer,
) -> Difference:
    reference, other = (None if response is None else response.text for response in (first, second))
    if first is None or second is None or reference is None or other is None:
        missing = [_no_answer(who, found) for who, found in (("the reference", first), ("this backend", second))]
        return Difference(request.sample_id, "disagreement", reference, other, (), tuple(filter(None, missing)))
    lengths = {response.generated_tokens for response in (first, second)} - {None}
    if len(lengths) < 2 and without_half_characters(reference) == without_half_characters(other):
        return Difference(request.sample_id, "half character", reference, other, (), (HALF_CHARACTER,))
    found = explainer.explain(request, reference, other)
    known = (*_different_counts(first, second), *settings)
    if found is None:
        return Difference(request.sample_id, "not told", reference, other, (), known, NOT_SCORED)
    verdict: Verdict = "tie" if found.is_tied else "disagreement"
    causes = ("near-tie", *known) if found.is_tied else known
    return Difference(request.sample_id, verdict, reference, other, found.forks, causes, found.reason)


def _no_answer(who: str, response: Response | None) -> str | None:
    if response is None:
        return f"{who} gave no answer"
    return None if response.error is None else f"{who} failed ({response.error.kind}): {response.error.message}"


def _different_counts(first: Response, second: Response) -> Iterator[str]:
    """What the two responses tell of themselves and differ in."""
    prompts = (first.prompt_tokens, second.prompt_tokens)
    if None not in prompts and prompts[0] != prompts[1]:
        yield f"other prompt tokens: {prompts[0]} and {prompts[1]}"
    assert first.text is not None
    assert second.text is not None
    shorter, longer = sorted((first, second), key=lambda response: len(response.text or ""))
    is_cut = shorter.finish_reason == "length" and str(longer.text).startswith(str(shorter.text))
    lengths = (first.generated_tokens, second.generated_tokens)
    if is_cut and lengths[0] != lengths[1]:
        yield f"other length limit: cut after {shorter.generated_tokens} tokens, and {longer.generated_tokens}"


def _different_settings(first: RunRecord, second: RunRecord) -> Iterator[str]:
    """What differs between two runs, and can change an answer."""
    kinds = [str(record.backend.key_options.get("image_processor", "")) for record in (first, second)]
    if all(kinds) and kinds[0] != kinds[1]:
        yield f"other image pixels: the image processor is {kinds[0]}, and {kinds[1]}"
    precisions = [record.backend.precision for record in (first, second)]
    if all(precisions) and precisions[0] != precisions[1]:
        yield f"other precision: {precisions[0]} and {precisions[1]}"
    files = [record.model.files for record in (first, second)]
    changed = sorted(name for name in files[0] if name in files[1] and files[0][name] != files[1][name])
    if changed:
        yield f"other files of the model: {', '.join(changed)}"


class Explainer:
    """Where texts part on the reference's own path. The reference is loaded at the first difference."""

    def __init__(self, open_reference: Callable[[], ModelBackend]) -> None:
        self._backend = open_reference()
        self._is_loaded = False

    def explain(self, request: Request, reference: str, other: str) -> Explanation | None:
        """How two different texts part; None where the backend cannot tell."""
        backend = self._backend
        if not isinstance(backend, ScoresTokens):
            return None
        if not self._is_loaded:
            backend.load()
            self._is_loaded = True
        try:
            return explain_difference(
                lambda before: backend.next_tokens(request, before, LIKELIEST),
                reference,
                other,
                stops=request.generation.stop,
            )
        except SampleError as error:
            return Explanation(reason=str(error))

    def close(self) -> None:
        """Free the reference, where it was loaded."""
        if self._is_loaded:
            self._backend.close()
