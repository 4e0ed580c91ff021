"""Where the soft targets of a batch come from: the teacher itself, in every step, or what was kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from mhe_compress.distill_losses import TokenLogits
from mhe_compress.distill_states import IGNORED, Reading, answer_places, own_inputs
from mhe_compress.teacher import check_answer_tokens
from mhe_compress.teacher_cache import CachedAnswer, example_key, rest_at, top_of
from mhe_hf import context_of
from mhe_hf.training.batches import RowCollator
from mhe_hf.training.watching import EXAMPLE_INDEX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import TrainingExample
    from mhe_compress.teacher_cache import TeacherCache


@dataclass(frozen=True, slots=True)
class Targets:
    """What the teacher says of the answers' tokens in a batch, row after row."""

    logits: TokenLogits
    states: Sequence[torch.Tensor] = ()
    """Each of shape (n, width): of the teacher's layers that are matched."""


class SoftTargets(Protocol):
    """Gives the targets of a batch."""

    def read(self, numbers: Sequence[int], inputs: Mapping[str, torch.Tensor]) -> Targets:
        """Of the examples with these indices, whose inputs and labels to the student are given."""
        ...


def answers_in(labels: torch.Tensor) -> list[list[int]]:
    """Learnt tokens of each row."""
    return [row[row.ne(IGNORED)].tolist() for row in labels]


class OnlineTargets:
    """The teacher reads every batch that the student reads."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        examples: Sequence[TrainingExample],
        name: str,
        *,
        shares_inputs: bool,
        vocabulary: int,
        layers: Sequence[nn.Module] | None = None,
    ) -> None:
        """`shares_inputs`: the student's inputs are the teacher's own. `layers` are those whose states are matched;
        where empty, what the output head reads; None for no states.
        """
        self._model = model
        self._collate = None if shares_inputs else RowCollator(processor, context_of(model.config))
        self._examples = examples
        self._name = name
        self._vocabulary = vocabulary
        self._layers = layers

    def read(self, numbers: Sequence[int], inputs: Mapping[str, torch.Tensor]) -> Targets:
        """One forward pass without gradients. Raises `UserError` where answers are other tokens to the teacher."""
        batch = dict(inputs) if self._collate is None else self._own_batch(numbers, inputs["labels"])
        places = answer_places(batch["labels"], self._model).to(self._model.device)
        with torch.no_grad(), Reading(self._model, self._layers or ()) as seen:
            self._model(**own_inputs(self._model, batch))
        states: Sequence[torch.Tensor] = ()
        if self._layers is not None:
            states = [state[places] for state in (seen.states or [seen.last])]
        return Targets(TokenLogits(seen.logits[places][:, : self._vocabulary].float()), states)

    def _own_batch(self, numbers: Sequence[int], labels: torch.Tensor) -> dict[str, torch.Tensor]:
        assert self._collate is not None
        batch = self._collate([(number, (self._examples[number],)) for number in numbers])
        batch.pop(EXAMPLE_INDEX)
        for number, ours, theirs in zip(numbers, answers_in(labels), answers_in(batch["labels"]), strict=True):
            check_answer_tokens(self._examples[number], ours, theirs, self._name)
        return batch


class CachedTargets:
    """What was kept on disk."""

    def __init__(
        self,
        cache: TeacherCache,
        examples: Sequence[TrainingExample],
        name: str,
        *,
        temperature: float,
        vocabulary: int,
    ) -> None:
        self._cache = cache
        self._examples = examples
        self._keys = [example_key(example) for example in examples]
        self._name = name
        self._temperature = temperature
        self._vocabulary = vocabulary

    def read(self, numbers: Sequence[int], inputs: Mapping[str, torch.Tensor]) -> Targets:
        """Rows of the cache. Raises `UserError` where answers are other tokens to the teacher."""
        labels = inputs["labels"]
        rows = [self._cache.read(self._keys[number]) for number in numbers]
        for number, ours, row in zip(numbers, answers_in(labels), rows, strict=True):
            check_answer_tokens(self._examples[number], ours, row.tokens.tolist(), self._name)
        logits = torch.cat([row.logits for row in rows]).to(labels.device)
        if logits.shape[-1] >= self._vocabulary:
            return Targets(TokenLogits(logits))
        rest = torch.cat([rest_at(row.rest, self._temperature) for row in rows]).to(labels.device)
        ids = torch.cat([row.ids for row in rows]).to(device=labels.device, dtype=torch.int64)
        return Targets(TokenLogits(logits, ids, rest))


def teacher_rows(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    examples: Sequence[TrainingExample],
    wanted: Sequence[tuple[str, int]],
    *,
    top_k: int,
    vocabulary: int,
    report: Callable[[int, int], None],
) -> Iterator[tuple[str, CachedAnswer]]:
    """What the teacher says of each wanted example (key, index), one by one. `report(done, all)` follows each.

    Raises `UserError` for an example that it cannot read.
    """
    context = context_of(model.config)
    for done, (key, number) in enumerate(wanted, start=1):
        # One collator an example: it keeps what it prepares, and each is needed once.
        batch = RowCollator(processor, context)([(number, (examples[number],))])
        batch.pop(EXAMPLE_INDEX)
        places = answer_places(batch["labels"], model).to(model.device)
        with torch.no_grad(), Reading(model) as seen:
            model(**own_inputs(model, batch))
        ids, logits, rest = top_of(seen.logits[places][:, :vocabulary].float(), top_k)
        tokens = torch.tensor(answers_in(batch["labels"])[0])
        yield key, CachedAnswer(tokens, ids.cpu(), logits.cpu(), rest.cpu())
        report(done, len(wanted))
