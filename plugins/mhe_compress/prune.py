"""Recipe `prune`: attention heads and feed-forward neurons leave, and the matrices shrink.

    mhe tune --model llava-1.5-7b --recipe prune --name pruned --set preset=neto2025-prune
    mhe tune --model tiny-llava --recipe prune --task phantom-vqa --name pruned --set importance=taylor
    mhe tune … --set scan=scan.json            more leaves where the loss does not need it (mhe scan-layers)
    mhe tune … --set parameters=0.7            heads and neurons of all layers ranked together under a budget
    mhe tune … --set only_plain=true           only what loads without this package

Nothing is trained: `lora`, `full` or `distill` on the result heals it. The same call makes the same bytes, also after
an interruption; a budget of time is kept to with the timings of its first start.
"""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, ClassVar

from mhe import RecipeResult, UserError
from mhe_compress.blocks import find_blocks
from mhe_compress.calibration import batches_of, draw_samples
from mhe_compress.importance import measure_importance
from mhe_compress.prune_expression import Expression, express, rebuilt
from mhe_compress.prune_options import PruneOptions
from mhe_compress.prune_plan import Plan, apply_plan, plan_pruning
from mhe_compress.prune_report import memory_of, notes_of, notes_of_sparsity, parameters_by_module
from mhe_hf import (
    HfOptions,
    adapters_of,
    architecture_of,
    empty_model,
    few_bits_of,
    load_configuration,
    load_model,
    needed_class,
    save_published,
    write_planned,
)
from mhe_hf.training.fitting import quiet_transformers
from mhe_hf.training.memory import peak_device_bytes, peak_host_bytes, readable_size

if TYPE_CHECKING:
    from pydantic import BaseModel
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import Architecture, RecipeJob
    from mhe_compress.blocks import Block
    from mhe_compress.importance import Scores

KEPT_FILE = "pruning.json"
LATENCY_FILE = "latency.json"
VLLM_TYPES = ("llava", "llava_next", "qwen2_vl")


