"""How close the choice of each token of an answer was: the scores that greedy decoding chooses from, kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

from mhe import TokenChance
from mhe_hf.generation import answer_batch, decode_answer, endings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, ProcessorMixin

    from mhe_hf.collation import Batch


class Recorder(LogitsProcessor):
    """Keeps the log-probabilities of one row's likeliest tokens, and chooses `before` for its first places."""

    supports_continuous_batching = False

    def __init__(self, before: Sequence[int], most: int) -> None:
        self._before = tuple(before)
        self._most = most
        self.places: list[tuple[list[float], list[int]]] = []
        """Of each place: log-probabilities, likeliest first, and their tokens."""

    def __call__(
        self,
        input_ids: torch.LongTensor,  # noqa: ARG002 - transformers passes it
        scores: torch.FloatTensor,
    ) -> torch.FloatTensor:
        """The scores as they are; where a token is forced, it alone is possible."""
        chances = scores[0].float().log_softmax(dim=-1)
        top = chances.topk(min(self._most, chances.shape[-1]))
        place = len(self.places)
        possible = int(top.values.isfinite().sum())
        best = int(chances.argmax())
        # Of equal scores greedy decoding takes the first token, and `topk` any.
        found = {best: float(chances[best]), **dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))}
        self.places.append((list(found.values())[:possible], list(found)[:possible]))
        if place >= len(self._before):
            return scores
        forced = torch.full_like(scores, float("-inf"))
        forced[:, self._before[place]] = 0.0
        return forced  # type: ignore[return-value]


def likeliest_tokens(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: Batch,
    context: int | None,
    before: Sequence[int],
    most: int,
) -> list[list[TokenChance]]:
    """The `most` likeliest tokens at each place of the answer of a batch of one row; see `mhe.ScoresTokens`."""
    recorder = Recorder(before, most)
    (answer,) = answer_batch(model, processor, batch, context, processors=[recorder])
    endings = endings_of(model.generation_config)
    tokenizer = processor.tokenizer
    written: list[int] = []
    found: list[list[TokenChance]] = []
    # The settings may have gone on after the answer's end, as stop texts do.
    for place, (chances, tokens) in enumerate(recorder.places[: answer.tokens]):
        found.append(
            [
                TokenChance(
                    id=token,
                    token=str(tokenizer.decode([token], skip_special_tokens=False)),
                    log_probability=chance,
                    text=decode_answer(tokenizer, written)
                    if token in endings
                    else _begun(tokenizer, [*written, token]),
                    is_end=token in endings,
                )
                for chance, token in zip(chances, tokens, strict=True)
            ]
        )
        written.append(before[place] if place < len(before) else tokens[0])
    return found


def _begun(tokenizer: object, tokens: Sequence[int]) -> str:
    # A character that is begun may be ended by the next token, so it is shown.
    return str(tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))  # type: ignore[attr-defined]
