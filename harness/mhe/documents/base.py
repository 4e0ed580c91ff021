"""What every document on disk has in common: strict keys, a version, and migrations from every past one."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from mhe.documents.migrations import migrate
from mhe.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic.fields import FieldInfo

P = TypeVar("P", bound=BaseModel)


class Part(BaseModel):
    """A nested part of a document, or the options of a plugin: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class BackendOptions(Part):
    """Options of a backend, parted into those that may change an answer and those that may not.

    A field that may not says so: `Field(…, json_schema_extra={"answer_neutral": True})`.
    """

    def in_key(self) -> dict[str, object]:
        """Options that may change an answer, as JSON-able values: for `BackendDescription.key_options`."""
        return self._chosen(are_neutral=False)

    def neutral(self) -> dict[str, object]:
        """Options declared answer-neutral: for `BackendDescription.neutral_options`."""
        return self._chosen(are_neutral=True)

    def _chosen(self, *, are_neutral: bool) -> dict[str, object]:
        fields = type(self).model_fields
        names = {name for name, field in fields.items() if is_answer_neutral(field) is are_neutral}
        return self.model_dump(mode="json", include=names)


def is_answer_neutral(field: FieldInfo) -> bool:
    """Whether a field of options declares that it changes no answer, and stays out of keys."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("answer_neutral") is True


class Document(Part):
    """A file on disk. `schema_version` is the one this code writes; older ones are migrated on reading."""

    current_version: ClassVar[int] = 1

    schema_version: int = 1

    @classmethod
    def from_data(cls, data: object, place: str) -> Self:
        """Validate parsed JSON or YAML; raises `DocumentError` with all problems at once."""
        if not isinstance(data, dict):
            raise DocumentError(place, [f"expected a mapping at the top, found {type(data).__name__}"])
        data = migrate(cls.__name__, data, cls.current_version, place)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DocumentError(place, problems_of(error)) from None

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read and validate a JSON file."""
        import json

        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DocumentError(str(path), [f"cannot be read as JSON: {error}"]) from None
        return cls.from_data(data, str(path))

    def to_json(self) -> str:
        """The document as it is written: sorted by declaration, two blanks, a final newline."""
        return self.model_dump_json(indent=2) + "\n"


def parse_options(kind: type[P], settings: Mapping[str, object], place: str) -> P:
    """Options of a plugin from what a user or a document says.

    Raises `DocumentError` with every problem at once, a suggestion for each mistyped name, and all names.
    """
    try:
        return kind.model_validate(dict(settings))
    except ValidationError as error:
        known = sorted(kind.model_fields)
        problems = []
        for item, text in zip(error.errors(), problems_of(error), strict=True):
            name = str(item["loc"][-1]) if item["loc"] else ""
            close = difflib.get_close_matches(name, known, n=1) if item["type"] == "extra_forbidden" else []
            problems.append(f"{text}. Did you mean {close[0]}?" if close else text)
        raise DocumentError(place, problems, hint=f"Known options: {', '.join(known) or 'none'}.") from None


def problems_of(error: ValidationError) -> list[str]:
    """One line a problem: where, what, and the value found."""
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "(top)"
        if item["type"] == "missing":
            lines.append(f"{where}: required, and missing")
        elif item["type"] == "extra_forbidden":
            lines.append(f"{where}: no such key")
        else:
            lines.append(f"{where}: {item['msg']} (found {shortened(item['input'])})")
    return lines


def shortened(value: object, width: int = 60) -> str:
    """`repr` of a value, cut to a line."""
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"
