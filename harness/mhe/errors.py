"""Every error that `mhe` raises on purpose.

    MheError                       shown without a traceback, by the CLI, at one place
    ├── UserError                  exit 2: what happened, what is allowed, what to type next
    │   ├── UnknownNameError       a name nobody registered: suggestion and list
    │   ├── DocumentError          all problems of one file at once, with lines
    │   ├── DataMissingError       the data set is not on this machine: what to get, where to put it
    │   ├── MissingExtraError      an optional dependency is absent: the pip line
    │   ├── ModelUnusableError     a model that cannot be found, read or loaded
    │   └── BusyError              another process works on the same folder
    ├── StorageError               exit 3: the disk refused; what was written before is safe
    ├── ShareDoneError             no failure: one of several processes has done its share of a training
    ├── FirstProcessGoneError      of several processes, the one that writes ended without a result
    ├── MetricUnavailableError     a metric cannot be computed here: null with this reason
    └── SampleError                one sample failed; recorded, the run goes on
        ├── SampleDataError        kind `data`: unreadable image, missing file
        ├── SampleModelError       kind `model`: prompt beyond the context, malformed output
        └── SampleSystemError      kind `system`: memory, server, disk; tried again at the next start

Anything else that escapes is a defect of ours and leaves with exit 1 and a traceback.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ErrorKind = Literal["data", "model", "system"]


class MheError(Exception):
    """Base of all errors that are shown to the user without a traceback."""

    exit_code: ClassVar[int] = 1


class UserError(MheError):
    """The user can mend it; the message says how."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(UserError):
    """A name that nobody registered.

    `kind` is the noun (`task`, `model`), `known` every allowed name.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        close = difflib.get_close_matches(name, self.known, n=1, cutoff=0.5)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        lines = [f"there is no {kind} named {name!r}.{suggestion}"]
        lines.append(f"Known {kind}{'es' if kind.endswith('s') else 's'}: {', '.join(self.known) or 'none'}.")
        if hint:
            lines.append(hint)
        super().__init__("\n".join(lines))


class DocumentError(UserError):
    """All problems of one file.

    `problems` are ready to print, each with its line where one is known; `hint` stands below them.
    """

    def __init__(self, place: str, problems: Sequence[str], hint: str = "") -> None:
        self.place = place
        self.problems = list(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = [f"{place}: {len(self.problems)} {noun}", *(f"  {problem}" for problem in self.problems)]
        super().__init__("\n".join([*lines, hint] if hint else lines))


class DataMissingError(UserError):
    """The data of a task is not on this machine and could not be fetched."""


class MissingExtraError(UserError):
    """An optional dependency is not installed; the message carries the pip line."""

    def __init__(self, extra: str, needed_for: str, missing: str = "") -> None:
        self.extra = extra
        detail = f" ({missing} is not installed)" if missing else ""
        super().__init__(f"{needed_for} needs the extra '{extra}'{detail}: pip install 'mhe[{extra}]'")


class ModelUnusableError(UserError):
    """A model that cannot be found, read or loaded."""


class BusyError(UserError):
    """Another process holds the lock of this folder."""


class StorageError(MheError):
    """The disk refused a write; everything written before is kept."""

    exit_code: ClassVar[int] = 3


class ShareDoneError(MheError):
    """Raised by a recipe, in every process but the first, when its share of the training is done.

    The first process goes on to write the result.
    """


class FirstProcessGoneError(MheError):
    """The process that writes the checkpoint ended without one; its own message says why."""


class MetricUnavailableError(MheError):
    """A metric cannot be computed here. Its value is null with this message as the reason."""


class SampleError(MheError):
    """One sample could not be answered; recorded with its kind, and the run goes on."""

    kind: ClassVar[ErrorKind] = "system"


class SampleDataError(SampleError):
    """The sample itself is unreadable."""

    kind: ClassVar[ErrorKind] = "data"


class SampleModelError(SampleError):
    """The model cannot take this sample or answered outside its contract."""

    kind: ClassVar[ErrorKind] = "model"


class SampleSystemError(SampleError):
    """The machine or a server failed; worth trying again."""

    kind: ClassVar[ErrorKind] = "system"
