"""`--set KEY=VALUE`: values are read as YAML, so that numbers, booleans and lists need no quoting of their own."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from mhe.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def parse_settings(settings: Sequence[str], scopes: Sequence[str]) -> dict[str, dict[str, object]]:
    """Scope to key to value, such as `{"generation": {"temperature": 0.7}}`, with every scope present.

    Raises `UserError` listing all settings that cannot be read.
    """
    chosen: dict[str, dict[str, object]] = {scope: {} for scope in scopes}
    problems = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        scope, dot, name = key.strip().partition(".")
        if not equals:
            problems.append(f"{setting!r}: write KEY=VALUE")
        elif scope not in chosen or not dot or not name:
            close = difflib.get_close_matches(scope, scopes, n=1)
            hint = f" Did you mean {close[0]}.{name or '…'}?" if close else ""
            problems.append(f"{key!r}: must begin with {', '.join(f'{s}.' for s in scopes)}.{hint}")
        elif name in chosen[scope]:
            problems.append(f"{key.strip()!r}: given twice")
        else:
            try:
                chosen[scope][name] = parse_value(text)
            except ValueError as error:
                problems.append(f"{setting!r}: {error}")
    if problems:
        raise UserError("--set cannot be read:\n" + "\n".join(f"  {problem}" for problem in problems))
    return chosen


def by_metric(settings: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """`{"bertscore.encoder": x}` as `{"bertscore": {"encoder": x}}`. Raises `UserError` for a key without an option.

    `medbertscore.tagger_options.file` is an option within an option.
    """
    nested: dict[str, dict[str, object]] = {}
    for key, value in settings.items():
        metric, _, option = key.partition(".")
        if not option:
            raise UserError(f"--set metrics.{key}: give metrics.NAME.OPTION=VALUE.")
        *outer, last = option.split(".")
        inner = nested.setdefault(metric, {})
        for name in outer:
            found = inner.setdefault(name, {})
            if not isinstance(found, dict):
                raise UserError(f"--set metrics.{key}: metrics.{metric}.{name} is set to a value as well.")
            inner = found
        inner[last] = value
    return nested


def parse_value(text: str) -> object:
    """A YAML scalar or list. Raises `ValueError` for text that is not YAML."""
    import yaml

    try:
        value: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not a YAML value ({str(error).splitlines()[0]})") from None
    if isinstance(value, bool) and text.strip().lower() not in ("true", "false"):
        # YAML 1.1 takes yes, no, on and off for booleans, and an answer or a label may be just that.
        return text.strip()
    # YAML 1.1 reads 1e-5 as a text; people mean the number. Quoted, it is a text.
    return float(text) if isinstance(value, str) and EXPONENT.fullmatch(text.strip()) else value
