"""Sensitivity of layers: the loss of the whole model with one attention or feed-forward network pruned at a time.

The weakest units are multiplied by zero, which is what taking them out does; the model is never cut. Which they are is
measured on training samples, the loss on the held-out part of the training data where there is one. Named as future
work by Neto et al. (layer-wise sensitivity, ratios that differ by layer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from mhe import UserError
from mhe_compress.blocks import Block, find_blocks, key_of
from mhe_compress.calibration import batches_of, draw_samples
from mhe_compress.importance import Batch, Importance, gated, measure_importance
from mhe_compress.prune import refuse_unfit
from mhe_compress.prune_choice import choose_units, legal_count
from mhe_compress.scan_results import LayerScan, ScannedBlock
from mhe_hf import HfOptions, architecture_of, load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from mhe import RecipeJob


def scan_layers(
    job: RecipeJob,
    *,
    ratio: float,
    importance: Importance,
    samples: int,
    modules: Sequence[str],
    task: str,
    device: str = "auto",
    say: Callable[[str], None] = lambda _text: None,
) -> LayerScan:
    """Measure every attention and feed-forward network of these modules alone.

    Raises `UserError` for a quantised or adapted model, a ratio that leaves nothing, and where there are no samples.
    """
    refuse_unfit(job)
    options = HfOptions.model_validate(job.base.spec.options).model_copy(update={"dtype": "auto", "device": device})
    model, processor = load_model(job.base.spec, options, offline=job.offline)
    architecture = architecture_of(str(model.config.model_type), job.architectures or None)
    blocks = [block for block in find_blocks(model, architecture) if block.place.module in modules]
    if not blocks:
        raise UserError(f"this {architecture.model_type} model has no layers of {' or '.join(modules)} to scan.")
    counts = {key_of(block): legal_count(block, ratio) for block in blocks}
    why = "a scan measures the loss on samples of the training data. Name a task that has some with --task."
    looked_at = draw_samples(job.train, samples, job.seed, why)
    scores = measure_importance(model, blocks, importance, batches_of(model, processor, looked_at, job.report))
    judged = draw_samples(job.validation or job.train, samples, job.seed, why)
    batches = list(batches_of(model, processor, judged, lambda _phase, _numbers: None))
    whole = mean_loss(model, batches)
    say(f"loss of the whole model: {whole:.4f} on {len(batches)} samples")
    found = []
    for number, block in enumerate(blocks, 1):
        key = key_of(block)
        gate = _gate(block, choose_units(block, counts[key], scores[key]).units, model)
        with gated(model, [block], {key: gate}):
            loss = mean_loss(model, batches)
        found.append(_scanned(block, counts[key].units, loss, whole))
        say(f"{number} of {len(blocks)}: {key}, {block.units} to {counts[key].units}: {loss:.4f} ({loss - whole:+.4f})")
    return LayerScan(
        model=job.base.spec.name, fingerprint=job.base.fingerprint, task=task, samples=len(batches), seed=job.seed,
        importance=importance, ratio=ratio, loss=whole, blocks=tuple(found),
    )  # fmt: skip


def mean_loss(model: PreTrainedModel, batches: Sequence[Batch]) -> float:
    """The mean over batches of the model's loss on its labels."""
    with torch.no_grad():
        return sum(float(model(**batch).loss) for batch in batches) / len(batches)


def _gate(block: Block, kept: Sequence[int], model: PreTrainedModel) -> torch.Tensor:
    gate = torch.zeros(block.units, device=model.device)
    gate[list(kept)] = 1.0
    return gate


def _scanned(block: Block, kept: int, loss: float, whole: float) -> ScannedBlock:
    module = block.place.module
    assert module in ("vision", "language")
    return ScannedBlock(
        key=key_of(block),
        module="vision" if module == "vision" else "language",
        kind=block.kind,
        units=block.units,
        kept=kept,
        loss=loss,
        rise=loss - whole,
    )
