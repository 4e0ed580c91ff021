"""The committed Java classes are those of the sources beside them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from mhe import MetricUnavailableError
from mhe_metrics.java import CLASSES, find_jar

JARS = {"edu/anu/spice/SpiceJson": ("spice", "spice-1.0.jar"), "mhe/MeteorLines": ("meteor", "meteor-1.5.jar")}


def test_every_class_is_compared():
    made, written = (
        {path.relative_to(CLASSES).with_suffix("").as_posix() for path in CLASSES.rglob(f"*.{ending}")}
        for ending in ("class", "java")
    )
    assert made == written == set(JARS)


@pytest.mark.parametrize("name", sorted(JARS))
@pytest.mark.skipif(shutil.which("javac") is None, reason="javac is not installed")
def test_a_class_is_made_from_the_source_beside_it(tmp_path, name):
    try:
        jar = find_jar(*JARS[name])
    except MetricUnavailableError as error:
        pytest.skip(str(error))
    path = os.pathsep.join((str(jar), f"{jar.parent / 'lib'}/*"))
    command = ["javac", "--release", "8", "-g:none", "-nowarn", "-cp", path, "-d", tmp_path, CLASSES / f"{name}.java"]
    subprocess.run(command, check=True, capture_output=True)

    def shown(folder):
        told = subprocess.run(
            ["javap", "-c", "-p", folder / f"{name}.class"], check=True, capture_output=True, text=True
        )
        return told.stdout

    assert "invokevirtual" in shown(CLASSES)
    assert shown(tmp_path) == shown(CLASSES)
