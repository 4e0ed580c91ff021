"""Generated docs: hooks, command line and documents, from the code itself.

`python -m mhe.cli.reference` writes them, `--check` leaves with 1 where one is stale.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mhe import hookspecs
from mhe.cli.option_fields import option_fields
from mhe.cli.scoring_page import NOTE, scoring_markdown
from mhe.errors import MetricUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic import BaseModel


def hooks_markdown() -> str:
    """Every hook with its arguments and documentation."""
    parts = ["# Hooks\n", NOTE, f"{inspect.cleandoc(hookspecs.__doc__ or '')}\n"]
    for name, function in hook_functions():
        signature = str(inspect.signature(function)).replace("'", "")
        parts.append(f"## `{name}`\n\n```python\ndef {name}{signature}\n```\n\n{inspect.getdoc(function)}\n")
    return "\n".join(parts)


def hook_functions() -> Iterator[tuple[str, Callable[..., object]]]:
    """Name and function of each hook, in the order of the file."""
    for name, thing in vars(hookspecs).items():
        if inspect.isfunction(thing) and hasattr(thing, "mhe_spec"):
            yield name, thing


def cli_markdown() -> str:
    """`--help` of every command of ours."""
    from mhe.cli.main import COMMANDS, cli

    parts = ["# Command line\n", NOTE]
    context = click.Context(cli, info_name="mhe")
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None, name
        parts += list(_help(command, click.Context(command, info_name=name, parent=context), level=2))
    return "\n".join(parts)


def _help(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    context.terminal_width = 110
    context.max_content_width = 110
    title = context.command_path
    yield f"{'#' * level} `{title}`\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None, name
            yield from _help(inner, click.Context(inner, info_name=name, parent=context), level + 1)


def documents_markdown() -> str:
    """Every document on disk, field by field."""
    from mhe.documents.board import BoardSpec
    from mhe.documents.checkpoint import Checkpoint
    from mhe.documents.measurement import Measurement
    from mhe.documents.model import ModelSpec
    from mhe.documents.pipeline import PipelineSpec, PipelineVariant
    from mhe.documents.run import RunRecord
    from mhe.documents.task import TaskSpec

    parts = [
        "# Documents\n",
        NOTE,
        "Unknown keys are refused. `schema_version` is migrated from every past version.\n",
    ]
    for document in (
        TaskSpec,
        ModelSpec,
        PipelineSpec,
        PipelineVariant,
        Checkpoint,
        RunRecord,
        BoardSpec,
        Measurement,
    ):
        parts.append(f"## {document.__name__}, version {document.current_version}\n")
        parts += [f"{inspect.getdoc(document)}\n"]
        for part in _with_parts(document):
            if part is not document:
                parts.append(f"### {part.__name__}\n\n{inspect.getdoc(part)}\n")
            parts.append("\n".join(_fields(part)) + "\n")
    return "\n".join(parts)


def _with_parts(model: type[BaseModel], seen: set[type] | None = None) -> Iterator[type[BaseModel]]:
    """The model and the models nested in it, each once."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield model
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            yield from _with_parts(inner, seen)


def _models_in(annotation: object) -> Iterator[type[BaseModel]]:
    from typing import get_args

    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _fields(model: type[BaseModel]) -> Iterator[str]:
    yield "| field | type | default | meaning |"
    yield "|---|---|---|---|"
    for field in option_fields(model):
        default = field.default if field.default == "required" else f"`{field.default}`"
        cells = [f"`{field.name}`", field.type, default, field.summary]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


PAGES: dict[str, Callable[[], str]] = {
    "hooks.md": hooks_markdown,
    "cli.md": cli_markdown,
    "documents.md": documents_markdown,
    "scoring.md": scoring_markdown,
}


def main(arguments: list[str]) -> int:
    """Write the pages into `docs`, or check them."""
    folder = Path("docs")
    if not folder.is_dir():
        click.echo("run this in the root of the checkout, where docs/ is", err=True)
        return 2
    stale = []
    for name, page in PAGES.items():
        try:
            text = page()
        except MetricUnavailableError as error:
            click.echo(f"left as it is: {name}, which cannot be made here: {error}", err=True)
            continue
        path = folder / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
    if stale:
        click.echo(("stale, run `make docs`: " if "--check" in arguments else "written: ") + ", ".join(stale), err=True)
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
