"""Where boards lie: `leaderboards/<board>/v<N>/`, found by name, `name@vN` or folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.documents.board import BoardSpec
from mhe.errors import DocumentError, UnknownNameError, UserError
from mhe.run_folder import write_atomically
from mhe.task_files import read_document

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DEFAULT_ROOT = Path("leaderboards")
BOARD_FILE = "board.yaml"
ENTRIES = "entries"
_VERSION = re.compile(r"^v([1-9][0-9]*)$")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class BoardFolder:
    """One version of a board on disk."""

    path: Path
    spec: BoardSpec

    @property
    def root(self) -> Path:
        """The folder of all boards."""
        return self.path.parent.parent

    def entry_path(self, entrant: str, task: str, seed: int) -> Path:
        """Where the entry of an entrant lies; `task` without its version."""
        return self.path / ENTRIES / entrant / task / str(seed)


def version_of(path: Path) -> int | None:
    """The number of a folder `vN`; None for another name."""
    found = _VERSION.match(path.name)
    return int(found.group(1)) if found else None


def board_names(root: Path) -> list[str]:
    """Boards below a folder, sorted; empty where it does not exist."""
    if not root.is_dir():
        return []
    return sorted(p.name for p in root.iterdir() if p.is_dir() and versions(p))


def versions(board: Path) -> list[int]:
    """Versions of a board, ascending."""
    if not board.is_dir():
        return []
    numbers = (version_of(p) for p in board.iterdir() if (p / BOARD_FILE).is_file())
    return sorted(n for n in numbers if n is not None)


def all_boards(root: Path) -> Iterator[Path]:
    """Every version folder of every board, sorted by name, then version."""
    for name in board_names(root):
        for number in versions(root / name):
            yield root / name / f"v{number}"


def locate_board(board: str, root: Path) -> Path:
    """The version folder of `name` (its latest version), `name@vN` or a folder.

    Raises `UnknownNameError` with the boards that exist.
    """
    if board.endswith(BOARD_FILE) and Path(board).is_file():
        return Path(board).parent
    given = Path(board)
    if (given / BOARD_FILE).is_file():
        return given
    if ("/" in board or board in {".", ".."}) and given.is_dir() and (found := versions(given)):
        return given / f"v{found[-1]}"
    name, _, wanted = board.partition("@")
    known = versions(root / name) if _NAME.fullmatch(name) else []
    if not known:
        hint = f"Boards are looked for in {root}/ (--leaderboards-dir); make one with: mhe board new NAME --task TASK"
        raise UnknownNameError("board", board, board_names(root), hint)
    if not wanted:
        return root / name / f"v{known[-1]}"
    if wanted not in {f"v{n}" for n in known}:
        raise UnknownNameError("board", board, [f"{name}@v{n}" for n in known])
    return root / name / wanted


def open_board(path: Path) -> BoardFolder:
    """Read `board.yaml`. Raises `DocumentError` with lines; also where the folder's names are not the document's."""
    path = path.resolve()
    spec = read_document(BoardSpec, path / BOARD_FILE)
    problems = []
    if spec.name != path.parent.name:
        problems.append(f"name is {spec.name!r}, but the folder is {path.parent.name!r}: they must be equal")
    if version_of(path) != spec.version:
        problems.append(f"version is {spec.version}, but the folder is {path.name!r}: it must be 'v{spec.version}'")
    if problems:
        raise DocumentError(str(path / BOARD_FILE), problems)
    return BoardFolder(path, spec)


def create_board(root: Path, spec: BoardSpec) -> BoardFolder:
    """Write a new version folder. Raises `UserError` where it exists."""
    path = root / spec.name / f"v{spec.version}"
    if path.exists():
        raise UserError(f"{path} exists. A changed rule is a new version: mhe board new {spec.name} --new-version …")
    write_atomically(path / BOARD_FILE, _HEADER + _dumped(_plain(spec)))
    return open_board(path)


def rewrite_board(board: BoardFolder, spec: BoardSpec) -> BoardFolder:
    """Write the changed parts of `board.yaml` and leave the rest, comments included, as it is."""
    import yaml

    place = board.path / BOARD_FILE
    text = place.read_text(encoding="utf-8")
    old, new = _plain(board.spec), _plain(spec)
    changed = {key: value for key, value in new.items() if old.get(key) != value}
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        write_atomically(place, _HEADER + _dumped(new))
        return open_board(board.path)
    spans: list[tuple[int, int, str]] = []
    present = set()
    for key, value in node.value:
        present.add(key.value)
        if key.value in changed:
            # A block ends where the next key begins, comments before that key included; only its own lines go.
            lines = text[key.start_mark.index : value.end_mark.index].rstrip().split("\n")
            while lines[-1].startswith("#") or not lines[-1].strip():
                lines.pop()
            body = "\n".join(lines)
            stop = key.start_mark.index + len(body)
            spans.append((key.start_mark.index, stop, _dumped({key.value: changed[key.value]}).rstrip()))
    for start, stop, replacement in sorted(spans, reverse=True):
        text = text[:start] + replacement + text[stop:]
    added = {key: value for key, value in changed.items() if key not in present}
    if added:
        text = text.rstrip() + "\n" + _dumped(added)
    write_atomically(place, text)
    return open_board(board.path)


_HEADER = "# A board: what it pins. `entrants` and `changes` are written by `mhe board add`; see docs/boards.md.\n"


def _plain(spec: BoardSpec) -> dict[str, object]:
    data: dict[str, object] = spec.model_dump(mode="json")
    return data


def _dumped(data: Mapping[str, object]) -> str:
    import yaml

    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=110)
