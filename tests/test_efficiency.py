"""Cost is measured or null with its reason, never guessed."""

from __future__ import annotations

import pytest

from command import mhe
from mhe import BackendDescription, Failure, Fingerprint, Response
from mhe.efficiency import measure_efficiency, percentile

DESCRIPTION = BackendDescription("toy", "1", Fingerprint("weights", verified=True), device="cpu")


def measured(responses, *, uninterrupted=True, **usage):
    return measure_efficiency(
        responses, DESCRIPTION, usage, uninterrupted=uninterrupted, generate_seconds=2.0, score_seconds=0.1
    )


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, None), ([7.0], 0.95, 7.0), ([4, 1, 3, 2], 0.5, 2), (range(1, 101), 0.95, 95), (range(1, 101), 0.5, 50)],
)
def test_percentiles_are_nearest_ranks(values, share, expected):
    assert percentile(list(values), share) == expected


def test_rates_are_over_what_was_answered():
    responses = [Response(str(i), text="x", prompt_tokens=10, generated_tokens=3, seconds=i / 10) for i in range(1, 9)]
    responses.append(Response("bad", error=Failure("data", "broken")))
    cost = measured(responses, load_seconds=1.5, batch_size=4.0)
    assert cost.samples_per_second == 4.0
    assert cost.prompt_tokens_per_second == 40.0
    assert cost.generated_tokens_per_second == 12.0
    assert (cost.latency_p50, cost.latency_p95) == (0.4, 0.8)
    assert (cost.load_seconds, cost.batch_size) == (1.5, 4)


def test_what_was_not_measured_is_null_with_its_reason():
    cost = measured([Response("a", text="x")], uninterrupted=False)
    names = [name for name in type(cost).model_fields if name not in ("batch_size", "device", "reasons")]
    for name in names:
        if getattr(cost, name) is None:
            assert cost.reasons[name], name
    assert cost.samples_per_second is None
    assert "resumed" in cost.reasons["samples_per_second"]
    assert "does not tell" in cost.reasons["latency_p50"]


def test_a_rate_of_tokens_needs_the_tokens_of_every_answer():
    cost = measured([Response("a", text="x", generated_tokens=3), Response("b", text="y")], load_seconds=1.0)
    assert cost.generated_tokens_per_second is None
    assert "does not tell" in cost.reasons["generated_tokens_per_second"]


def test_what_was_counted_in_the_last_part_of_a_resumed_run_is_not_told_as_the_whole():
    usage = {"load_seconds": 1.0, "preprocess_seconds": 0.5, "energy_joules": 7.0, "peak_device_bytes": 9.0}
    cost = measured([Response("a", text="x")], uninterrupted=False, **usage)
    assert (cost.preprocess_seconds, cost.energy_joules) == (None, None)
    assert "resumed" in cost.reasons["preprocess_seconds"]
    assert "resumed" in cost.reasons["energy_joules"]
    assert (cost.load_seconds, cost.peak_device_bytes) == (1.0, 9)


def test_a_process_that_did_not_load_the_model_says_nothing_of_its_memory():
    cost = measured([Response("a", text="x")], uninterrupted=False)
    assert cost.peak_host_bytes is None
    assert "did not load the model" in cost.reasons["peak_host_bytes"]
    assert "did not load the model" in cost.reasons["energy_joules"]


def test_memory_is_that_of_one_model_or_of_none(tmp_path):
    arguments = ("eval", "--model", "scripted", "--model", "majority", "--task", "phantom-vqa", "--limit", "10")
    first, second = mhe(*arguments, "--json", cwd=tmp_path).document["runs"]
    assert first["efficiency"]["peak_host_bytes"] > 10_000_000
    assert second["efficiency"]["peak_host_bytes"] is None
    assert "another model" in second["efficiency"]["reasons"]["peak_host_bytes"]
    seeds = mhe("eval", "--model", "scripted", "--task", "phantom-vqa", "--limit", "10", "--seeds", "2", "--json",
                "--runs-dir", "seeds", cwd=tmp_path).document["runs"]  # fmt: skip
    assert all(run["efficiency"]["peak_host_bytes"] > 10_000_000 for run in seeds)
