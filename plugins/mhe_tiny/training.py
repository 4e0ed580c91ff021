"""Training a small model from nothing, in two stages.

1. The vision tower learns to tell the facts through a probe: modality, region, number, side, size, intensity.
2. The whole model learns to answer and to caption, the probe's loss going on at a small weight, so that seeing is not
   forgotten while talking is learnt.

Every step draws fresh images. Matrices inside the blocks are trained by Muon, everything else by AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn

from mhe_tiny.packing import IGNORED, Batch, Packer
from mhe_tiny.probe import FactProbe

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    from mhe_tiny.lessons import Lesson


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how fast to train."""

    vision_steps: int = 500
    vision_batch: int = 48
    steps: int = 1800
    batch: int = 16
    rate: float = 2e-3
    """Highest learning rate, of both optimizers."""
    vision_rate: float = 6e-4
    """Highest learning rate of the vision tower in the second stage."""
    probe_weight: float = 0.3
    warm_up: int = 100


Report = Callable[[str, int, int, float], None]
"""Called as `report(stage, step, steps, loss)`."""


@dataclass(frozen=True, slots=True)
class Course:
    """What both stages work with."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    lessons: Iterator[Lesson]
    plan: Plan
    report: Report


def train(course: Course) -> None:
    """Train the course's model in place, in float32."""
    model, lessons = course.model, course.lessons
    model.train()
    first = list(islice(lessons, 512))
    answers: dict[str, set[str]] = {}
    for lesson in first:
        for name, answer in lesson.facts.items():
            answers.setdefault(name, set()).add(answer)
    ordered = {name: sorted(values) for name, values in sorted(answers.items())}
    probe = FactProbe(ordered, model.model.vision_tower.config.hidden_size)
    _train_vision(course, probe)
    _train_whole(course, probe)
    model.eval()


def _train_vision(course: Course, probe: FactProbe) -> None:
    model, plan = course.model, course.plan
    named = [*model.model.vision_tower.named_parameters(), *probe.named_parameters(prefix="probe")]
    schedule = _Schedule([(named, plan.rate)], plan.vision_steps, plan.warm_up)
    for step in range(plan.vision_steps):
        taken = list(islice(course.lessons, plan.vision_batch))
        pictures = course.processor.image_processor([lesson.open() for lesson in taken], return_tensors="pt")
        loss = probe.loss(_see(model, pictures["pixel_values"]), [lesson.facts for lesson in taken])
        schedule.step(step, loss)
        course.report("vision", step, plan.vision_steps, float(loss.detach()))


def _train_whole(course: Course, probe: FactProbe) -> None:
    model, plan = course.model, course.plan
    packer = Packer(course.processor, model.config.image_seq_length)
    seeing = [*model.model.vision_tower.named_parameters(), *probe.named_parameters(prefix="probe")]
    seen = {id(parameter) for _, parameter in seeing}
    talking = [(name, value) for name, value in model.named_parameters() if id(value) not in seen]
    schedule = _Schedule([(talking, plan.rate), (seeing, plan.vision_rate)], plan.steps, plan.warm_up)
    for step in range(plan.steps):
        taken = list(islice(course.lessons, plan.batch))
        batch = packer.pack(taken)
        patches = _see(model, batch.pixels)
        loss = answer_loss(model, batch, patches)
        probed = probe.loss(patches, [lesson.facts for lesson in taken])
        schedule.step(step, loss + plan.probe_weight * probed)
        course.report("whole", step, plan.steps, float(loss.detach()))


def _see(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return patch features (b, patches, width) as the projector gets them."""
    seen = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    features: torch.Tensor = seen[model.config.vision_feature_layer][:, 1:]
    return features


def answer_loss(model: LlavaForConditionalGeneration, batch: Batch, patches: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over answers; the head is applied to the rows of their tokens alone."""
    language = model.model.language_model
    pictures = model.model.multi_modal_projector(patches)
    at_image = (batch.tokens == model.config.image_token_id)[..., None]
    inputs = language.embed_tokens(batch.tokens).masked_scatter(at_image, pictures)
    hidden = language(
        inputs_embeds=inputs, attention_mask=batch.visible, position_ids=batch.positions, use_cache=False
    ).last_hidden_state
    targets = batch.labels[:, 1:]
    asked = targets != IGNORED
    losses = nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][asked]), targets[asked], reduction="none")
    weights = batch.weights[:, 1:][asked]
    return (losses * weights).sum() / weights.sum()


class _Schedule:
    """Muon and AdamW under one warm-up and half a cosine, with gradients clipped to norm 1."""

    def __init__(
        self, groups: Iterable[tuple[list[tuple[str, nn.Parameter]], float]], steps: int, warm_up: int
    ) -> None:
        self._steps, self._warm_up = steps, warm_up
        self._parameters: list[nn.Parameter] = []
        self._optimizers: list[torch.optim.Optimizer] = []
        for named, rate in groups:
            # Muon is for matrices between hidden states: not for tables and not for the outputs.
            outer = ("embed", "lm_head", "probe")
            inner = [p for name, p in named if p.ndim == 2 and not any(word in name for word in outer)]
            taken = {id(parameter) for parameter in inner}
            rest = [parameter for _, parameter in named if id(parameter) not in taken]
            self._optimizers.append(torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01))
            self._optimizers.append(torch.optim.Muon(inner, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
            self._parameters += [parameter for _, parameter in named]
        self._rates = [[float(group["lr"]) for group in o.param_groups] for o in self._optimizers]

    def step(self, step: int, loss: torch.Tensor) -> None:
        """Backward, clip, and one step of each optimizer."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for p in self._parameters if p.grad is not None], 1.0)
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * self._factor(step)
            optimizer.step()

    def _factor(self, step: int) -> float:
        if step < self._warm_up:
            return (step + 1) / self._warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (step - self._warm_up) / max(1, self._steps - self._warm_up))
