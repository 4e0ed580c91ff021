"""What passes through a model in one forward pass: logits, and states of its language layers.

Read by hooks, because not every model gives them back: BLIP's question answering returns a loss and no logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from mhe import ModelUnusableError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel

IGNORED = -100
"""The label of what is not learnt."""


class Reading:
    """A context in which a forward pass leaves its logits and states.

    `last` is what the output head reads, shape (rows, tokens, width); `states` are the outputs of `layers`, alike.
    """

    def __init__(self, model: PreTrainedModel, layers: Sequence[nn.Module] = ()) -> None:
        self._head = output_head(model)
        self._layers = layers
        self._handles: list[RemovableHandle] = []
        self._seen: dict[int, torch.Tensor] = {}
        self._logits: torch.Tensor | None = None
        self._last: torch.Tensor | None = None

    def __enter__(self) -> Self:
        self._handles.append(self._head.register_forward_hook(self._keep_head))
        for number, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_hook(self._keeper(number)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def logits(self) -> torch.Tensor:
        """Shape (rows, tokens, vocabulary)."""
        assert self._logits is not None, "the output head was not called"
        return self._logits

    @property
    def last(self) -> torch.Tensor:
        """What the output head turned into logits."""
        assert self._last is not None, "the output head was not called"
        return self._last

    @property
    def states(self) -> list[torch.Tensor]:
        """Of each layer, in order."""
        return [self._seen[number] for number in range(len(self._layers))]

    def _keep_head(self, _module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self._last, self._logits = given[0], output

    def _keeper(self, number: int) -> Any:  # noqa: ANN401 - torch's type of a hook
        def keep(_module: nn.Module, _given: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            self._seen[number] = output if isinstance(output, torch.Tensor) else output[0]

        return keep


def output_head(model: PreTrainedModel) -> nn.Module:
    """The layer that turns states into logits. Raises `ModelUnusableError` where there is none."""
    for name, part in model.named_modules():
        given = getattr(part, "get_output_embeddings", None)
        head = given() if callable(given) and (not name or hasattr(part, "config")) else None
        if isinstance(head, nn.Module):
            return head
    raise ModelUnusableError(
        f"a {type(model).__name__} has no layer that scores the vocabulary: it cannot be distilled."
    )


def answer_places(labels: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """Mask of shape (rows, tokens): the places whose logits are about a learnt token.

    A decoder says at each place what comes next; an encoder-decoder's inputs lag behind its labels already.
    """
    learnt = labels.ne(IGNORED)
    if model.config.is_encoder_decoder:
        return learnt
    return torch.cat([learnt[:, 1:], learnt.new_zeros((len(labels), 1))], dim=1)


def own_inputs(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch on the model's device and in its precision, without what is there for the loss."""
    return {
        name: value.to(device=model.device, dtype=model.dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
        if name != "labels"
    }


class Projection(nn.Module):
    """Student's states to the teacher's width, one linear map a pair of layers; starts as identity at equal widths."""

    def __init__(self, student: int, teacher: int, pairs: int) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(student, teacher, bias=False) for _ in range(pairs))
        if student == teacher:
            for layer in self.maps:
                nn.init.eye_(layer.weight)  # type: ignore[arg-type]

    def forward(self, states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Each state of shape (n, student's width), mapped to (n, teacher's width)."""
        return [layer(state.to(layer.weight.dtype)) for layer, state in zip(self.maps, states, strict=True)]  # type: ignore[arg-type]


def paired_layers(student: int, teacher: int) -> list[tuple[int, int]]:
    """Each student layer with the teacher's at the same depth: layer m of M with round(m N / M) of N, from 1."""
    return [(m - 1, (2 * m * teacher + student) // (2 * student) - 1) for m in range(1, student + 1)]
