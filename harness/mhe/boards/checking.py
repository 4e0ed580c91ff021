"""Is a board what its entries make, do they keep its rules, and is everything that was published still there?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.boards.acceptance import entry_seed, record_problems
from mhe.boards.entries import read_entry
from mhe.boards.folders import BOARD_FILE, ENTRIES, all_boards, open_board
from mhe.boards.history import history_problems, last_commit
from mhe.boards.publishing import published_record
from mhe.boards.rendering import PAGE, render_board, render_index, stale_files
from mhe.boards.verification import disagreements
from mhe.errors import DocumentError, MheError
from mhe.run_folder import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mhe.boards.entries import Entry
    from mhe.boards.folders import BoardFolder
    from mhe.boards.verification import MetricShelf
    from mhe.documents.board import BoardTask


WHOLE = "index and history"
"""The name under which problems stand that are of no one version."""


@dataclass(frozen=True, slots=True)
class BoardCheck:
    """What was found wrong with one board."""

    board: str
    entries: int
    problems: tuple[str, ...]


def build_board(path: Path, shelf: MetricShelf) -> list[Path]:
    """Write the page, its drawings and the index of all boards; returns what was written, the page first.

    Raises `DocumentError` for entries that are damaged or break the board's rules: a page is never made of them.
    """
    board = open_board(path)
    entries, problems = _sound_entries(board)
    if problems:
        raise DocumentError(str(board.path), [*problems, f"mhe board check {board.spec.key} tells more"])
    rendered = render_board(board, entries, shelf)
    for name, text in rendered.items():
        write_atomically(board.path / name, text)
    for stale in stale_files(board, rendered):
        stale.unlink()
    index = board.root / PAGE
    write_atomically(index, render_index(board.root))
    return [*(board.path / name for name in rendered), index]


def check_board(path: Path, shelf: MetricShelf) -> BoardCheck:
    """Every problem of one version of a board, its history apart. Raises nothing for a bad board: it says so."""
    try:
        board = open_board(path)
    except DocumentError as error:
        return BoardCheck(f"{path.parent.name}@{path.name}", 0, tuple(error.problems))
    entries, problems = _sound_entries(board)
    for entry in entries:
        problems += [f"{_place(entry)}: {text}" for text in disagreements(entry.record, entry.scores, shelf)]
    if not problems:
        try:
            problems += _page_problems(board, entries, shelf)
        except MheError as error:
            problems.append(f"the page cannot be made: {error}")
    return BoardCheck(board.spec.key, len(entries), tuple(dict.fromkeys(problems)))


def check_root(root: Path, shelf: MetricShelf, boards: Sequence[Path] = ()) -> list[BoardCheck]:
    """Check boards (all below `root` where none is named), then what the last commit holds and the index."""
    chosen = list(boards) or list(all_boards(root))
    checks = [check_board(path, shelf) for path in chosen]
    problems = []
    history = last_commit(root)
    if history is not None:
        problems += history_problems(history, {path.resolve().parent.name for path in boards})
    if chosen and not any(check.problems for check in checks):
        problems += _difference(root / PAGE, render_index(root), "mhe board build BOARD")
    return [*checks, BoardCheck(WHOLE, 0, tuple(problems))]


def _place(entry: Entry) -> str:
    return f"{ENTRIES}/{entry.entrant}/{entry.task}/{entry.seed}"


# ------------------------------------------------------------ entries


def _sound_entries(board: BoardFolder) -> tuple[list[Entry], list[str]]:
    """The entries that can be read, and everything that is wrong short of their numbers."""
    spec = board.spec
    problems = _stray_folders(board)
    tasks = {task.task: task for task in spec.tasks}
    found: list[Entry] = []
    for (entrant, key, seed), change in sorted(spec.standing().items()):
        task = tasks[key]
        folder = board.entry_path(entrant, task.name, seed)
        place = f"{ENTRIES}/{entrant}/{task.name}/{seed}"
        if not folder.is_dir():
            problems.append(f"{place}: published on {change.date}, and vanished")
            continue
        try:
            entry = read_entry(folder, entrant, task.name, seed)
        except DocumentError as error:
            problems += [f"{place}: {text}" for text in error.problems]
            continue
        found.append(entry)
        if entry.digest != change.digest:
            problems.append(f"{place}: was changed after it was entered on {change.date} ({BOARD_FILE} has its digest)")
        problems += [f"{place}: {text}" for text in _entry_problems(board, entry, task)]
    listed = {change.entrant for change in spec.changes}
    problems += [f"entrant {e.name} has no entry" for e in spec.entrants if e.name not in listed]
    return found, problems


def _entry_problems(board: BoardFolder, entry: Entry, task: BoardTask) -> list[str]:
    record = entry.record
    problems = record_problems(record, board.spec, task, entry.seed)
    if entry_seed(record) != entry.seed:
        problems.append(f"the run has seed {entry_seed(record)}, the folder says {entry.seed}")
    if record.task.name != entry.task:
        problems.append(f"the run is of task {record.task.name}, the folder says {entry.task}")
    model = next(e.model for e in board.spec.entrants if e.name == entry.entrant)
    if record.model.name != model:
        problems.append(f"the run is of model {record.model.name!r}, the entrant's is {model!r}")
    if len(entry.scores.samples.ids) != record.counts.samples:
        problems.append(f"statistics of {len(entry.scores.samples.ids)} samples, the run has {record.counts.samples}")
    if published_record(record, entry.scores) != record:
        problems.append("run.json holds paths of a machine, or metrics that are not the board's")
    return problems


def _stray_folders(board: BoardFolder) -> list[str]:
    """Whatever lies below entries/ and is not listed in board.yaml."""
    names = {task.task: task.name for task in board.spec.tasks}
    listed = {board.entry_path(entrant, names[task], seed) for entrant, task, seed in board.spec.standing()}
    root = board.path / ENTRIES
    wanted = {root} | listed | {parent for path in listed for parent in path.parents}
    problems = []
    for path in sorted(root.rglob("*")) if root.is_dir() else []:
        if path in wanted or path.parent in listed or path.parent not in wanted:
            continue
        problems.append(f"{path.relative_to(board.path)}: not in {BOARD_FILE}; entries come by: mhe board add")
    return problems


# ------------------------------------------------------------ pages


def _page_problems(board: BoardFolder, entries: Sequence[Entry], shelf: MetricShelf) -> list[str]:
    rendered = render_board(board, entries, shelf)
    command = f"mhe board build {board.spec.key}"
    problems = []
    for name, text in rendered.items():
        problems += _difference(board.path / name, text, command)
    stale = stale_files(board, rendered)
    return problems + [f"{path.name}: not part of the page any more: {command}" for path in stale]


def _difference(path: Path, wanted: str, command: str) -> list[str]:
    """Where a generated file differs from what it should be, with the first differing line."""
    if not path.is_file():
        return [f"{path.name}: not there: {command}"]
    found = path.read_bytes()
    if found == wanted.encode("utf-8"):
        return []
    ours, theirs = wanted.splitlines(), found.decode("utf-8", "replace").splitlines()
    pairs = enumerate(zip(ours, theirs, strict=False), 1)
    line = next((number for number, (left, right) in pairs if left != right), min(len(ours), len(theirs)) + 1)
    return [f"{path.name}: is not what the entries make (line {line}): {command}"]
