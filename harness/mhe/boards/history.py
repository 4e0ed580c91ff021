"""What was published before: boards and entries of the last commit, where `leaderboards/` lies in a git checkout."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import yaml

from mhe.boards.entries import RUN_FILE
from mhe.boards.folders import BOARD_FILE, ENTRIES, open_board, version_of
from mhe.documents.board import BoardSpec, BoardTask
from mhe.errors import DocumentError, UserError

if TYPE_CHECKING:
    from collections.abc import Collection

BOARD_DEPTH = 3
"""`<board>/v<N>/board.yaml`."""
ENTRY_DEPTH = 7
"""`<board>/v<N>/entries/<entrant>/<task>/<seed>/run.json`."""


@dataclass(frozen=True, slots=True)
class History:
    """Paths below `leaderboards/` in the last commit."""

    root: Path
    files: tuple[PurePosixPath, ...]


def last_commit(root: Path) -> History | None:
    """The committed boards; None outside a git checkout, without git, or before the first commit."""
    try:
        head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    except (FileNotFoundError, NotADirectoryError):
        return None
    if head.returncode:
        return None
    listed = _git(root, "ls-tree", "-r", "-z", "--name-only", "HEAD", ".")
    if listed.returncode:
        raise UserError(f"git cannot list {root} in HEAD: {listed.stderr.decode('utf-8', 'replace').strip()}")
    names = listed.stdout.decode("utf-8", "surrogateescape").split("\0")
    return History(root, tuple(PurePosixPath(name) for name in names if name))


def _git(root: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False, timeout=60)
    except subprocess.TimeoutExpired:
        raise UserError(f"git {arguments[0]} did not end within a minute in {root}: try it there.") from None


def history_problems(history: History, boards: Collection[str] = ()) -> list[str]:
    """What was published and vanished, or changed without a line in `changes`; of all boards where none is named."""
    problems = []
    for path in history.files:
        if boards and path.parts[0] not in boards:
            continue
        is_entry = len(path.parts) == ENTRY_DEPTH and path.parts[2] == ENTRIES and path.name == RUN_FILE
        is_board = len(path.parts) == BOARD_DEPTH and path.name == BOARD_FILE and version_of(Path(path.parts[1]))
        if (is_entry or is_board) and not (history.root / path).is_file():
            problems.append(
                f"{path.parent}: published in the last commit, and vanished: git checkout HEAD -- {path.parent}"
            )
        elif is_board:
            problems += [f"{path.parent}: {text}" for text in _board_problems(history, path)]
    return problems


def _board_problems(history: History, path: PurePosixPath) -> list[str]:
    old = _committed(history, path)
    try:
        new = open_board(history.root / path.parent).spec
    except DocumentError:
        # Told by the check of the board itself.
        return []
    problems = []
    if new.changes[: len(old.changes)] != old.changes:
        problems.append("lines of `changes` in the last commit were edited or removed: they are only ever added to")
    if set(old.seeds) != set(new.seeds):
        problems.append("seeds were changed: a changed rule is a new version (mhe board new NAME --new-version)")
    tasks = {task.task: task for task in new.tasks}
    for task in old.tasks:
        if task.task not in tasks:
            problems.append(f"task {task.task} was removed: a changed rule is a new version")
        else:
            problems += [
                f"task {task.task}: {name} was changed: a changed rule is a new version"
                for name in _changed_pins(task, tasks[task.task])
            ]
    names = {entrant.name for entrant in new.entrants}
    problems += [f"entrant {e.name} was removed" for e in old.entrants if e.name not in names]
    newer = [
        p
        for p in history.files
        if p.parts[0] == path.parts[0]
        and len(p.parts) == BOARD_DEPTH
        and p.name == BOARD_FILE
        and (version_of(Path(p.parts[1])) or 0) > old.version
    ]
    if newer and new.changes != old.changes:
        problems.append(f"entries were added to a frozen version; {newer[-1].parent} took its place")
    return problems


def _committed(history: History, path: PurePosixPath) -> BoardSpec:
    shown = _git(history.root, "show", f"HEAD:./{path}")
    if shown.returncode:
        raise UserError(f"git cannot show {path} of HEAD: {shown.stderr.decode('utf-8', 'replace').strip()}")
    place = f"{path} in the last commit"
    try:
        data = yaml.safe_load(shown.stdout.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{place} is no YAML ({error}), so that nothing can be compared with it: commit it mended."
        ) from None
    return BoardSpec.from_data(data, place)


def _changed_pins(old: BoardTask, new: BoardTask) -> list[str]:
    """Names of rules that differ; what is empty may be pinned, and titles and notes may be mended."""
    before, after = old.model_dump(), new.model_dump()
    for one, other in zip(before["pins"], after["pins"], strict=False):
        one["resources"] = one["resources"] or other["resources"]
    return [
        name
        for name in before
        if name not in {"title", "notes", "settings"}
        and before[name] != after[name]
        and not (name.endswith("_digest") and before[name] is None)
    ]