class PruneRecipe:
    """Structured pruning; Wanda for comparison."""

    Options: ClassVar[type[BaseModel]] = PruneOptions
    name = "prune"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, PruneOptions)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Prune, or with `job.dry_run` tell what would be left, at any size without weights."""
        refuse_unfit(job)
        if job.dry_run:
            return self._preview(job)
        started = time.perf_counter()
        model, processor = self._load(job)
        architecture = architecture_of(str(model.config.model_type), job.architectures or None)
        before = parameters_by_module(model, architecture)
        if self.options.pattern != "structured":
            notes = self._zero(model, processor, architecture, job)
            expression = express(model, architecture)
        else:
            plan = self._plan(model, processor, architecture, job)
            apply_plan(model, plan)
            expression = express(model, architecture)
            notes = notes_of(plan, self.options, before, parameters_by_module(model, architecture), expression)
            self._keep(job, plan)
        folder = job.folder / "model"
        # Of an attempt that was killed while it wrote.
        shutil.rmtree(folder, ignore_errors=True)
        fresh = rebuilt(model, expression.configuration)
        with quiet_transformers():
            save_published(fresh, processor, folder)
        return self._result(job, fresh, architecture, expression, notes, time.perf_counter() - started)

    def _load(self, job: RecipeJob) -> tuple[PreTrainedModel, ProcessorMixin]:
        spec = job.base.spec
        options = HfOptions.model_validate(spec.options)
        # The published numbers: what is not taken out comes back bit for bit.
        wanted: dict[str, object] = {"dtype": "auto"}
        if self.options.device == "cpu":
            wanted["device"] = "cpu"
        with quiet_transformers():
            return load_model(spec, options.model_copy(update=wanted), offline=job.offline)

    def _blocks(self, model: PreTrainedModel, architecture: Architecture) -> list[Block]:
        found = find_blocks(model, architecture)
        ratios = self.options.ratios()
        chosen = [block for block in found if ratios[f"{block.place.module} {block.kind}"] > 0]
        if not chosen:
            asked = ", ".join(f"{name} {ratio:g}" for name, ratio in ratios.items() if ratio)
            there = ", ".join(sorted({f"{block.place.module} {block.kind}" for block in found}))
            raise UserError(f"nothing would leave this model: asked for {asked}, and it has {there}.")
        return chosen

    def _plan(
        self, model: PreTrainedModel, processor: ProcessorMixin | None, architecture: Architecture, job: RecipeJob
    ) -> Plan:
        blocks = self._blocks(model, architecture)
        # Legal numbers and budgets are looked at before anything that takes long.
        scores: Scores | None = None
        if processor is not None:
            plan_pruning(model, blocks, self.options, job.base.fingerprint, None, None)
            scores = self._scores(model, processor, blocks, job)
        timings = job.folder / LATENCY_FILE if processor is not None else None
        return plan_pruning(model, blocks, self.options, job.base.fingerprint, scores, timings)

    def _scores(self, model: PreTrainedModel, processor: ProcessorMixin, blocks: list[Block], job: RecipeJob) -> Scores:
        if not self.options.needs_samples:
            return measure_importance(model, blocks, "magnitude")
        why = (
            f"importance={self.options.importance} weighs by what the model computes on training samples. "
            "Name a task with --task, or set importance=magnitude."
        )
        examples = draw_samples(job.train, self.options.calibration, job.seed, why)
        batches = batches_of(model, processor, examples, job.report)
        return measure_importance(model, blocks, self.options.importance, batches)

    def _zero(
        self, model: PreTrainedModel, processor: ProcessorMixin, architecture: Architecture, job: RecipeJob
    ) -> tuple[str, ...]:
        from mhe_compress.prune_sparsity import zero_weights

        assert self.options.pattern != "structured"
        why = "Wanda weighs weights by their inputs on training samples. Name a task with --task."
        examples = draw_samples(job.train, self.options.calibration, job.seed, why)
        zeroed, total = zero_weights(
            model,
            self._blocks(model, architecture),
            self.options.pattern,
            self.options.sparsity,
            batches_of(model, processor, examples, job.report),
        )
        return notes_of_sparsity(self.options, zeroed, total, len(examples))

    def _keep(self, job: RecipeJob, plan: Plan) -> None:
        """What stayed of each block, for whoever wants to compare with the whole model."""
        kept = {
            key: {"units": list(one.units), "key_value_heads": list(one.key_value_heads)}
            for key, one in plan.kept.items()
        }
        content = {"schema_version": 1, "base": job.base.fingerprint, "kept": kept}
        (job.folder / KEPT_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")

    def _preview(self, job: RecipeJob) -> RecipeResult:
        model = empty_model(
            load_configuration(job.base.spec, HfOptions.model_validate(job.base.spec.options), offline=job.offline)
        )
        architecture = architecture_of(str(model.config.model_type), job.architectures or None)
        before = parameters_by_module(model, architecture)
        needed = memory_of(model)
        if self.options.pattern != "structured":
            self._blocks(model, architecture)
            notes = notes_of_sparsity(self.options, None, None, self.options.calibration)
            expression = express(model, architecture)
        else:
            plan = self._plan(model, None, architecture, job)
            apply_plan(model, plan)
            expression = express(model, architecture)
            notes = notes_of(plan, self.options, before, parameters_by_module(model, architecture), expression)
        after = parameters_by_module(model, architecture)
        left = memory_of(model)
        memory = f"about {readable_size(needed)} of memory while it is pruned, {readable_size(left)} on disk afterwards"
        return RecipeResult(
            model_folder=write_planned(job, expression.configuration),
            parameters=sum(after.values()),
            trainable_parameters=0,
            modules={name: (total, 0) for name, total in after.items()},
            needs_class=_needed(expression),
            loads_in=_libraries(expression),
            notes=(*notes, memory),
            needed_bytes=needed,
        )

    def _result(
        self,
        job: RecipeJob,
        model: PreTrainedModel,
        architecture: Architecture,
        expression: Expression,
        notes: tuple[str, ...],
        seconds: float,
    ) -> RecipeResult:
        after = parameters_by_module(model, architecture)
        names = (KEPT_FILE, LATENCY_FILE)
        return RecipeResult(
            model_folder=job.folder / "model",
            parameters=sum(after.values()),
            trainable_parameters=0,
            modules={name: (total, 0) for name, total in after.items()},
            seconds=seconds,
            peak_host_bytes=peak_host_bytes(),
            peak_device_bytes=peak_device_bytes(),
            device=str(model.device),
            loads_in=_libraries(expression),
            needs_class=needed_class(model),
            notes=notes,
            kept_files=tuple(name for name in names if (job.folder / name).is_file()),
        )


def refuse_unfit(job: RecipeJob) -> None:
    """Raises `UserError` for a base whose weights cannot be cut as they lie there, with what to do first."""
    name = job.base.spec.name
    bits = few_bits_of(job.base, offline=job.offline)
    if bits is not None:
        raise UserError(
            f"model {name} is quantised ({bits}), and packed weights cannot be cut: prune the model it was quantised "
            "from, and quantise what is left (recipe quantize)."
        )
    below = adapters_of(job.base, offline=job.offline)
    if below is not None:
        raise UserError(
            f"model {name} is an adapter on {below}, whose shapes would no longer fit: put the two together first, "
            f"mhe tune --model {name} --recipe merge --name {name.partition('@')[0]}-merged, and prune that."
        )


def _needed(expression: Expression) -> str | None:
    if expression.is_plain:
        return None
    return f"mhe_compress.{expression.class_name}"


def _libraries(expression: Expression) -> tuple[str, ...]:
    if not expression.is_plain:
        return ()
    kind = str(expression.configuration.model_type)
    return ("transformers", "vllm") if kind in VLLM_TYPES else ("transformers",)
