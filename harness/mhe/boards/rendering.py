"""A board's page: `README.md` and the drawings beside it, made from `board.yaml` and the entries alone.

Nothing comes from the clock, the machine or the network, so that the same entries give the same bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe.boards.entries import read_entry
from mhe.boards.folders import BOARD_FILE, board_names, open_board, versions
from mhe.boards.markdown import code, escaped, table
from mhe.boards.relations import relations_of
from mhe.boards.results import rows_of
from mhe.boards.tables import task_section
from mhe.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mhe.boards.entries import Entry
    from mhe.boards.folders import BoardFolder
    from mhe.boards.verification import MetricShelf
    from mhe.documents.board import BoardChange, BoardSpec, BoardTask

PAGE = "README.md"
GENERATED = (
    "<!-- Made by `mhe board build`; `mhe board check` proves that it is what the entries make. Do not edit. -->"
)


def read_entries(board: BoardFolder) -> list[Entry]:
    """Every entry that `board.yaml` lists, sorted. Raises `DocumentError` with the problems of all of them."""
    problems: list[str] = []
    found = []
    names = {task.task: task.name for task in board.spec.tasks}
    for entrant, task, seed in sorted(board.spec.standing()):
        folder = board.entry_path(entrant, names[task], seed)
        place = folder.relative_to(board.path)
        if not folder.is_dir():
            problems.append(f"{place}: {BOARD_FILE} lists this entry, and it is not there")
            continue
        try:
            found.append(read_entry(folder, entrant, names[task], seed))
        except DocumentError as error:
            problems += [f"{place}: {text}" for text in error.problems]
    if problems:
        raise DocumentError(str(board.path), problems)
    return found


def render_board(board: BoardFolder, entries: Sequence[Entry], shelf: MetricShelf) -> dict[str, str]:
    """File name to content, for every generated file of the board."""
    spec = board.spec
    sections = []
    for task in spec.tasks:
        rows = rows_of(task, spec.entrants, entries, shelf, spec.costs)
        sections.append(task_section(spec, task, rows, relations_of(spec, task, rows, shelf)))
    lines = [GENERATED, "", f"# {escaped(spec.title)}", ""]
    if any(task.phantom for task in spec.tasks):
        drawn = ", ".join(code(task.task) for task in spec.tasks if task.phantom)
        lines += [
            f"> **PHANTOM BOARD.** The images of {drawn} are drawn by a program: its scores say nothing of medicine.",
            "",
        ]
    if spec.summary.strip():
        lines += [escaped(spec.summary, 4000), ""]
    lines += _pins(spec, board)
    for section in sections:
        lines += section.lines
    lines += [*_provenance(spec, entries), *_how_to_enter(spec), *_changes(spec)]
    files = {name: text for section in sections for name, text in section.files.items()}
    return {PAGE: "\n".join(lines).rstrip("\n") + "\n", **files}


def _pins(spec: BoardSpec, board: BoardFolder) -> list[str]:
    seeds = ", ".join(map(str, spec.seeds))
    lines = ["## What is pinned", "", f"Board {code(spec.key)}, seeds {seeds}. A changed rule is a new version.", ""]
    older = [n for n in versions(board.path.parent) if n < spec.version]
    if older:
        links = ", ".join(f"[v{n}](../v{n}/{PAGE})" for n in older)
        lines += [f"Frozen older versions: {links}.", ""]
    for task in spec.tasks:
        lines += [f"- {_pinned(task)}"]
    return [*lines, ""]


def _pinned(task: BoardTask) -> str:
    generation = ", ".join(f"{name} {code(str(value))}" for name, value in _generation(task).items())
    metrics = ", ".join(
        f"{code(pin.metric)} {escaped(pin.version)}"
        + (
            f" with {', '.join(f'{code(k)} {code(str(v))}' for k, v in sorted(pin.options.items()))}"
            if pin.options
            else ""
        )
        for pin in task.pins
    )
    data = f"data {code(task.data_digest[:12])}" if task.data_digest else "data pinned by the first entry"
    part = f", the first {task.limit} samples" if task.limit is not None else ""
    version = task.pins[0].profile_version if task.pins else ""
    return (
        f"{code(task.task)}, split {code(task.split)}{part}, {data}; profile {code(task.profile)} {escaped(version)}; "
        f"metrics {metrics}; generation {generation}"
    )


def _generation(task: BoardTask) -> dict[str, object]:
    pinned: dict[str, object] = task.generation.model_dump(mode="json")
    return {name: value for name, value in pinned.items() if value != []}


# ------------------------------------------------------------ entries


def _provenance(spec: BoardSpec, entries: Sequence[Entry]) -> list[str]:
    if not entries:
        return []
    standing = spec.standing()
    names = {task.name: task.task for task in spec.tasks}
    lines = ["## Entries", ""]
    for entry in sorted(entries, key=lambda entry: (entry.entrant, entry.task, entry.seed)):
        change = standing[(entry.entrant, names[entry.task], entry.seed)]
        lines += [f"- {_entry_line(spec, entry, change)}"]
        lines += [f"  - ⚠ {escaped(warning)}" for warning in entry.record.warnings]
    return [*lines, ""]


_WEIGHTS = {
    "hashed again": "weights (hashed again when entered)",
    "not here": "weights (hashed by the run, not at hand when entered)",
    "hub commit": "weights (a commit of the hub)",
    "unverified": "weights **unverified**",
    "no weights": "no weights, identity",
}


def _entry_line(spec: BoardSpec, entry: Entry, change: BoardChange) -> str:
    record = entry.record
    commit = code(record.code.commit[:7]) if record.code.commit else "no commit"
    dirty = " with changes" if record.code.dirty else ""
    lineage = " ← ".join(f"{escaped(step.recipe)} of {escaped(step.parent)}" for step in record.model.lineage)
    backend = f"{escaped(record.backend.name)} ({escaped(record.backend.version)})"
    kind = next(e.kind for e in spec.entrants if e.name == entry.entrant)
    parts = [
        *([escaped(record.model.name)] if record.model.name != entry.entrant else []),
        kind,
        f"{_WEIGHTS[change.weights]} {code(record.model.fingerprint[:12])}",
        *([f"lineage: {lineage}"] if lineage else []),
        f"{backend}, {escaped(record.backend.precision or 'precision not told')}",
        f"run {code(record.run_key[:12])} of {escaped(record.finished[:10])}",
        f"mhe {escaped(record.code.mhe_version)}, code {commit}{dirty}",
        f"{record.counts.samples} samples, {record.counts.empty} empty, {record.counts.cut_at_limit} cut at the limit",
    ]
    place = f"entries/{entry.entrant}/{entry.task}/{entry.seed}"
    return f"[{entry.entrant}, {entry.task}, seed {entry.seed}]({place}/run.json): {'; '.join(parts)}"


# ------------------------------------------------------------ how to enter, what changed


def _how_to_enter(spec: BoardSpec) -> list[str]:
    several = (
        f" --seeds {len(spec.seeds)}" if spec.seeds == tuple(range(len(spec.seeds))) and len(spec.seeds) > 1 else ""
    )
    lines = ["## How to enter", "", "```sh"]
    for task in spec.tasks:
        command = f"mhe eval --model MODEL --task {task.name} --split {task.split} --profile {task.profile}"
        command += f" --limit {task.limit}" if task.limit is not None else ""
        settings = "".join(f" {_shell_word(text)}" for text in task.settings)
        seeds = [several] if several or spec.seeds == (0,) else [f" --seed {seed}" for seed in spec.seeds]
        lines += [command + settings + seed for seed in seeds]
    lines += [
        f"mhe board add {spec.name} RUN_FOLDER … --entrant NAME --kind model",
        f"mhe board build {spec.name}",
        f"mhe board check {spec.name}",
        "```",
        "",
        "`mhe eval` prints the run folder. A run is taken when it is complete and everything pinned above is equal;",
        "its weights are hashed again where they are at hand. A refusal lists every reason.",
        "",
    ]
    return [*lines, *([escaped(spec.enter, 4000), ""] if spec.enter.strip() else [])]


def _shell_word(text: str) -> str:
    import shlex

    return shlex.quote(" ".join(text.split()))


def _changes(spec: BoardSpec) -> list[str]:
    if not spec.changes:
        return []
    lines = [
        f"- {change.date}: {change.action} {change.entrant} on {change.task}, seed {change.seed} "
        f"(run {code(change.run_key[:12])})"
        for change in spec.changes
    ]
    return ["## Changes", "", *lines, ""]


# ------------------------------------------------------------ the index


def render_index(root: Path) -> str:
    """`leaderboards/README.md`: one line a board, its newest version, with the older ones."""
    rows = []
    for name in board_names(root):
        numbers = versions(root / name)
        spec = open_board(root / name / f"v{numbers[-1]}").spec
        rows.append(
            [
                f"[{escaped(spec.title)}]({name}/v{spec.version}/{PAGE})",
                code(spec.key),
                ", ".join(code(task.task) for task in spec.tasks),
                "phantom" if any(task.phantom for task in spec.tasks) else "real images",
                str(len(spec.entrants)),
                ", ".join(f"[v{n}]({name}/v{n}/{PAGE})" for n in numbers[:-1]) or "–",
            ]
        )
    head = ["Board", "Name", "Tasks", "Images", "Entrants", "Older versions"]
    lines = [GENERATED, "", "# Leaderboards", ""]
    if rows:
        lines += table(head, rows, [False, False, False, False, True, False])
    else:
        lines += ["No board yet: `mhe board new NAME --task TASK`."]
    return "\n".join(lines) + "\n"


def stale_files(board: BoardFolder, rendered: Mapping[str, str]) -> list[Path]:
    """Drawings that lie beside the page and are not part of it any more."""
    return sorted(path for path in board.path.glob("pareto-*.svg") if path.name not in rendered)
