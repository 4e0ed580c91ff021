"""The options of a plugin as rows: name, type, default, range and the text below each field.

The texts are the strings that stand below fields in the source; pydantic would read them at every import of the
class, and they are wanted only when somebody asks.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import textwrap
import types
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from mhe.documents.base import is_answer_neutral

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >=", "pattern": "matching"}
_WORDS: dict[object, str] = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    type(None): "nothing",
    Any: "anything",
    Path: "path",
}


@dataclass(frozen=True, slots=True)
class OptionField:
    """One option, ready to print."""

    name: str
    type: str
    """Type with its range: `integer >= 1`."""
    default: str
    """As JSON; `required` where there is none."""
    summary: str
    answer_neutral: bool
    """Stays out of the run key."""

    def to_json(self) -> dict[str, object]:
        """For `--json`."""
        return asdict(self)


def option_fields(model: type[BaseModel]) -> list[OptionField]:
    """Every field of a pydantic model, in its order."""
    texts = field_texts(model)
    return [
        OptionField(
            name=name,
            type=_type_text(field),
            default=_default_text(field),
            summary=field.description or texts.get(name, ""),
            answer_neutral=is_answer_neutral(field),
        )
        for name, field in model.model_fields.items()
    ]


def field_texts(model: type[BaseModel]) -> dict[str, str]:
    """The string below each field in the source of the class and of those it derives from; empty without a source."""
    texts: dict[str, str] = {}
    for kind in reversed(model.__mro__):
        if kind is BaseModel or not issubclass(kind, BaseModel):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):
            continue
        if not isinstance(tree.body[0], ast.ClassDef):
            continue
        body = tree.body[0].body
        for field, below in itertools.pairwise(body):
            if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
                continue
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[field.target.id] = " ".join(str(below.value.value).split())
    return texts


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return json.dumps(value, ensure_ascii=False, default=_as_given)


def _as_given(value: object) -> object:
    """A nested part as a user would write it."""
    return value.model_dump(mode="json", exclude_defaults=True) if isinstance(value, BaseModel) else str(value)


def _type_text(field: FieldInfo) -> str:
    bounds = []
    for constraint in field.metadata:
        for attribute, sign in _BOUNDS.items():
            bound = getattr(constraint, attribute, None)
            if bound is not None:
                bounds.append(f"{sign} {bound}")
    return " ".join([type_text(field.annotation), *bounds])


def type_text(annotation: Any) -> str:  # noqa: ANN401 - an annotation is any object
    """An annotation in words: `integer`, `"eager" | "sdpa"`, `list of text`."""
    origin = get_origin(annotation)
    arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    if origin is Literal:
        return " | ".join(json.dumps(value) for value in arguments)
    if origin is Annotated:
        return type_text(arguments[0])
    kinds = [type_text(argument) for argument in arguments]
    if origin in (Union, types.UnionType):
        text = " | ".join(kinds)
    elif origin is dict:
        text = " to ".join(kinds)
    elif origin in (tuple, list, set, frozenset):
        text = f"list of {kinds[0]}" if len(kinds) == 1 else f"[{', '.join(kinds)}]"
    else:
        text = _WORDS.get(annotation) or str(getattr(annotation, "__name__", annotation))
    return text
