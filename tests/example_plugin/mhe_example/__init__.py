"""The hooks of the plugin. Each thing is imported when it is used, so that `mhe --help` stays fast."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path

from mhe import ModelSpec, Provider, hookimpl


def _backend():
    from mhe_example.backend import ThresholdBackend

    return ThresholdBackend


def _metric():
    from mhe_example.metric import AnswerLength

    return AnswerLength


def _profile():
    from mhe_example.profile import FIRST_WORD

    return FIRST_WORD


def _reader():
    from mhe_example.reader import ShadesReader

    return ShadesReader


def _recipe():
    from mhe_example.recipe import FitThreshold

    return FitThreshold


def _command():
    from mhe_example.command import shades

    return shades


@hookimpl
def register_backends():
    return [Provider("threshold", "says whether an image is brighter than a learned threshold", _backend)]


@hookimpl
def register_models():
    return [
        ModelSpec(
            name="half-bright",
            backend="threshold",
            location="package:mhe_example/models/half",
            summary="calls bright what is brighter than half",
        )
    ]


@hookimpl
def register_metrics():
    return [Provider("answer-length", "mean number of words of an answer", _metric)]


@hookimpl
def register_profiles():
    return [Provider("first-word", "only the first word of an answer counts", _profile)]


@hookimpl
def register_readers():
    return [Provider("shades", "grey squares drawn in memory", _reader)]


@hookimpl
def register_task_folders():
    return [files("mhe_example") / "shades"]


@hookimpl
def register_recipes():
    return [Provider("fit-threshold", "the threshold that errs least on the training answers", _recipe)]


@hookimpl
def register_commands():
    return [Provider("shades", "Print the shades of the task.", _command)]


@hookimpl
def run_finished(record, folder):
    if log := os.environ.get("MHE_EXAMPLE_LOG"):
        line = {"task": record.task.name, "model": record.model.name, "status": record.status, "folder": str(folder)}
        with Path(log).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
