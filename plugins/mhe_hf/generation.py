"""One batch through the model: greedy or seeded decoding, stop texts, and where each row ended."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from mhe_hf.families import family_of
from mhe_hf.sampling import SeededSampling
from mhe_hf.shared_images import with_shared_images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from mhe_hf.collation import Batch

KEPT_SETTINGS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""Of a checkpoint's own generation settings only those that belong to the model: the task, not the checkpoint, says
how long answers are and whether they are sampled, and it all stands in the run key."""


HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"
"""What tokenizers show for bytes that are no character."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model wrote in one row."""

    text: str
    tokens: int
    """Generated tokens, the one that ends the turn included."""
    finish_reason: Literal["stop", "length"]


def plain_settings(model: PreTrainedModel, processor: ProcessorMixin) -> GenerationConfig:
    """Greedy settings with nothing of the checkpoint's taste (temperature, penalties) in them."""
    tokenizer = processor.tokenizer
    own = model.generation_config
    kept = {name: getattr(own, name, None) for name in KEPT_SETTINGS} if own is not None else {}
    kept = {name: value for name, value in kept.items() if value is not None}
    kept |= family_of(processor).token_ids
    kept.setdefault("eos_token_id", tokenizer.eos_token_id)
    kept.setdefault("pad_token_id", tokenizer.pad_token_id)
    return GenerationConfig(do_sample=False, num_beams=1, use_cache=True, **kept)


class RowEnds(StoppingCriteria):
    """Ends a row at a stop text or where the context is full; remembers after how many tokens."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], rooms: Sequence[int | None], prompt_length: int
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._rooms = rooms
        self._prompt_length = prompt_length
        self.ends: list[int | None] = [None] * len(rooms)

    def __call__(
        self,
        input_ids: torch.LongTensor,
        scores: torch.FloatTensor,  # noqa: ARG002 - transformers passes them
        **kwargs: object,  # noqa: ARG002
    ) -> torch.BoolTensor:
        """True for the rows that have ended."""
        generated = input_ids.shape[1] - self._prompt_length
        texts = (
            self._tokenizer.batch_decode(input_ids[:, self._prompt_length :], skip_special_tokens=True)
            if self._stop
            else ()
        )
        for row, room in enumerate(self._rooms):
            is_full = room is not None and generated >= room
            is_stopped = bool(self._stop) and any(stop in texts[row].rstrip(HALF_CHARACTER) for stop in self._stop)
            if self.ends[row] is None and (is_full or is_stopped):
                self.ends[row] = generated
        return torch.tensor([end is not None for end in self.ends], device=input_ids.device)  # type: ignore[return-value]


def answer_batch(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    batch: Batch,
    context: int | None,
    processors: Sequence[LogitsProcessor] = (),
) -> list[Answer]:
    """An answer for each row of the batch, in order. Its requests share one way of generating.

    `processors` see the scores after those of the settings, and may change them.
    """
    asked = batch.requests[0].generation
    tokenizer = processor.tokenizer
    settings = copy.deepcopy(model.generation_config)
    with torch.inference_mode():
        inputs = {name: _on_device(value, model) for name, value in batch.inputs.items()}
        decoding = family_of(processor).decoding(model, inputs, batch.prompt_tokens)
        rooms = [None if context is None or used is None else context - used for used in decoding.used]
        longest = max((asked.max_new_tokens if room is None else room for room in rooms), default=asked.max_new_tokens)
        is_cut = any(room is not None and room < asked.max_new_tokens for room in rooms)
        ends = RowEnds(tokenizer, asked.stop, rooms, decoding.prompt_length)
        settings.max_new_tokens = min(asked.max_new_tokens, longest)
        shared = batch.same_image and decoding.inputs is inputs
        output = decoding.generator.generate(  # type: ignore[operator]
            **(with_shared_images(model, inputs, batch.same_image) if shared else decoding.inputs),
            generation_config=settings,
            logits_processor=LogitsProcessorList([*_sampling(batch, decoding.prompt_length), *processors]),
            stopping_criteria=StoppingCriteriaList([ends] if asked.stop or is_cut else []),
        )
    rows = output[:, decoding.prompt_length :].tolist()
    endings = endings_of(settings)
    return [_answer(tokenizer, row, end, asked.stop, endings) for row, end in zip(rows, ends.ends, strict=True)]


def _sampling(batch: Batch, prompt_length: int) -> LogitsProcessorList:
    """Nothing for greedy decoding, seeded noise for sampling."""
    asked = batch.requests[0].generation
    if asked.temperature <= 0:
        return LogitsProcessorList()
    seeds = [request.seed for request in batch.requests]
    noise = SeededSampling(seeds, temperature=asked.temperature, top_p=asked.top_p, prompt_length=prompt_length)
    return LogitsProcessorList([noise])


def _answer(
    tokenizer: PreTrainedTokenizerBase, row: list[int], end: int | None, stops: Sequence[str], endings: frozenset[int]
) -> Answer:
    tokens = row if end is None else row[:end]
    closing = next((place for place, token in enumerate(tokens) if token in endings), None)
    reason: Literal["stop", "length"] = "length"
    if closing is not None:
        tokens, reason = tokens[: closing + 1], "stop"
    written = tokens if closing is None else tokens[:-1]
    text = decode_answer(tokenizer, written)
    cuts = [place for stop in stops if (place := text.find(stop)) >= 0]
    if cuts:
        text, reason = text[: min(cuts)], "stop"
    return Answer(text.strip(), len(tokens), reason)


def decode_answer(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of a whole answer, without what is left at its end of a character whose last bytes were never written.

    A token may be part of a character, and an answer may end after it. A server that sends text as it comes holds such
    bytes back until they are a character, so that they are never seen; leaving them out, every backend says the same.
    """
    text = str(tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False))
    return text.rstrip(HALF_CHARACTER)


def endings_of(settings: GenerationConfig | None) -> frozenset[int]:
    """Tokens that end an answer; none where the settings name none."""
    own = settings.eos_token_id if settings is not None else None
    if own is None:
        return frozenset()
    return frozenset(own if isinstance(own, list) else [own])


def _on_device(value: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    # Pixels come as float32; a model in half precision wants its own kind.
    dtype = model.dtype if value.is_floating_point() else value.dtype
    return value.to(device=model.device, dtype=dtype)
