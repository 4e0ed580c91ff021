"""`mhe`: a group of commands, each imported when it is called, and the one place where errors are shown."""

from __future__ import annotations

import os
import select
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

import click

from mhe.errors import MheError, StorageError, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from click.shell_completion import CompletionItem

    from mhe.catalog import Catalog

COMMANDS: dict[str, tuple[str, str]] = {
    "eval": ("mhe.cli.evaluate:evaluate_command", "Evaluate models on tasks."),
    "score": ("mhe.cli.score:score", "Score predictions made elsewhere."),
    "compare": ("mhe.cli.compare:compare", "Compare runs: differences, paired tests, what changed."),
    "check-backends": ("mhe.cli.check_backends:check_backends", "Ask one model through several backends, and compare."),
    "bench-model": ("mhe.cli.bench_model:bench_model", "Measure what a model costs, without scoring."),
    "tune": ("mhe.cli.tune:tune", "Train or transform a model with a recipe; the result is a checkpoint."),
    "board": ("mhe.cli.board:board", "Make, fill, build and check leaderboards."),
    "data": ("mhe.cli.data:data", "Count and audit the data of a task."),
    "show": ("mhe.cli.show:show", "List what is there: tasks, models, metrics, runs and more."),
    "doctor": ("mhe.cli.doctor:doctor", "Check this machine, with a mend for each problem."),
}
INTERRUPTED = 130


class _ReaderGoneError(Exception):
    """Nobody reads our output any more (`| head`). click would leave with 1, which stands for a fault of ours."""


@contextmanager
def _noticing_readers() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        if any(_has_no_reader(stream) for stream in (sys.stdout, sys.stderr)):
            raise _ReaderGoneError from error
        # click would leave with 1 and no word about it.
        raise RuntimeError("a pipe or connection broke that is not our output") from error


def _has_no_reader(stream: TextIO | None) -> bool:
    if stream is None:
        return False
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class LazyGroup(click.Group):
    """Knows its commands by name and summary; imports one when it is called.

    Plugins' commands are looked for where a name is not ours, and for the list.
    """

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,  # noqa: ANN401 - as click has it
    ) -> click.Context:
        """As click does; `--help` is written here."""
        with _noticing_readers():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        """As click does."""
        with _noticing_readers():
            result: object = super().invoke(ctx)
            if sys.stdout is not None:
                sys.stdout.flush()
            return result

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
        if not isinstance(command, click.Command):
            owner = catalog.owner_of("command", cmd_name)
            raise UserError(
                f"the command {cmd_name!r} of plugin {owner.name if owner else '?'} is a {type(command).__name__}, and "
                "must be a click.Command. Tell its author, and see docs/hooks.md."
            )
        return command

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

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Commands and options from the tables alone: click would import every command, broken ones included."""
        from click.shell_completion import CompletionItem

        summaries = {name: provider.summary for name, provider in _catalog(ctx).commands.items()}
        summaries |= {name: summary for name, (_, summary) in COMMANDS.items()}
        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        options = click.Command.shell_complete(self, ctx, incomplete)
        return [*(CompletionItem(name, help=summaries[name]) for name in names), *options]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a mistyped name."""
        if ctx.resilient_parsing:
            # Shell completion: a message would land in the middle of the line that is being typed.
            try:
                return super().resolve_command(ctx, args)
            except MheError:
                return None, None, args
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
    except click.exceptions.Exit as done:
        code = done.exit_code
    except (KeyboardInterrupt, click.exceptions.Abort):
        say("interrupted. What was done is kept: run the same command again to go on.")
        code = INTERRUPTED
    except (MheError, click.ClickException) as error:
        code = _show_error(error, arguments)
    except _ReaderGoneError:
        _drop_output()
        code = 0
    except OSError as error:
        from mhe.run_folder import is_disk_refusing

        if not is_disk_refusing(error):
            raise
        _drop_output()
        say("error: the disk is full. What was written before is kept: make room and run the same command again.")
        code = StorageError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _drop_output() -> None:
    """Let what is still buffered for stdout vanish: the interpreter would complain about it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_error(error: MheError | click.ClickException, arguments: Sequence[str] | None) -> int:
    """Tell the person; with `--json`, a program that reads stdout gets the error there as well. Its exit code."""
    if isinstance(error, click.ClickException):
        # Whatever click complains about was typed wrongly.
        error.show()
        message, code = error.format_message(), 2
    else:
        say(f"error: {error}")
        message, code = str(error), error.exit_code
    if "--json" in (sys.argv[1:] if arguments is None else arguments):
        import json

        try:
            click.echo(json.dumps({"error": {"message": message, "exit_code": code}}, ensure_ascii=False))
        except OSError:
            # Nobody reads stdout, or its disk is full: the message stands on stderr already.
            _drop_output()
    return code


def say(text: str) -> None:
    """A line for the person, on stderr."""
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
