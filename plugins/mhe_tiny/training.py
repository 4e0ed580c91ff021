"""Training a small model from nothing, in two stages.

1. The vision tower learns to tell the facts through a probe: modality, region, number, side, size, intensity.
2. The whole model learns to answer and to caption, the probe's loss going on at a small weight, so that seeing is not
   forgotten while talking is learnt.

Every step draws fresh images. Matrices inside the blocks are trained by Muon, everything else by AdamW.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import nn

from mhe_tiny.probe import FactProbe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mhe_tiny.architecture import Learner
    from mhe_tiny.lessons import Lesson
    from mhe_tiny.plan import Plan


Report = Callable[[str, int, int, float], None]
"""Called as `report(stage, step, steps, loss)`."""


@dataclass(frozen=True, slots=True)
class Course:
    """What both stages work with."""

    learner: Learner
    model: PreTrainedModel
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
    probe = FactProbe(ordered, course.learner.width)
    _train_vision(course, probe)
    _train_whole(course, probe)
    model.eval()


def _train_vision(course: Course, probe: FactProbe) -> None:
    learner, plan = course.learner, course.plan
    named = [*learner.vision.named_parameters(), *probe.named_parameters(prefix="probe")]
    schedule = _Schedule([(named, plan.rate)], plan.vision_steps, plan.warm_up)
    for step in range(plan.vision_steps):
        taken = list(islice(course.lessons, plan.vision_batch))
        seen = learner.see(learner.look([lesson.open() for lesson in taken]))
        loss = probe.loss(seen, [lesson.facts for lesson in taken])
        schedule.step(step, loss)
        course.report("vision", step, plan.vision_steps, float(loss.detach()))


def _train_whole(course: Course, probe: FactProbe) -> None:
    learner, plan = course.learner, course.plan
    seeing = [*learner.vision.named_parameters(), *probe.named_parameters(prefix="probe")]
    seen_ids = {id(parameter) for _, parameter in seeing}
    talking = [(name, value) for name, value in course.model.named_parameters() if id(value) not in seen_ids]
    schedule = _Schedule([(talking, plan.rate), (seeing, plan.vision_rate)], plan.steps, plan.warm_up)
    for step in range(plan.steps):
        taken = [_fewer_turns(lesson, plan.turns) for lesson in islice(course.lessons, plan.batch)]
        pictures = learner.look([lesson.open() for lesson in taken])
        seen = learner.see(pictures)
        loss = learner.answer_loss(taken, pictures, seen)
        probed = probe.loss(seen, [lesson.facts for lesson in taken])
        schedule.step(step, loss + plan.probe_weight * probed)
        course.report("whole", step, plan.steps, float(loss.detach()))


def _fewer_turns(lesson: Lesson, count: int | None) -> Lesson:
    """Return the lesson with `count` of its turns, drawn by its image's id."""
    if count is None or count >= len(lesson.turns):
        return lesson
    return replace(lesson, turns=tuple(random.Random(lesson.image.id).sample(lesson.turns, count)))


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
            outer = ("embed", "lm_head", "probe", "wte", "wpe", "predictions", "query_tokens", "class_embedding")
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
