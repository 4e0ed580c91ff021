"""`task.yaml` and other YAML documents: read with the line of every key, all problems at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml
from pydantic import ValidationError

from mhe.documents.base import Document, problems_of
from mhe.documents.migrations import migrate
from mhe.documents.task import TaskSpec
from mhe.errors import DocumentError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

Path_ = tuple[str | int, ...]
D = TypeVar("D", bound=Document)

_Loader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(place: Path | Traversable) -> tuple[object, Mapping[Path_, int]]:
    """Parsed content, and the line (from 1) of every key and list item by its path.

    Raises `DocumentError` for text that is not YAML, with its line, and for doubled keys.
    """
    try:
        text = place.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(str(place), [f"cannot be read: {error}"]) from None
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[Path_, int] = {}
            problems: list[str] = []
            if node is not None:
                _walk(node, (), lines, problems)
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark is not None else ""
        what = getattr(error, "problem", None) or str(error)
        raise DocumentError(str(place), [f"{where}not valid YAML: {what}"]) from None
    if problems:
        raise DocumentError(str(place), problems)
    return data, lines


def _walk(node: yaml.Node, path: Path_, lines: dict[Path_, int], problems: list[str]) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value)
            here = (*path, name)
            if here in lines:
                problems.append(f"line {key.start_mark.line + 1}: {name}: given twice (first on line {lines[here]})")
            lines[here] = key.start_mark.line + 1
            _walk(value, here, lines, problems)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, problems)


def read_document(kind: type[D], place: Path | Traversable) -> D:
    """A document from YAML. Raises `DocumentError` with all problems at once, each with its line."""
    data, lines = read_yaml(place)
    if not isinstance(data, dict):
        raise DocumentError(str(place), [f"expected a mapping at the top, found {type(data).__name__}"])
    data = migrate(kind.__name__, data, kind.current_version, str(place))
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems = []
        for item, text in zip(error.errors(), problems_of(error), strict=True):
            line = _line_of(tuple(item["loc"]), lines)
            problems.append((line, f"line {line}: {text}"))
        raise DocumentError(str(place), [text for _, text in sorted(problems)]) from None


def _line_of(location: tuple[str | int, ...], lines: Mapping[Path_, int]) -> int:
    """The line of the innermost part of a location that stands in the file."""
    for end in range(len(location), -1, -1):
        if location[:end] in lines:
            return lines[location[:end]]
    return 1


def read_task_file(place: Path | Traversable) -> TaskSpec:
    """The task of a `task.yaml`, or of a folder that holds one."""
    if isinstance(place, Path) and not place.exists():
        raise UserError(f"{place} does not exist; a task is a folder with a task.yaml, or the file itself.")
    return read_document(TaskSpec, place / "task.yaml" if place.is_dir() else place)
