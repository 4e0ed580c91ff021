"""The value of `--batch-size`: a number, or `auto`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mhe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

AUTO = "auto"


class BatchSize(click.ParamType[int | str]):
    """A whole number from 1 on, or the word `auto`. Whether a backend knows `auto` is its own matter."""

    name = "N|auto"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number or the word."""
        text = str(value).strip().lower()
        if text == AUTO:
            return AUTO
        if not (text.isascii() and text.isdigit() and int(text) >= 1):
            self.fail(f"{value!r} is neither auto nor a whole number from 1 on.", param, ctx)
        return int(text)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002 - as click has it
        """As the help shows it."""
        return self.name


def refuse_batch_size_in(backend_options: Mapping[str, object]) -> None:
    """Raise `UserError` where the backend's options name a batch size as well."""
    if "batch_size" in backend_options:
        raise UserError("--batch-size and --set backend.batch_size are one setting: give --batch-size alone.")
