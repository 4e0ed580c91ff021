"""The documentation of fields, as it stands below each in the source.

Read here, when somebody asks, rather than by pydantic for every class at every start.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel


@lru_cache
def field_docs(model: type[BaseModel]) -> dict[str, str]:
    """Field name to the text below it, inherited fields included; no entry where there is none."""
    found: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if not declares_fields(kind):
            continue
        try:
            source = textwrap.dedent(inspect.getsource(kind))
        except (OSError, TypeError):
            continue
        body = getattr(ast.parse(source).body[0], "body", [])
        for statement, following in zip(body, body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                if (text := _text_of(following)) is not None:
                    found[statement.target.id] = " ".join(text.split())
    return found


def declares_fields(kind: type) -> bool:
    """Whether a class declares fields of a pydantic model, and is not pydantic's own base."""
    return hasattr(kind, "model_fields") and kind.__module__.split(".")[0] != "pydantic"


def _text_of(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return value if isinstance(value, str) else None
    return None
