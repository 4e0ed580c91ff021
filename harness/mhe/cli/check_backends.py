"""`mhe check-backends`: one model through several backends, and whether they give the same answers."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe.cli.completion import complete_backends, complete_model, complete_task
from mhe.cli.evaluate import default_runs_dir
from mhe.cli.main import catalog_of
from mhe.cli.progress import ProgressLine
from mhe.cli.settings import parse_settings
from mhe.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mhe.agreement import Fork
    from mhe.backend_checks import BackendCheck, BackendChoice, CheckedRun, Difference, Verdict
    from mhe.catalog import Catalog
    from mhe.evaluation import Progress
    from mhe.values import TokenChance

DIFFERENT = 3
LONGEST_TEXT = 40


@click.command("check-backends", short_help="Ask one model through several backends, and compare.")
@click.argument("model", shell_complete=complete_model)
@click.option("--task", required=True, shell_complete=complete_task, help="Whose samples are asked.")
@click.option(
    "--backends",
    metavar="NAME[:N],…",
    shell_complete=complete_backends,
    help="Two or more, N samples at once; the first is the reference [default: the model's own with 1 and 16].",
)
@click.option("--limit", type=click.IntRange(min=1), default=200, show_default=True, help="Only the first N samples.")
@click.option("--split", help="The split to ask; the task's own where left out.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data set on this machine.")
@click.option("--runs-dir", type=click.Path(path_type=Path), default=None, help="Where runs are kept [default: runs].")
@click.option(
    "--checkpoints-dir", type=click.Path(path_type=Path), default=None, help="Where `mhe tune` keeps checkpoints."
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="generation.max_new_tokens=16, backend.image_processor=pil (of all), server.url=… (of one). Repeatable.",
)
@click.option("--fresh", is_flag=True, help="Run again what is done.")
@click.option("--offline", is_flag=True, help="Reach for no hub; data and models must be on this machine.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def check_backends(
    ctx: click.Context,
    model: str,
    task: str,
    backends: str | None,
    limit: int,
    split: str | None,
    data_dir: Path | None,
    runs_dir: Path | None,
    checkpoints_dir: Path | None,
    settings: tuple[str, ...],
    fresh: bool,
    offline: bool,
    as_json: bool,
) -> int:
    """Ask MODEL the same questions through several backends, greedily and in float32, and compare the answers.

    Two backends may add up the same numbers in another order, so that a token's score differs in its last bits.
    Where the two best tokens lie within 0.0001 of each other in log-probability, either is right: a tie. Every
    answer that differs from the first backend's is listed with the token where they part, the two best tokens there,
    and the cause where it can be told: a near-tie, other image pixels, other prompt tokens, another length limit,
    another precision, or an end within a character, for whose bytes one backend shows a sign and another nothing.
    Log-probabilities are the first backend's, asked for one sample alone; `hf` has them.

    A backend that has an option dtype is run in float32, unless --set says otherwise; a server's precision is its
    own. The runs are kept below check-backends in the folder of runs, and a check that was stopped goes on.

    Exit code: 0 where all answers are equal, tied, or differ in such an end alone; 3 where one disagrees, could not
    be told, or is missing; and 2 for a mistake in the call.
    """
    from mhe.backend_checks import check_backends as check
    from mhe.environment import portable_command
    from mhe.run_plan import RunOptions

    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    catalog = catalog_of(ctx)
    choices = _choices(catalog, backends, model, checkpoints_dir)
    names = dict.fromkeys(choice.name for choice in choices)
    chosen = parse_settings(settings, ("generation", "backend", *names))
    options = RunOptions(
        runs_dir=runs_dir or default_runs_dir(),
        split=split,
        limit=limit,
        data_dir=data_dir,
        offline=offline,
        generation=chosen["generation"],
        backend_options=chosen["backend"],
        fresh=fresh,
        command=portable_command(["mhe", *sys.argv[1:]]),
    )
    found = check(
        catalog,
        model,
        task,
        choices,
        options,
        settings={name: chosen[name] for name in names},
        checkpoints_dir=checkpoints_dir,
        progress=lambda label: _progress(f"{model} on {task}, {label}"),
    )
    click.echo(_json(found, model, task) if as_json else _text(found, model, task))
    return 0 if found.agrees else DIFFERENT


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    with ProgressLine(title) as line:
        yield line.update


def _choices(catalog: Catalog, backends: str | None, model: str, checkpoints_dir: Path | None) -> list[BackendChoice]:
    from mhe.backend_checks import BackendChoice
    from mhe.model_names import resolve_model

    if backends is None:
        own = resolve_model(model, catalog, checkpoints_dir=checkpoints_dir).backend
        return [BackendChoice(own, 1), BackendChoice(own, 16)]
    choices = [BackendChoice.parse(text) for text in backends.split(",") if text.strip()]
    for choice in choices:
        # An unknown name must not be taken for a scope of --set.
        catalog.backend(choice.name)
    return choices


# ---------------------------------------------------------------- for programs


def _json(found: BackendCheck, model: str, task: str) -> str:
    import json

    document = {
        "schema_version": 1,
        "model": model,
        "task": task,
        "samples": found.samples,
        "agrees": found.agrees,
        "reference": _run_document(found.reference),
        "backends": [
            {
                **_run_document(checked),
                "equal": checked.equal,
                "ties": checked.count("tie"),
                "half_characters": checked.count("half character"),
                "disagreements": checked.count("disagreement"),
                "not_told": checked.count("not told"),
                "agrees": checked.agrees,
                "differences": [_difference_document(difference) for difference in checked.differences],
            }
            for checked in found.others
        ],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _run_document(checked: CheckedRun) -> dict[str, object]:
    return {
        "backend": checked.choice.label,
        "version": checked.record.backend.version,
        "precision": checked.record.backend.precision,
        "folder": str(checked.folder),
        "run_key": checked.record.run_key,
        "unanswered": checked.unanswered,
    }


def _difference_document(difference: Difference) -> dict[str, object]:
    return {
        "sample": difference.sample,
        "verdict": difference.verdict,
        "causes": difference.causes,
        "reference": difference.reference,
        "answer": difference.other,
        "reason": difference.reason,
        "forks": [
            {
                "place": fork.place,
                "reference": _chance_document(fork.best),
                "answer": _chance_document(fork.other),
                "second": _chance_document(fork.second),
                "gap": fork.gap,
            }
            for fork in difference.forks
        ],
    }


def _chance_document(chance: TokenChance | None) -> dict[str, object] | None:
    if chance is None:
        return None
    return {"id": chance.id, "token": chance.token, "log_probability": chance.log_probability}


# ---------------------------------------------------------------- for people


def _text(found: BackendCheck, model: str, task: str) -> str:
    verdict = "the backends agree" if found.agrees else "the backends do NOT agree"
    parts = [f"{model} on {task}, {found.samples} samples, greedy: {verdict}.", _runs_table(found)]
    parts += [_differences_table(checked, found.reference) for checked in found.others if checked.differences]
    notes = [f"Run of {run.choice.label}: {run.folder}" for run in (found.reference, *found.others)]
    return "\n\n".join([*parts, "\n".join(notes)])


def _runs_table(found: BackendCheck) -> str:
    verdicts: tuple[Verdict, ...] = ("tie", "half character", "disagreement", "not told")

    def counts(checked: CheckedRun) -> list[str]:
        if checked is found.reference:
            return ["reference", *[""] * len(verdicts)]
        return [f"{checked.equal} of {found.samples}", *(str(checked.count(verdict)) for verdict in verdicts)]

    rows = [
        [checked.choice.label, *_nature(checked), *counts(checked), str(checked.unanswered)]
        for checked in (found.reference, *found.others)
    ]
    headers = ["backend", "precision", "image processor", "equal", *verdicts, "unanswered"]
    return table(headers, rows, right=set(range(3, len(headers))))


def _nature(checked: CheckedRun) -> tuple[str, str]:
    backend = checked.record.backend
    return backend.precision or "not told", str(backend.key_options.get("image_processor", "not told"))


def _differences_table(checked: CheckedRun, reference: CheckedRun) -> str:
    rows = []
    for difference in checked.differences:
        known = [*difference.causes, *([difference.reason] if difference.reason else [])]
        cause = "; ".join(known) or "not told"
        rows += [
            [difference.sample if first else "", difference.verdict, *_fork_cells(fork), cause]
            for first, fork in zip((True, *(False,) * len(difference.forks)), difference.forks, strict=False)
        ] or [[difference.sample, difference.verdict, "—", *_texts(difference), "—", "—", cause]]
    headers = ["sample", "verdict", "token", reference.choice.label, checked.choice.label, "two best", "gap", "cause"]
    title = f"{checked.choice.label} against {reference.choice.label}, where they part:"
    return f"{title}\n\n{table(headers, rows, right={2, 6})}"


def _fork_cells(fork: Fork) -> list[str]:
    best = " ".join(_chance(chance) for chance in (fork.best, fork.second) if chance is not None)
    other = repr(fork.other.token) if fork.other is not None else "not likely"
    return [str(fork.place), repr(fork.best.token), other, best, "—" if fork.gap is None else f"{fork.gap:.6f}"]


def _chance(chance: TokenChance) -> str:
    return f"{chance.token!r} {chance.log_probability:.6f}"


def _texts(difference: Difference) -> list[str]:
    return ["—" if text is None else repr(text[:LONGEST_TEXT]) for text in (difference.reference, difference.other)]
