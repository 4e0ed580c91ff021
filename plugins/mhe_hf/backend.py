"""The backend `hf`: transformers in this process.

Light until `load`: what is needed to find a run again (fingerprint, versions, options) imports neither torch nor
transformers.
"""

from __future__ import annotations

import dataclasses
import os
import time
from typing import TYPE_CHECKING, ClassVar

from mhe import BackendDescription, Failure, ModelUnusableError, Response, SampleModelError
from mhe_hf.options import HfOptions
from mhe_hf.parts import Parts, find_parts, fingerprint_parts
from mhe_hf.quantization import quantization_on_disk
from mhe_hf.threads import let_waiting_threads_sleep
from mhe_hf.versions import library_version

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from pydantic import BaseModel
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import BackendContext, Fingerprint, ModelSpec, Request, TokenChance
    from mhe_hf.batch_size import BatchSize
    from mhe_hf.clocks import EnergyMeter
    from mhe_hf.collation import Batch, Collator
    from mhe_hf.generation import Answer

VERSION = "2"
"""Raised when a change here can change an answer."""


def image_threads(device: str) -> int:
    """How many threads open and resize images: one where the model itself computes on the processor's cores."""
    return 1 if device == "cpu" else min(8, os.cpu_count() or 1)


class HfBackend:
    """Any image-text-to-text model of transformers, through its own processor and chat template."""

    Options: ClassVar[type[BaseModel]] = HfOptions

    def __init__(self, model: ModelSpec, options: BaseModel, context: BackendContext, /) -> None:
        self._spec = model
        self._options = HfOptions.model_validate(options.model_dump())
        self._context = context
        self._description: BackendDescription | None = None
        self._model: PreTrainedModel | None = None
        self._processor: ProcessorMixin | None = None
        self._collator: Collator | None = None
        self._longest: int | None = None
        self._size: BatchSize | None = None
        self._energy: EnergyMeter | None = None
        self._threads_before: int | None = None
        self._image_token: int | None = None
        self._image_tokens = 0
        self._preprocess_seconds = 0.0
        self._generate_seconds = 0.0

    def describe(self) -> BackendDescription:
        """Fingerprint, versions and options; after `load` also device, precision and parameters.

        Raises `ModelUnusableError`, and `MissingExtraError` where torch or transformers is not installed.
        """
        if self._description is None:
            versions = [f"{name} {library_version(name)}" for name in ("transformers", "torch")]
            if self._options.quantization != "none" or self._is_stored_in_few_bits():
                versions.append(f"bitsandbytes {library_version('bitsandbytes', extra='quant')}")
            if self._has_adapters():
                versions.append(f"peft {library_version('peft', extra='tune')}")
            fingerprint, processor = self._identity()
            self._description = BackendDescription(
                name="hf",
                version=", ".join([f"hf {VERSION}", *versions]),
                fingerprint=fingerprint,
                key_options={**self._options.in_key(), **processor},
                neutral_options=self._options.neutral(),
            )
        return self._description

    def _identity(self) -> tuple[Fingerprint, Mapping[str, object]]:
        """Which weights, and what is to be said of a processor that is not the model's own."""
        if self._options.random_weights:
            from mhe_hf.random_models import configuration_folder, has_own_processor, random_fingerprint

            is_own = has_own_processor(configuration_folder(self._spec))
            return random_fingerprint(self._spec, self._options), {} if is_own else {"processor": "stand-in"}
        parts = find_parts(self._spec, self._options, offline=self._context.offline)
        self._check_trained(parts)
        return fingerprint_parts(parts, self._options.seed_of_new_weights), {}

    def _has_adapters(self) -> bool:
        return bool(find_parts(self._spec, self._options, offline=self._context.offline).adapters)

    def _is_stored_in_few_bits(self) -> bool:
        if self._options.random_weights:
            return False
        folder = find_parts(self._spec, self._options, offline=self._context.offline).base.folder
        return folder is not None and quantization_on_disk(folder) in ("nf4", "fp4", "int8")

    def _load(self) -> tuple[PreTrainedModel, ProcessorMixin]:
        if self._options.random_weights:
            from mhe_hf.random_models import random_model

            return random_model(self._spec, self._options)
        from mhe_hf.loading import load_model

        return load_model(self._spec, self._options, offline=self._context.offline)

    def _check_trained(self, parts: Parts) -> None:
        if parts.is_untrained and not self._options.untrained:
            raise ModelUnusableError(
                f"model {self._spec.name} is put together from two published halves ({self._spec.location}), and its "
                "cross-attention has never been trained: it would write noise.\n"
                f"Train it first: mhe tune --model {self._spec.name} --recipe full --task TASK --name NAME. "
                "For the noise itself: --set backend.untrained=true"
            )

    def load(self) -> None:
        """Imports torch and transformers, and brings the weights to the device."""
        described = self.describe()
        let_waiting_threads_sleep()
        import torch
        from transformers.utils import logging

        from mhe_hf.clocks import EnergyMeter
        from mhe_hf.collation import Collator, context_of, image_token_of
        from mhe_hf.description import forget_ends, loaded_facts
        from mhe_hf.generation import plain_settings

        logging.disable_progress_bar()
        if self._options.num_threads is not None:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(self._options.num_threads)
        model, processor = self._load()
        self._model, self._processor = model, processor
        self._longest = context_of(model.config)
        self._image_token = image_token_of(model.config)
        self._collator = Collator(
            processor,
            context=self._longest,
            cache_bytes=self._options.image_cache_mb * 1_000_000,
            threads=self._options.image_threads or image_threads(model.device.type),
        )
        model.generation_config = plain_settings(model, processor)
        if self._options.exact_tokens:
            forget_ends(model)
        self._description = dataclasses.replace(described, **loaded_facts(model, self._options))
        self._energy = EnergyMeter()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def generate(self, requests: Sequence[Request], pending: Collection[str]) -> Iterator[Response]:
        """Answers of the pending requests, batch by batch.

        With a number as `batch_size`, batches are formed from the whole list in its order, and one with a pending
        sample runs whole: a resumed run computes what an undisturbed one does, to the last bit. With `auto` only
        pending samples run, the longest prompts first, and neighbours differ from run to run: padding keeps answers
        independent of them but for the last bits, so that a text can change where two tokens are tied.
        """
        from mhe_hf.batches import made_ahead

        collator, energy = self._collator, self._energy
        if collator is None or energy is None:
            raise RuntimeError("generate was called before load")
        wanted = set(pending)
        unheard = self._unheard(requests)
        if unheard is not None:
            yield from (Response(r.sample_id, error=unheard) for r in requests if r.sample_id in wanted)
            return
        collator.forget()
        energy.start()
        try:
            for batch in made_ahead(self._batches(requests, wanted), collator.collate, self._options.prefetch):
                for response in self._answer(batch):
                    if response.sample_id in wanted:
                        yield response
        finally:
            energy.stop()

    def _batches(self, requests: Sequence[Request], wanted: set[str]) -> Iterable[tuple[Request, ...]]:
        """Of the size that was asked for, or of one that is found on the way and kept for later calls."""
        from mhe_hf.batch_size import BatchSize
        from mhe_hf.batches import pending_batches, sized_batches

        if self._options.batch_size != "auto":
            self._size = self._size or BatchSize(self._options.batch_size)
            return pending_batches(requests, self._options.batch_size, wanted)
        pending = [request for request in requests if request.sample_id in wanted]
        if not pending:
            return ()
        from mhe_hf.batch_memory import MemoryWatch
        from mhe_hf.prompt_lengths import PromptLengths

        assert self._model is not None
        assert self._processor is not None
        lengths = PromptLengths(self._processor)
        tokens = {request.sample_id: lengths.of(request) for request in pending}
        if self._size is None:
            longest = max(tokens[r.sample_id] + r.generation.max_new_tokens for r in pending)
            memory = MemoryWatch(self._model, int(longest) + 1)
            self._size = BatchSize(memory.first_rows(), grows=True, has_room=memory.has_room)
        return sized_batches(pending, self._size, lambda request: tokens[request.sample_id])

    def _unheard(self, requests: Sequence[Request]) -> Failure | None:
        """A captioner says the same whatever it is asked: an accuracy of that would be a number without meaning."""
        from mhe_hf.families import family_of

        assert self._processor is not None
        asked = {tuple(message.text for message in request.messages) for request in requests}
        if len(asked) <= 1 or family_of(self._processor).reads_questions:
            return None
        return Failure(
            "model",
            f"model {self._spec.name} is a captioner: it is shown the image alone, and this task asks {len(asked)} "
            "different questions. Evaluate it on a task of captions: mhe show tasks",
        )

    def _answer(self, batch: Batch) -> Iterator[Response]:
        """Responses of a batch; smaller ones in its place where memory runs out."""
        self._preprocess_seconds += batch.seconds
        for sample_id, failure in batch.failures.items():
            yield Response(sample_id, error=failure)
        if not batch.requests:
            return
        size = self._size
        assert size is not None
        from mhe_hf.collation import count_image_tokens

        if size.limit is not None and len(batch.requests) > size.limit:
            yield from self._answer_in_parts(batch, size.limit)
            return
        started = time.perf_counter()
        answers, first_token = self._generated(batch)
        seconds = time.perf_counter() - started
        self._generate_seconds += seconds
        if answers is not None:
            tokens_seen = sum(batch.prompt_tokens) + sum(answer.tokens for answer in answers)
            self._image_tokens += count_image_tokens(batch, self._image_token)
            size.answered(len(batch.requests), tokens_seen, seconds)
            for request, answer, tokens in zip(batch.requests, answers, batch.prompt_tokens, strict=True):
                yield Response(
                    request.sample_id,
                    text=answer.text,
                    prompt_tokens=tokens,
                    generated_tokens=answer.tokens,
                    finish_reason=answer.finish_reason,
                    seconds=batch.seconds + seconds,
                    first_token_seconds=None if first_token is None else batch.seconds + first_token,
                )
        elif len(batch.requests) == 1:
            reason = "out of memory with this sample alone: a device with more, a smaller dtype, or quantization"
            yield Response(batch.requests[0].sample_id, error=Failure("system", reason))
        else:
            size.ran_out(len(batch.requests))
            yield from self._answer_in_parts(batch, len(batch.requests) // 2)

    def _answer_in_parts(self, batch: Batch, size: int) -> Iterator[Response]:
        collator = self._collator
        assert collator is not None
        for start in range(0, len(batch.requests), size):
            yield from self._answer(collator.collate(batch.requests[start : start + size]))

    def _generated(self, batch: Batch) -> tuple[list[Answer] | None, float | None]:
        """Answers of the batch, or None where memory ran out; and seconds to its first token."""
        import torch

        from mhe_hf.batch_memory import is_out_of_memory
        from mhe_hf.clocks import FirstTokenClock
        from mhe_hf.generation import answer_batch

        assert self._model is not None
        assert self._processor is not None
        clock = FirstTokenClock()
        try:
            return answer_batch(self._model, self._processor, batch, self._longest, processors=[clock]), clock.seconds
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause: the traceback holds the tensors that are to be freed.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None, None

    def next_tokens(self, request: Request, before: Sequence[int], most: int) -> Sequence[Sequence[TokenChance]]:
        """The likeliest tokens at each place of the answer to this request alone; see `mhe.ScoresTokens`."""
        from mhe_hf.next_tokens import likeliest_tokens

        if self._model is None or self._processor is None or self._collator is None:
            raise RuntimeError("next_tokens was called before load")
        batch = self._collator.collate([request])
        for failure in batch.failures.values():
            raise SampleModelError(failure.message)
        return likeliest_tokens(self._model, self._processor, batch, self._longest, before, most)

    def render_prompt(self, request: Request) -> str | None:
        """The text that the model reads before it answers; see `mhe.RendersPrompts`."""
        from mhe_hf.loading import load_processor
        from mhe_hf.prompts import shown_prompt

        return shown_prompt(load_processor(self._spec, self._options, offline=self._context.offline), request)

    def usage(self) -> Mapping[str, float]:
        """Seconds of preprocessing and generating, images' places in prompts, batch sizes (that of most samples, and
        the extremes), and on CUDA the device's peak memory and, with NVML, its energy while answers were generated.
        """
        from mhe_hf.description import peak_device_bytes

        measured = {"preprocess_seconds": self._preprocess_seconds, "generate_seconds": self._generate_seconds}
        if self._image_token is not None:
            measured["image_tokens"] = float(self._image_tokens)
        size = self._size
        if size is not None:
            names = ("batch_size", "smallest_batch_size", "largest_batch_size")
            measured |= dict(zip(names, map(float, size.used()), strict=True))
        if self._energy is not None and self._energy.joules is not None:
            measured["energy_joules"] = self._energy.joules
        peak = peak_device_bytes() if self._model is not None else None
        if peak is not None:
            measured["peak_device_bytes"], measured["peak_device_reserved_bytes"] = map(float, peak)
        return measured

    def close(self) -> None:
        """Free the device, and give torch its threads back; also after a `load` that failed."""
        if self._threads_before is not None:
            import torch

            torch.set_num_threads(self._threads_before)
            self._threads_before = None
        if self._model is None:
            return
        import gc

        import torch

        if self._collator is not None:
            self._collator.close()
        self._model = self._processor = self._collator = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
