"""The files of a run: torn lines, full disks, locks."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap

import pytest

from mhe import Failure, Response
from mhe.errors import BusyError, DocumentError, StorageError
from mhe.run_folder import RunFolder, locked, safe_name, write_atomically

REQUESTS = {f"s{i}": f"digest{i}" for i in range(50)}


def filled(tmp_path, count=10):
    folder = RunFolder(tmp_path)
    with folder.appending():
        for i in range(count):
            folder.append([(Response(f"s{i}", text=f"answer {i} \u2028 \ud800", seconds=0.5), f"digest{i}")])
    return folder


def fill(folder, text):
    for i in range(50):
        folder.append([(Response(f"s{i}", text=text), f"digest{i}")])


def test_answers_come_back_as_they_were(tmp_path):
    found = filled(tmp_path).responses(REQUESTS)
    assert list(found) == [f"s{i}" for i in range(10)]
    assert found["s3"] == Response("s3", text="answer 3 \u2028 \ud800", seconds=0.5)


def test_a_line_torn_anywhere_costs_only_itself(tmp_path):
    folder = filled(tmp_path)
    path = tmp_path / "samples.jsonl"
    whole = path.read_bytes()
    start = whole[:-1].rindex(b"\n") + 1
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        assert len(folder.responses(REQUESTS, retry_system=True)) == 9
        assert path.read_bytes() == whole[:start], "the torn rest is cut off before anything is appended"


def test_a_tail_of_zeros_left_by_a_power_cut_is_cut_off(tmp_path):
    folder = filled(tmp_path)
    with (tmp_path / "samples.jsonl").open("ab") as stream:
        stream.write(b"\0" * 4096 + b"\n")
    assert len(folder.responses(REQUESTS, retry_system=True)) == 10


def test_damage_in_the_middle_is_never_passed_over(tmp_path):
    folder = filled(tmp_path)
    path = tmp_path / "samples.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[4] = b'{"id": "s4"'
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(DocumentError, match=r"line 5: damaged.*--fresh"):
        folder.responses(REQUESTS)


def test_answers_to_another_request_are_never_taken(tmp_path):
    folder = filled(tmp_path)
    with pytest.raises(DocumentError, match="not this run's"):
        folder.responses({**REQUESTS, "s2": "another prompt"})


def test_system_errors_are_tried_again_and_others_kept(tmp_path):
    folder = RunFolder(tmp_path)
    with folder.appending():
        for i, kind in enumerate(["data", "system", "model"]):
            folder.append([(Response(f"s{i}", error=Failure(kind, "why")), f"digest{i}")])
    assert set(folder.responses(REQUESTS)) == {"s0", "s1", "s2"}
    assert set(folder.responses(REQUESTS, retry_system=True)) == {"s0", "s2"}
    assert set(folder.responses(REQUESTS)) == {"s0", "s2"}


def test_a_full_disk_keeps_every_whole_answer(tmp_path):
    """The size limit of a process refuses a write in the middle, as a full disk does."""
    code = textwrap.dedent(
        f"""
        import resource, sys
        from pathlib import Path
        from mhe import Response
        from mhe.errors import StorageError
        from mhe.run_folder import RunFolder
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        folder = RunFolder(Path({str(tmp_path)!r}))
        with folder.appending():
            try:
                for i in range(50):
                    folder.append([(Response(f"s{{i}}", text="x" * 50), f"digest{{i}}")])
            except StorageError as error:
                print(error)
                sys.exit(error.exit_code)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "make room and run the same command again" in done.stdout
    data = (tmp_path / "samples.jsonl").read_bytes()
    assert data.endswith(b"\n")
    assert all(json.loads(line) for line in data.splitlines())
    assert len(RunFolder(tmp_path).responses(REQUESTS)) == len(data.splitlines()) > 3


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_disk_that_is_really_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("this machine does not let a test mount a file system")
    try:
        folder = RunFolder(disk)
        with folder.appending(), pytest.raises(StorageError, match="No space left"):
            fill(folder, "x" * 1000)
        assert len(folder.responses(REQUESTS)) > 5
        with pytest.raises(StorageError, match="Nothing before it is lost"):
            write_atomically(disk / "run.json", "y" * 20_000)
        assert not (disk / "run.json").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_lock_is_held_by_one_and_freed_by_a_kill(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from mhe.run_folder import locked\n"
        f"with locked(Path({str(tmp_path)!r}), 'evaluating'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(BusyError, match=f"process {holder.pid} on .* is already evaluating"),
        locked(tmp_path, "evaluating"),
    ):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path, "evaluating"):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()


def test_names_become_one_part_of_a_path():
    assert safe_name("org/name@main") == "org--name@main"
    assert safe_name("../..//etc") == "etc"
    assert safe_name("模型") == "unnamed"


def test_limits_are_those_of_the_child_only():
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_place_below_a_file_is_told_and_not_a_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "run.json", "x")
