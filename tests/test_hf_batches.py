"""Batches that are found on the way: which requests go together, how many, and that answers do not care."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter

import click
import pytest
import torch

import hf_models
from hf_models import answers, ask, on_image, open_backend, picture
from mhe import Generation
from mhe.cli.batch_size import BatchSize as BatchSizeParameter
from mhe_hf import Collator, HfOptions, batch_memory, batches, generation, load_configuration, load_processor
from mhe_hf.batch_memory import MemoryWatch, row_bytes
from mhe_hf.batch_size import MOST_ROWS, BatchSize
from mhe_hf.prompt_lengths import PromptLengths

QUESTIONS = ["is there a fracture ?", "what side ?", "where is the effusion in this chest x ray image ? " * 3, "size ?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf_models.build_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def questions():
    return [ask(f"q{n}", QUESTIONS[n % 4], image=picture(n // 2), seed=n) for n in range(40)]


@pytest.fixture(scope="module")
def texts(folder, questions):
    opened = open_backend(folder, batch_size=1, prefetch=0, image_cache_mb=0)
    found = {name: response.text for name, response in answers(opened, questions).items()}
    opened.close()
    return found


@pytest.fixture
def sizes(monkeypatch):
    """Rows of each batch that the model was given."""
    seen = []
    original = generation.answer_batch

    def counted(model, processor, batch, context, **more):
        seen.append(len(batch.requests))
        return original(model, processor, batch, context, **more)

    monkeypatch.setattr(generation, "answer_batch", counted)
    return seen


def run_steps(size: BatchSize, speed, steps: int = 40) -> list[int]:
    """Rows of each batch of a device with `speed(rows)` tokens a second."""
    rows = []
    for _ in range(steps):
        rows.append(size.rows)
        size.answered(size.rows, size.rows * 100, size.rows * 100 / speed(size.rows))
    return rows


class TestSize:
    def test_it_grows_while_throughput_grows_and_stays_where_it_stops(self):
        size = BatchSize(8, grows=True)
        rows = run_steps(size, lambda rows: min(rows, 64))
        assert rows[0] == 8
        assert Counter(rows).most_common(1)[0][0] == 64
        assert max(rows) == 128, "one size too many has to be tried"
        assert set(rows[-20:]) == {64}
        assert size.used() == (64, 8, 128)

    def test_a_device_that_is_no_quicker_keeps_the_smaller_size(self):
        assert run_steps(BatchSize(4, grows=True), lambda rows: 100 - rows)[-1] == 4

    def test_the_first_batch_is_not_taken_for_slow(self):
        size = BatchSize(8, grows=True)
        size.answered(8, 800, 60.0)
        assert run_steps(size, lambda _: 100.0)[-1] == 8

    def test_it_ends_at_the_most_rows(self):
        assert max(run_steps(BatchSize(64, grows=True), lambda rows: rows)) == MOST_ROWS

    def test_a_size_that_was_asked_for_never_grows(self):
        assert set(run_steps(BatchSize(8), lambda rows: rows)) == {8}

    def test_no_room_ends_growth(self):
        asked = []
        size = BatchSize(4, grows=True, has_room=lambda wanted, tried: asked.append((wanted, tried)) or wanted <= 8)
        assert max(run_steps(size, lambda rows: rows)) == 8
        assert asked == [(8, 4), (16, 8)]

    def test_out_of_memory_halves_for_good(self):
        size = BatchSize(32, grows=True)
        size.ran_out(32)
        assert (size.rows, size.limit) == (16, 16)
        assert set(run_steps(size, lambda rows: rows)) == {16}
        size.ran_out(16)
        assert size.rows == 8

    def test_what_is_left_over_is_no_size(self):
        size = BatchSize(8, grows=True)
        for rows in (8, 8, 3):
            size.answered(rows, 100, 1.0)
        assert size.used() == (8, 8, 8)
        few = BatchSize(8, grows=True)
        few.answered(3, 100, 1.0)
        assert few.used() == (3, 3, 3)


class TestOrder:
    def test_the_longest_come_first_and_each_comes_once(self, questions):
        size = BatchSize(7)
        found = list(batches.sized_batches(questions, size, lambda r: len(r.messages[0].text) / 4))
        assert [len(batch) for batch in found] == [7] * 5 + [5]
        flat = [request for batch in found for request in batch]
        assert sorted(r.sample_id for r in flat) == sorted(r.sample_id for r in questions)
        lengths = [len(r.messages[0].text) // 16 for r in flat]
        assert lengths == sorted(lengths, reverse=True)

    def test_questions_of_one_image_stay_together_and_the_longest_leads(self):
        texts = ["x" * 20, "x" * 200, "x" * 60, "x" * 400, "x" * 20, "x" * 90]
        asked = [on_image(ask(f"q{n}", text), f"image {n % 3}") for n, text in enumerate(texts)]
        bare = dataclasses.replace(asked[0], sample_id="bare", images=())
        found = batches.sized_batches([*asked, bare], BatchSize(2), lambda r: len(r.messages[0].text) / 4)
        names = [[request.sample_id for request in batch] for batch in found]
        assert names == [["q3", "q0"], ["q1", "q4"], ["q5", "q2"], ["bare"]]

    def test_a_batch_has_the_size_that_holds_when_it_is_asked_for(self, questions):
        size = BatchSize(4)
        coming = batches.sized_batches(questions, size, lambda _: 1.0)
        assert len(next(coming)) == 4
        size.rows = 16
        assert len(next(coming)) == 16

    def test_ways_of_generating_are_not_mixed(self):
        short, long = Generation(max_new_tokens=2), Generation(max_new_tokens=5)
        requests = [ask(str(n), generation=short if n < 3 else long) for n in range(7)]
        assert [len(b) for b in batches.sized_batches(requests, BatchSize(8), lambda _: 1.0)] == [3, 4]

    def test_lengths_count_image_tokens_where_a_larger_image_has_more(self, folder, tmp_path):
        from hf_family_models import build_qwen2_vl

        fixed = PromptLengths(load_processor(spec(folder)))
        assert fixed.of(ask("a", "four", image=picture(0))) == fixed.of(ask("a", "four", image=picture(0, (90, 90))))
        assert fixed.of(ask("a", "x" * 400)) - fixed.of(ask("a", "")) == 100
        processor = load_processor(spec(build_qwen2_vl(tmp_path / "qwen")))
        # The small twin takes images up to 32 pixels wide; let larger ones be larger, as the real one does.
        processor.image_processor.size = {"shortest_edge": 64, "longest_edge": 4_000_000}
        growing = PromptLengths(processor)
        small, large = ask("s", image=picture(0, (64, 64))), ask("l", image=picture(0, (256, 256)))
        collator = Collator(processor)
        true = [collator.collate([request]).prompt_tokens[0] for request in (small, large)]
        assert growing.of(large) - growing.of(small) == pytest.approx(true[1] - true[0], rel=0.1)


def spec(folder):
    return hf_models.ModelSpec(name="t", backend="hf", location=str(folder))


class TestBackend:
    def test_auto_is_the_default_and_answers_as_batch_1_does(self, folder, questions, texts):
        assert HfOptions().batch_size == "auto"
        opened = open_backend(folder, batch_size="auto")
        assert opened.describe().neutral_options["batch_size"] == "auto"
        assert {name: r.text for name, r in answers(opened, questions).items()} == texts
        usage = opened.usage()
        assert usage["smallest_batch_size"] <= usage["batch_size"] <= usage["largest_batch_size"]
        opened.close()

    def test_it_grows_in_a_run(self, folder, questions, texts, sizes, monkeypatch):
        monkeypatch.setattr(batch_memory, "FIRST_ROWS", 1)
        monkeypatch.setattr("mhe_hf.batch_size.WORTHWHILE", 0.0)
        opened = open_backend(folder, prefetch=0)
        assert {name: r.text for name, r in answers(opened, questions).items()} == texts
        assert sizes[:10] == [1, 1, 1, 1, 2, 2, 2, 4, 4, 4]
        assert 8 in sizes
        assert sum(sizes) == 40
        usage = opened.usage()
        assert (usage["smallest_batch_size"], usage["largest_batch_size"]) == (1, 8)
        opened.close()

    def test_only_pending_samples_are_run(self, folder, questions, texts, sizes):
        opened = open_backend(folder)
        pending = ["q5", "q6", "q38"]
        found = answers(opened, questions, pending=pending)
        assert {name: r.text for name, r in found.items()} == {name: texts[name] for name in pending}
        assert sum(sizes) == 3
        assert answers(opened, questions, pending=[]) == {}
        opened.close()

    def test_memory_that_runs_out_halves_and_goes_on(self, folder, questions, texts, monkeypatch):
        original, tried = generation.answer_batch, []

        def starved(model, processor, batch, context, **more):
            tried.append(len(batch.requests))
            if len(batch.requests) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(model, processor, batch, context, **more)

        monkeypatch.setattr(generation, "answer_batch", starved)
        opened = open_backend(folder)
        assert {name: r.text for name, r in answers(opened, questions).items()} == texts
        assert tried[:4] == [16, 8, 4, 2]
        assert max(tried[4:]) == 2
        assert opened.usage()["smallest_batch_size"] == opened.usage()["batch_size"] == 2
        opened.close()

    def test_out_of_memory_alone_is_that_samples_error(self, folder, questions, texts, monkeypatch):
        original = generation.answer_batch

        def starved(model, processor, batch, context, **more):
            if any(r.sample_id == "q2" for r in batch.requests):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(model, processor, batch, context, **more)

        monkeypatch.setattr(generation, "answer_batch", starved)
        opened = open_backend(folder)
        found = answers(opened, questions)
        opened.close()
        assert found["q2"].error.kind == "system"
        assert {n: r.text for n, r in found.items() if n != "q2"} == {n: t for n, t in texts.items() if n != "q2"}

    def test_a_full_machine_begins_with_one_row_and_does_not_grow(self, folder, questions, texts, sizes, monkeypatch):
        monkeypatch.setattr(batch_memory, "available_bytes", lambda: 100_000)
        monkeypatch.setattr(batch_memory, "resident_bytes", lambda: 0)
        opened = open_backend(folder)
        assert {name: r.text for name, r in answers(opened, questions).items()} == texts
        assert set(sizes) == {1}
        opened.close()

    def test_images_are_worked_on_in_several_threads_to_the_same_end(self, folder, questions):
        processor = load_processor(spec(folder))
        one, four = Collator(processor), Collator(processor, threads=4)
        names = set()
        own = four._images._own
        four._images._own = hf_models.Instead(
            own, lambda images, **kw: names.add(threading.current_thread().name) or own(images, **kw)
        )
        broken = ask("broken", image=b"no image")
        left, right = one.collate([*questions[:8], broken]), four.collate([*questions[:8], broken])
        four.close()
        assert torch.equal(left.inputs["pixel_values"], right.inputs["pixel_values"])
        assert torch.equal(left.inputs["input_ids"], right.inputs["input_ids"])
        assert left.failures == right.failures
        assert set(left.failures) == {"broken"}
        assert names
        assert all(name.startswith("mhe-images") for name in names)

    def test_the_first_token_comes_before_the_last(self, folder, questions):
        opened = open_backend(folder)
        found = answers(opened, questions[:8])
        opened.close()
        assert all(0 < r.first_token_seconds < r.seconds for r in found.values())


class TestMemory:
    def test_the_estimate_of_a_row_is_that_of_the_published_model(self):
        """LLaVA-1.5-7B keeps 512 KiB of keys and values a token in half precision."""
        from pathlib import Path

        import mhe_hf

        folder = Path(mhe_hf.__file__).parent / "configurations" / "llava-1.5-7b"
        configuration = load_configuration(spec(folder))
        more = row_bytes(configuration, 1600, 2) - row_bytes(configuration, 600, 2)
        kept = 1000 * 2 * 32 * 4096 * 2
        assert kept < more < 1.4 * kept

    def test_what_a_batch_took_is_the_larger_of_estimate_and_measurement(self, folder, monkeypatch):
        opened = open_backend(folder)
        watch = MemoryWatch(opened._model, 100)
        a_row = row_bytes(opened._model.config, 100, 4)
        monkeypatch.setattr(batch_memory, "resident_bytes", lambda: 0)
        monkeypatch.setattr(batch_memory, "available_bytes", lambda: 100 * a_row)
        assert watch.has_room(64, 32)
        assert not watch.has_room(128, 32)
        monkeypatch.setattr(batch_memory, "peak_bytes", lambda: watch._host_before + watch._peak_before + 60 * a_row)
        assert not watch.has_room(64, 32)
        opened.close()

    def test_a_control_group_bounds_what_is_free(self, tmp_path):
        (tmp_path / "memory.max").write_text("1000\n")
        (tmp_path / "memory.current").write_text("800\n")
        (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
        assert batch_memory._free_of_group(tmp_path) == [500]
        (tmp_path / "memory.max").write_text("max\n")
        assert batch_memory._free_of_group(tmp_path) == []
        assert batch_memory.available_bytes() > 0


def test_blip_answers_padded_questions_as_it_answers_them_alone(tmp_path):
    """transformers lets its cross-attention look at padded places of a question."""
    build = pytest.importorskip("mhe_tiny.build")
    folder = build.build_folder("tiny-blip-vqa", tmp_path / "blip")
    asked = [ask(f"q{n}", QUESTIONS[n % 4], image=picture(n), seed=n) for n in range(16)]
    found = {}
    for size in (1, 8, "auto"):
        opened = open_backend(folder, batch_size=size, dtype="float32")
        found[size] = {name: response.text for name, response in answers(opened, asked).items()}
        opened.close()
    assert found[1] == found[8] == found["auto"]
    assert len(set(found[1].values())) > 4


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5", ""])
def test_a_batch_size_is_a_number_or_auto(value):
    with pytest.raises(click.BadParameter, match="neither auto nor a whole number"):
        BatchSizeParameter().convert(value, None, None)
    assert [BatchSizeParameter().convert(given, None, None) for given in ("12", " AUTO ")] == [12, "auto"]


def test_a_backend_without_auto_says_what_it_takes(tmp_path):
    from command import mhe

    done = mhe("eval", "--model", "scripted", "--task", "phantom-vqa", "--batch-size", "auto", cwd=tmp_path)
    assert done.code == 2
    assert "batch_size" in done.err


def test_the_record_says_the_sizes(tmp_path):
    from command import mhe

    arguments = ("eval", "--model", "tiny-llava", "--task", "phantom-vqa", "--limit", "24", "--json")
    cost = mhe(*arguments, cwd=tmp_path).document["runs"][0]["efficiency"]
    assert cost["smallest_batch_size"] <= cost["batch_size"] <= cost["largest_batch_size"]
    assert cost["first_token_p50"] <= cost["latency_p50"]
    assert cost["first_token_p95"] <= cost["latency_p95"]
