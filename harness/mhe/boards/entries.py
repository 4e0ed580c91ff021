"""One entry of a board on disk: `run.json` and `scores.jsonl.gz`.

`scores.jsonl.gz` holds what paired tests and intervals need and no text of the data set:

    {"format": "mhe-scores", "version": 1, "samples": N, "groups": {"modality": ["CT", "MRI"]}}
    {"id": …, "unit": …, "groups": [0]}          N lines: sample, what it is resampled by, places in the lists above
    {"metric": …, "profile": …, "columns": […]}  one header a metric, followed by
    [1.0, 0.0]                                   N lines of its statistics, in the order of the samples

The compressed bytes depend on the zlib that wrote them, so digests and checks are over the content.
"""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mhe.digests import bytes_digest, digest_of
from mhe.documents.run import RunRecord
from mhe.errors import DocumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mhe.protocols import FloatArray

RUN_FILE = "run.json"
SCORES_FILE = "scores.jsonl.gz"
FORMAT = "mhe-scores"
FORMAT_VERSION = 1
LONGEST_ID = 200
LONGEST_LABEL = 80
LARGEST_CONTENT = 1 << 29


@dataclass(frozen=True, slots=True)
class EntrySamples:
    """The samples of an entry, in the order of the task."""

    ids: tuple[str, ...]
    units: tuple[str, ...]
    groups: Mapping[str, tuple[str | None, ...]]
    """Group to one label a sample."""


@dataclass(frozen=True, slots=True)
class EntryMetric:
    """The statistics of one metric under one profile."""

    metric: str
    metric_version: str
    options: Mapping[str, object]
    profile: str
    profile_version: str
    score_key: str
    columns: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]

    def array(self) -> FloatArray:
        """The statistics, shape (samples, columns)."""
        import numpy as np

        return np.array(self.rows, dtype=np.float64).reshape(len(self.rows), len(self.columns))


@dataclass(frozen=True, slots=True)
class EntryScores:
    """Everything in `scores.jsonl.gz`."""

    samples: EntrySamples
    metrics: tuple[EntryMetric, ...]

    def of(self, metric: str, profile: str) -> EntryMetric | None:
        """The statistics of a metric under a profile."""
        return next((m for m in self.metrics if (m.metric, m.profile) == (metric, profile)), None)


@dataclass(frozen=True, slots=True)
class Entry:
    """A published run."""

    entrant: str
    task: str
    """Without its version, as the folder says."""
    seed: int
    record: RunRecord
    scores: EntryScores
    digest: str


def entry_digest(run_json: bytes, scores_content: bytes) -> str:
    """Over the record's bytes and the uncompressed statistics."""
    return digest_of([bytes_digest(run_json), bytes_digest(scores_content)])


def read_entry(folder: Path, entrant: str, task: str, seed: int) -> Entry:
    """Read one entry. Raises `DocumentError` with every problem found, for anything but the two files as well."""
    problems = [f"{p.name}: not part of an entry" for p in _strangers(folder)]
    if problems:
        raise DocumentError(str(folder), problems)
    problems, record, scores, content = [], None, None, b""
    try:
        record = RunRecord.from_json(folder / RUN_FILE)
    except DocumentError as error:
        problems += [f"{RUN_FILE}: {text}" for text in error.problems]
    try:
        content = read_content(folder / SCORES_FILE)
        scores = parse_scores(content, str(folder / SCORES_FILE))
    except DocumentError as error:
        problems += [f"{SCORES_FILE}: {text}" for text in error.problems]
    if record is None or scores is None:
        raise DocumentError(str(folder), problems)
    digest = entry_digest((folder / RUN_FILE).read_bytes(), content)
    return Entry(entrant, task, seed, record, scores, digest)


def _strangers(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.name not in {RUN_FILE, SCORES_FILE} or p.is_symlink())


