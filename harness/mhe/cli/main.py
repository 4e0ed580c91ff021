"""`mhe`: a group of commands, each imported when it is called, and the one place where errors are shown."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from mhe.errors import MheError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe.catalog import Catalog

COMMANDS: dict[str, tuple[str, str]] = {
    "eval": ("mhe.cli.evaluate:evaluate_command", "Evaluate models on tasks."),
    "score": ("mhe.cli.score:score", "Score predictions made elsewhere."),
    "tune": ("mhe.cli.tune:tune", "Train or transform a model with a recipe; the result is a checkpoint."),
    "board": ("mhe.cli.board:board", "Make, fill, build and check leaderboards."),
    "data": ("mhe.cli.data:data", "Count and audit the data of a task."),
    "show": ("mhe.cli.show:show", "List what is there: tasks, models, metrics, runs and more."),
    "doctor": ("mhe.cli.doctor:doctor", "Check this machine, with a mend for each problem."),
}
INTERRUPTED = 130


class LazyGroup(click.Group):
    """Knows its commands by name and summary; imports one when it is called.

    Plugins' commands are looked for where a name is not ours, and for the list.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Ours in their order, then the plugins' by name."""
        return [*COMMANDS, *sorted(set(_catalog(ctx).commands) - set(COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None where nobody has it."""
        if cmd_name in COMMANDS:
            return _import(COMMANDS[cmd_name][0])
        catalog = _catalog(ctx)
        if cmd_name not in catalog.commands:
            return None
        command = catalog.command(cmd_name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list for `--help`, from the table alone: no command is imported."""
        rows = [(name, summary) for name, (_, summary) in COMMANDS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        extra = [
            (name, provider.summary)
            for name, provider in sorted(_catalog(ctx).commands.items())
            if name not in COMMANDS
        ]
        if extra:
            with formatter.section("Commands of plugins"):
                formatter.write_dl(extra)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a mistyped name."""
        name = args[0] if args else ""
        if name and not name.startswith("-") and self.get_command(ctx, name) is None:
            from mhe.errors import UnknownNameError

            raise UnknownNameError("command", name, self.list_commands(ctx), hint="Type: mhe --help")
        return super().resolve_command(ctx, args)


def _import(place: str) -> click.Command:
    import importlib

    module, _, attribute = place.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command), place
    return command


def _catalog(ctx: click.Context) -> Catalog:
    from mhe.catalog import open_catalog

    root = ctx.find_root()
    if root.obj is None:
        root.obj = open_catalog()
    catalog: Catalog = root.obj
    return catalog


def catalog_of(ctx: click.Context) -> Catalog:
    """The one catalogue of this call, opened when first needed."""
    return _catalog(ctx)


def _version(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if value:
        import mhe

        click.echo(f"mhe {mhe.__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Evaluate, tune and compress medical vision-language models, and publish what was measured.

    Start with: mhe eval --model tiny-llava --task phantom-vqa
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code: 0 complete, 3 partial, 2 the user's mistake, 1 our fault.

    An interruption leaves with 130, as shells expect.
    """
    try:
        code = cli.main(args=list(arguments) if arguments is not None else None, prog_name="mhe", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as done:
        code = done.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
        _error_document(arguments, error.format_message(), code)
    except (KeyboardInterrupt, click.exceptions.Abort):
        say("interrupted. What was done is kept: run the same command again to go on.")
        code = INTERRUPTED
    except MheError as error:
        say(f"error: {error}")
        code = error.exit_code
        _error_document(arguments, str(error), code)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); the interpreter must not complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


def _error_document(arguments: Sequence[str] | None, message: str, code: int) -> None:
    """With `--json`, a program that reads stdout gets the error there as well."""
    if "--json" in (sys.argv[1:] if arguments is None else arguments):
        import json

        click.echo(json.dumps({"error": {"message": message, "exit_code": code}}, ensure_ascii=False))


def say(text: str) -> None:
    """A line for the person, on stderr."""
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
