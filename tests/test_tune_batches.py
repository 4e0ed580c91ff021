"""Rows of a training: new ones of a batch are prepared in one call, and are what each would be alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

import tune_cases
from mhe.errors import SampleModelError, UserError
from mhe.pipelines import plan_step, run_step

torch = pytest.importorskip("torch")

TWINS = ("tiny-llava", "tiny-llava-next", "tiny-qwen2-vl", "tiny-mllama", "tiny-visiongpt2", "tiny-blip-vqa")
CUT = {"tiny-llava", "tiny-visiongpt2", "tiny-blip-vqa"}
"""Families with one picture of a fixed size a row."""


@pytest.fixture(scope="module")
def examples(catalog, tmp_path_factory):
    """Questions and answers of unequal length, two of each image."""
    root = tmp_path_factory.mktemp("rows")
    release = tune_cases.write_release(root / "vqa_rad")
    step = tune_cases.step_on(tune_cases.write_model(root / "model"))
    found = plan_step(catalog, step, tune_cases.place_at(root / "c", release)).data.train[:6]
    return [replace(example, answer=" ".join([example.answer] * (1 + n % 3))) for n, example in enumerate(found)]


def rows_of(examples):
    return [(number, (example,)) for number, example in enumerate(examples)]


@pytest.fixture
def calls(monkeypatch):
    """How many rows each call of the processor prepared."""
    from mhe_hf.training import batches

    counts = []
    own = batches.collate_training

    def counted(rows, *arguments, **more):
        counts.append(len(rows))
        return own(rows, *arguments, **more)

    monkeypatch.setattr(batches, "collate_training", counted)
    return counts


@pytest.mark.parametrize("name", TWINS)
def test_rows_prepared_together_are_those_prepared_alone(name, examples, calls, random_twins):
    from mhe_hf import load_processor
    from mhe_hf.training.batches import RowCollator

    processor = load_processor(tune_cases.model_at(random_twins(name)))
    together, alone = RowCollator(processor), RowCollator(processor)
    rows = rows_of(examples)
    whole = together(rows)
    assert calls == ([6] if name in CUT else [6, 1, 1, 1, 1, 1, 1])
    kept = [alone([row]) for row in rows]
    assert len({row["labels"].shape[1] for row in kept}) > 1, "rows of one length prove nothing"
    for row, theirs in zip(rows, kept, strict=True):
        ours = together([row])
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert ours[key].dtype == tensor.dtype, key
            assert torch.equal(ours[key], tensor), key
    calls.clear()
    again = together(rows)
    assert calls == [], "every row is kept"
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())


def test_rows_that_memory_does_not_keep_are_prepared_together_again(examples, calls, random_twins, monkeypatch):
    from mhe_hf import load_processor
    from mhe_hf.training import batches

    processor = load_processor(tune_cases.model_at(random_twins("tiny-llava")))
    rows = rows_of(examples)
    kept = batches.RowCollator(processor)(rows)
    monkeypatch.setattr(batches, "CACHE_BYTES", 0)
    collate = batches.RowCollator(processor)
    calls.clear()
    for _ in range(2):
        found = collate(rows)
        assert all(torch.equal(found[key], tensor) for key, tensor in kept.items())
    assert calls == [6, 6]
    calls.clear()
    collate(rows[:1])
    assert calls == [1]


def test_kept_rows_hold_no_memory_of_each_other(examples, random_twins):
    from mhe_hf import load_processor
    from mhe_hf.training.batches import RowCollator

    collate = RowCollator(load_processor(tune_cases.model_at(random_twins("tiny-llava"))))
    collate(rows_of(examples))
    for features in collate._kept.values():
        for tensor in features.values():
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_one_row_that_is_too_long_is_named_and_its_neighbours_are_not(examples, random_twins):
    from mhe_hf import load_processor
    from mhe_hf.training.batches import RowCollator

    processor = load_processor(tune_cases.model_at(random_twins("tiny-llava")))
    usual = max(RowCollator(processor)([row])["input_ids"].shape[1] for row in rows_of(examples))
    long = [*examples[:2], replace(examples[2], answer="left " * 50), *examples[3:]]
    with pytest.raises(UserError, match=rf"^training sample {long[2].sample.id}: "):
        RowCollator(processor, usual)(rows_of(long))


def test_a_shared_row_that_is_divided_is_the_same_in_every_epoch(examples, random_twins):
    """Beside a neighbour that fits, and where nothing is kept."""
    from mhe_hf import collate_training, load_processor
    from mhe_hf.training import batches

    processor = load_processor(tune_cases.model_at(random_twins("tiny-llava")))
    pair = next((a, b) for a in examples for b in examples if a is not b and a.request.images == b.request.images)
    other = next(example for example in examples if example not in pair)
    context = max(batches.RowCollator(processor)([row])["input_ids"].shape[1] for row in rows_of(examples))
    with pytest.raises(SampleModelError):
        collate_training([pair], processor, context=context)
    theirs = collate_training([*pair, other], processor, context=context)
    for room in (batches.CACHE_BYTES, 0):
        collate = batches.RowCollator(processor, context)
        collate._room = room
        for _ in range(3):
            ours = collate([(0, pair), (2, (other,))])
            assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


def test_a_gradient_that_is_no_number_stops_before_the_step(catalog, tmp_path, monkeypatch):
    """A finite loss, and one broken gradient: it is told, and the weights are those of the steps before."""
    from mhe_hf.training import watching

    base = tune_cases.write_model(tmp_path / "base")
    release = tune_cases.write_release(tmp_path / "vqa_rad")
    own = watching.Trainer.training_step
    seen = {}

    def broken(self, model, *arguments):
        loss = own(self, model, *arguments)
        if self.state.global_step == 5:
            last = [p for p in model.parameters() if p.grad is not None][-1]
            last.grad.view(-1)[0] = float("inf")
            seen.update({name: p.detach().clone() for name, p in model.named_parameters()}, model=model)
        return loss

    monkeypatch.setattr(watching.Trainer, "training_step", broken)
    place = tune_cases.place_at(tmp_path / "c", release)
    with pytest.raises(UserError, match=r"the norm of the gradients is inf at step 6, .*best weights so far .step 4"):
        run_step(catalog, tune_cases.step_on(base), place)
    model = seen.pop("model")
    assert all(torch.equal(p, seen[name]) for name, p in model.named_parameters())
    assert not (place.directory / "tuned").exists()