def read_content(path: Path) -> bytes:
    """The uncompressed statistics. Raises `DocumentError`."""
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read(LARGEST_CONTENT + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DocumentError(str(path), [f"cannot be read as gzip: {error}"]) from None
    if len(content) > LARGEST_CONTENT:
        raise DocumentError(str(path), [f"holds more than {LARGEST_CONTENT >> 20} MiB: not statistics of a run"])
    return content


def compressed(content: bytes) -> bytes:
    """Gzip without name and time, so that one zlib always makes the same bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(content)
    return buffer.getvalue()


# ------------------------------------------------------------ writing


def scores_content(scores: EntryScores) -> bytes:
    """The uncompressed bytes of `scores.jsonl.gz`."""
    samples = scores.samples
    labels = {name: sorted({v for v in values if v is not None}) for name, values in sorted(samples.groups.items())}
    places = {name: {label: index for index, label in enumerate(found)} for name, found in labels.items()}
    lines = [_line({"format": FORMAT, "version": FORMAT_VERSION, "samples": len(samples.ids), "groups": labels})]
    for index, (name, unit) in enumerate(zip(samples.ids, samples.units, strict=True)):
        codes = []
        for group in labels:
            label = samples.groups[group][index]
            codes.append(None if label is None else places[group][label])
        lines.append(_line({"id": name, "unit": unit, "groups": codes}))
    for metric in scores.metrics:
        header = {
            "metric": metric.metric,
            "metric_version": metric.metric_version,
            "options": dict(metric.options),
            "profile": metric.profile,
            "profile_version": metric.profile_version,
            "score_key": metric.score_key,
            "columns": list(metric.columns),
        }
        lines.append(_line(header))
        lines += [_line([_number(value) for value in row]) for row in metric.rows]
    return "".join(lines).encode("utf-8")


def _line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _number(value: float) -> float | int:
    # Counts are most of the numbers; "3" is half of "3.0" and reads the same.
    return int(value) if value.is_integer() and not (value == 0 and math.copysign(1, value) < 0) else value


# ------------------------------------------------------------ reading


def parse_scores(content: bytes, place: str) -> EntryScores:
    """Parse and check the statistics. Raises `DocumentError` with the line of the first damage."""
    try:
        # Split at newlines only: an id may hold other line ends, which JSON leaves as they are.
        lines = [json.loads(line) for line in content.decode("utf-8").split("\n")[:-1]]
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DocumentError(place, [f"damaged: {error}"]) from None
    try:
        return _parse(lines)
    except _DamageError as damage:
        raise DocumentError(place, [str(damage)]) from None


class _DamageError(Exception):
    def __init__(self, line: int, what: str) -> None:
        super().__init__(f"line {line}: {what}")


def _parse(lines: Sequence[object]) -> EntryScores:
    head = _mapping(lines, 0, {"format", "version", "samples", "groups"})
    if head["format"] != FORMAT or head["version"] != FORMAT_VERSION:
        raise _DamageError(1, f"expected {FORMAT} {FORMAT_VERSION}, found {head['format']!r} {head['version']!r}")
    count, labels = head["samples"], head["groups"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1 or not isinstance(labels, dict):
        raise _DamageError(1, f"expected a number of samples and lists of groups, found {count!r}")
    for group, found in labels.items():
        names = [group, *found] if isinstance(found, list) else [None]
        if not all(name == "" or _is_short(name, LONGEST_LABEL) for name in names):
            raise _DamageError(1, f"labels of group {group[:40]!r} are not short names")
    samples = _parse_samples(lines, count, labels)
    metrics, position = [], 1 + count
    while position < len(lines):
        metrics.append(_parse_metric(lines, position, count))
        position += 1 + count
    return EntryScores(samples, tuple(metrics))


def _parse_samples(lines: Sequence[object], count: int, labels: Mapping[str, list[str]]) -> EntrySamples:
    ids, units = [], []
    groups: dict[str, list[str | None]] = {group: [] for group in labels}
    for position in range(1, 1 + count):
        row = _mapping(lines, position, {"id", "unit", "groups"})
        name, unit, codes = row["id"], row["unit"], row["groups"]
        if not _is_short(name, LONGEST_ID) or not _is_short(unit, LONGEST_ID):
            raise _DamageError(position + 1, f"id and unit must be names of at most {LONGEST_ID} characters, not text")
        if not isinstance(codes, list) or len(codes) != len(labels):
            raise _DamageError(position + 1, "expected one place for each group")
        for (group, found), code in zip(labels.items(), codes, strict=True):
            if code is not None and not (type(code) is int and 0 <= code < len(found)):
                raise _DamageError(position + 1, f"group {group!r} has no label number {code!r}")
            groups[group].append(None if code is None else found[code])
        ids.append(str(name))
        units.append(str(unit))
    if len(set(ids)) != len(ids):
        raise _DamageError(2, "an id stands more than once")
    return EntrySamples(tuple(ids), tuple(units), {group: tuple(found) for group, found in groups.items()})


_HEADER_KEYS = {"metric", "metric_version", "options", "profile", "profile_version", "score_key", "columns"}


def _parse_metric(lines: Sequence[object], position: int, count: int) -> EntryMetric:
    head = _mapping(lines, position, _HEADER_KEYS)
    columns, options = head["columns"], head["options"]
    if not isinstance(columns, list) or not all(_is_short(name, LONGEST_LABEL) for name in columns):
        raise _DamageError(position + 1, "columns must be short names")
    if not isinstance(options, dict):
        raise _DamageError(position + 1, "options must be a mapping")
    rows = []
    for place in range(position + 1, position + 1 + count):
        row = lines[place] if place < len(lines) else None
        if not isinstance(row, list) or len(row) != len(columns):
            raise _DamageError(place + 1, f"expected {len(columns)} numbers")
        if not all(type(value) in {int, float} and math.isfinite(value) for value in row):
            raise _DamageError(place + 1, "a statistic is not a finite number")
        rows.append(tuple(float(value) for value in row))
    names = {key: str(head[key]) for key in _HEADER_KEYS - {"columns", "options"}}
    return EntryMetric(options=options, columns=tuple(columns), rows=tuple(rows), **names)


def _mapping(lines: Sequence[object], position: int, keys: set[str]) -> dict[str, object]:
    found = lines[position] if position < len(lines) else None
    if not isinstance(found, dict) or set(found) != keys:
        raise _DamageError(position + 1, f"expected a line with {', '.join(sorted(keys))}")
    return found


def _is_short(value: object, longest: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()
