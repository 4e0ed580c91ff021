"""Synthetic runs: real records, score files and statistics of a small metric, no model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mhe.boards.folders import BoardFolder, create_board
from mhe.boards.publishing import Admission, add_runs
from mhe.boards.verification import MetricShelf
from mhe.digests import digest_of
from mhe.documents.base import Part
from mhe.documents.board import BoardSpec
from mhe.documents.run import RunRecord
from mhe.errors import UnknownNameError
from mhe.statistics import bootstrap_weights, intervals, unit_sums
from mhe.values import MetricValue

SAMPLES, UNITS = 60, 30


class ToyAccuracy:
    """Share of right answers, over all samples and over the closed ones."""

    name, version = "toy-accuracy", "1"
    kinds, requires = ("vqa",), ()
    columns = ("right", "all", "closed_right", "closed")
    values = (MetricValue("toy.overall", "all"), MetricValue("toy.closed", "closed"))

    class Options(Part):
        """None but one, so that options are pinned."""

        strictness: int = 1

    def __init__(self, options, context) -> None:
        self.options = options

    def aggregate(self, sums):
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "toy.overall": sums[..., 0] / sums[..., 1],
                "toy.closed": sums[..., 2] / sums[..., 3],
            }


class FakeCatalog:
    """Knows the toy metric."""

    def __init__(self, *, empty: bool = False) -> None:
        self.metrics = {} if empty else {"toy-accuracy": ToyAccuracy}
        self.task_folders: dict[str, Any] = {}
        self.commands: dict[str, Any] = {}

    def metric(self, name):
        if name not in self.metrics:
            raise UnknownNameError("metric", name, self.metrics)
        return self.metrics[name]


def score_block(statistics: np.ndarray, units: list[str], groups: list[str]) -> list[dict[str, Any]]:
    metric = ToyAccuracy(None, None)
    totals = metric.aggregate(statistics.sum(axis=0))
    by_unit = unit_sums(statistics, units)
    ranges = intervals(metric.aggregate, by_unit, bootstrap_weights(len(by_unit)))
    values = []
    for value in metric.values:
        found = {}
        for label in sorted(set(groups)):
            rows = [i for i, g in enumerate(groups) if g == label]
            found[label] = float(metric.aggregate(statistics[rows].sum(axis=0))[value.name])
        low, high = ranges[value.name]
        values.append(
            {
                "name": value.name,
                "value": float(totals[value.name]),
                "low": low,
                "high": high,
                "samples": len(units),
                "groups": {"modality": found},
            }
        )
    return values


@dataclass
class RunMaker:
    """`make(model, right=0.8, seed=1, …)` writes a run folder; `edit` changes the record before it is written."""

    root: Path
    made: int = field(default=0)

    def __call__(
        self,
        model: str = "alpha",
        *,
        right: float = 0.8,
        seed: int = 0,
        task: str = "toy-vqa",
        noise: int = 7,
        edit: dict[str, Any] | None = None,
        score_edit=None,
    ) -> Path:
        self.made += 1
        folder = self.root / f"run-{self.made}"
        (folder / "scores").mkdir(parents=True)
        rng = np.random.default_rng([noise, seed])
        hits = (rng.random(SAMPLES) < right).astype(float)
        closed = (np.arange(SAMPLES) % 3 == 0).astype(float)
        statistics = np.stack([hits, np.ones(SAMPLES), hits * closed, closed], axis=1)
        units = [f"image-{i % UNITS}" for i in range(SAMPLES)]
        groups = ["CT" if i % 2 else "MRI" for i in range(SAMPLES)]
        key = digest_of([model, seed, task, self.made])
        scores = {
            "schema_version": 1,
            "metric": "toy-accuracy",
            "metric_version": "1",
            "profile": "strict",
            "profile_version": "2",
            "options": {"strictness": 1},
            "score_key": digest_of([key, "score"]),
            "columns": list(ToyAccuracy.columns),
            "ids": [f"q{i}" for i in range(SAMPLES)],
            "units": units,
            "groups": {"modality": groups},
            "statistics": statistics.tolist(),
            "values": {},
            "answers": "0" * 64,
        }
        metric = {
            "metric": "toy-accuracy",
            "metric_version": "1",
            "options": {"strictness": 1},
            "profile": "strict",
            "profile_version": "2",
            "score_key": scores["score_key"],
            "file": "scores/toy.json",
            "provisional": False,
            "values": score_block(statistics, units, groups),
        }
        record = _record(model, key, seed, task, metric)
        for path, value in (edit or {}).items():
            place = record
            *parents, last = path.split(".")
            for part in parents:
                place = place[int(part) if part.isdigit() else part]
            place[last] = value
        if score_edit:
            score_edit(scores)
        (folder / "scores" / "toy.json").write_text(json.dumps(scores), encoding="utf-8")
        (folder / "run.json").write_text(RunRecord.model_validate(record).to_json(), encoding="utf-8")
        return folder


def _record(model: str, key: str, seed: int, task: str, metric: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_key": key,
        "status": "complete",
        "task": {
            "name": task,
            "version": 1,
            "digest": "d" * 64,
            "kind": "vqa",
            "title": "Toy questions",
            "phantom": False,
            "primary": "toy.overall",
        },
        "data": {
            "task": f"{task}@1",
            "split": "test",
            "digest": "e" * 64,
            "samples": SAMPLES,
            "images": UNITS,
            "place": "local",
        },
        "model": {
            "name": model,
            "location": "nowhere",
            "fingerprint": digest_of(model),
            "verified": True,
            "files": {"model.safetensors": "f" * 64},
            "parameters": 1_000_000 + len(model) * 1000,
            "bytes_on_disk": 4_000_000 + len(model) * 1000,
        },
        "backend": {
            "name": "scripted",
            "version": "1",
            "key_options": {},
            "neutral_options": {},
            "device": "cpu",
            "precision": "float32",
        },
        "generation": {"max_new_tokens": 16, "temperature": 0.0, "top_p": 1.0, "stop": []},
        "seed": seed,
        "counts": {"samples": SAMPLES, "answered": SAMPLES},
        "metrics": [metric],
        "efficiency": {
            "device": "cpu",
            "batch_size": 8,
            "uninterrupted": True,
            "samples_per_second": 123.4,
            "latency_p50": 0.0371,
            "peak_host_bytes": 800_000_000,
            "reasons": {"peak_device_bytes": "no device memory"},
        },
        "environment": {"python": "3.11", "platform": "linux", "cpu_count": 2, "packages": {"numpy": "2"}},
        "code": {"mhe_version": "0.1.0", "commit": "abcdef0123456789", "dirty": False},
        "command": "mhe eval --model x",
        "started": "2025-01-01T00:00:00+00:00",
        "finished": "2025-01-01T00:01:00+00:00",
    }


def board_data(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": "toy",
        "version": 1,
        "title": "Toy board",
        "seeds": [0, 1],
        "tasks": [
            {
                "task": "toy-vqa@1",
                "title": "Toy questions",
                "split": "test",
                "profile": "strict",
                "metrics": ["toy.overall", "toy.closed"],
                "primary": "toy.overall",
                "pins": [
                    {
                        "metric": "toy-accuracy",
                        "version": "1",
                        "options": {"strictness": 1},
                        "profile_version": "2",
                        "values": ["toy.overall", "toy.closed"],
                    }
                ],
                "generation": {"max_new_tokens": 16},
            }
        ],
    }
    return {**data, **changes}


@dataclass
class Bench:
    """A board in a temporary folder with all that is needed to work on it."""

    root: Path
    make: RunMaker
    shelf: MetricShelf

    def new(self, **changes: Any) -> BoardFolder:
        return create_board(self.root, BoardSpec.from_data(board_data(**changes), "test"))

    def add(self, board: BoardFolder, *runs: Path, **admission: Any) -> BoardFolder:
        chosen = Admission(**{"day": "2025-02-03", **admission})
        return add_runs(board.path, runs, self.shelf, chosen)[0]


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    monkeypatch.setenv("MHE_CACHE_DIR", str(tmp_path / "cache"))
    return Bench(tmp_path / "leaderboards", RunMaker(tmp_path / "runs"), MetricShelf(FakeCatalog()))


@pytest.fixture
def fake_catalog() -> type[FakeCatalog]:
    return FakeCatalog


@pytest.fixture
def new_board_data():
    return board_data
