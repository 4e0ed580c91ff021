"""Energy of NVIDIA devices, read through a library that counts as NVML does, in thousandths of a joule."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from mhe_hf.clocks import EnergyMeter  # noqa: E402


class NVMLError(Exception):
    pass


@pytest.fixture
def counters(monkeypatch):
    """Two devices, seen by torch in the other order than by the library, and what each has used so far."""
    used = {"GPU-b": 5_000, "GPU-a": 70_000}

    def read(handle):
        if used[handle] is None:
            raise NVMLError("not supported")
        return used[handle]

    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda name: name,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(uuid="ab"[n]))
    return used


def test_joules_are_summed_over_devices_and_over_stretches(counters):
    meter = EnergyMeter()
    meter.start()
    counters["GPU-a"] += 1_500
    counters["GPU-b"] += 500
    meter.stop()
    assert meter.joules == 2.0
    counters["GPU-a"] += 9_000  # between two stretches: not the run's
    meter.start()
    counters["GPU-b"] += 250
    meter.stop()
    assert meter.joules == 2.25


def test_a_device_that_does_not_count_leaves_no_number(counters):
    counters["GPU-b"] = None
    meter = EnergyMeter()
    meter.start()
    meter.stop()
    assert meter.joules is None


@pytest.mark.parametrize("lack", ["device", "library", "driver"])
def test_where_something_lacks_there_is_no_number(counters, monkeypatch, lack):
    def refuse():
        raise NVMLError("driver not loaded")

    if lack == "device":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    elif lack == "library":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    else:
        monkeypatch.setattr(sys.modules["pynvml"], "nvmlInit", refuse)
    meter = EnergyMeter()
    meter.start()
    meter.stop()
    assert meter.joules is None
