"""The backend `hf`: transformers in this process.

Light until `load`: what is needed to find a run again (fingerprint, versions, options) imports neither torch nor
transformers.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, ClassVar

from mhe import BackendDescription, Failure, ModelUnusableError, Response, SampleModelError
from mhe_hf.options import HfOptions
from mhe_hf.parts import Parts, find_parts, fingerprint_parts
from mhe_hf.threads import let_waiting_threads_sleep
from mhe_hf.versions import library_version

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from pydantic import BaseModel
    from transformers import PreTrainedModel, ProcessorMixin

    from mhe import BackendContext, ModelSpec, Request, TokenChance
    from mhe_hf.collation import Batch, Collator
    from mhe_hf.generation import Answer

VERSION = "1"
"""Raised when a change here can change an answer."""


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
        self._largest_batch = self._options.batch_size
        self._threads_before: int | None = None
        self._preprocess_seconds = 0.0
        self._generate_seconds = 0.0

    def describe(self) -> BackendDescription:
        """Fingerprint, versions and options; after `load` also device, precision and parameters.

        Raises `ModelUnusableError`, and `MissingExtraError` where torch or transformers is not installed.
        """
        if self._description is None:
            versions = [f"{name} {library_version(name)}" for name in ("transformers", "torch")]
            if self._options.quantization != "none":
                versions.append(f"bitsandbytes {library_version('bitsandbytes', extra='quant')}")
            if self._options.all_adapters():
                versions.append(f"peft {library_version('peft', extra='tune')}")
            parts = find_parts(self._spec, self._options, offline=self._context.offline)
            self._check_trained(parts)
            self._description = BackendDescription(
                name="hf",
                version=", ".join([f"hf {VERSION}", *versions]),
                fingerprint=fingerprint_parts(parts, self._options.seed_of_new_weights),
                key_options=self._options.in_key(),
                neutral_options=self._options.neutral(),
            )
        return self._description

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

        from mhe_hf.collation import Collator, context_of
        from mhe_hf.description import loaded_facts
        from mhe_hf.generation import plain_settings
        from mhe_hf.loading import load_model

        logging.disable_progress_bar()
        if self._options.num_threads is not None:
            self._threads_before = torch.get_num_threads()
            torch.set_num_threads(self._options.num_threads)
        model, processor = load_model(self._spec, self._options, offline=self._context.offline)
        self._model, self._processor = model, processor
        self._longest = context_of(model.config)
        self._collator = Collator(
            processor, context=self._longest, cache_bytes=self._options.image_cache_mb * 1_000_000
        )
        model.generation_config = plain_settings(model, processor)
        self._description = dataclasses.replace(described, **loaded_facts(model, self._options))
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def generate(self, requests: Sequence[Request], pending: Collection[str]) -> Iterator[Response]:
        """Answers of the pending requests, batch by batch in the order of the list.

        Batches are formed from the whole list; one with a pending sample runs whole, so that a resumed run
        computes what an undisturbed one does.
        """
        from mhe_hf.batches import made_ahead, pending_batches

        collator = self._collator
        if collator is None:
            raise RuntimeError("generate was called before load")
        wanted = set(pending)
        unheard = self._unheard(requests)
        if unheard is not None:
            yield from (Response(r.sample_id, error=unheard) for r in requests if r.sample_id in wanted)
            return
        batches = pending_batches(requests, self._options.batch_size, wanted)
        for batch in made_ahead(batches, collator.collate, self._options.prefetch):
            for response in self._answer(batch):
                if response.sample_id in wanted:
                    yield response

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
        if len(batch.requests) > self._largest_batch:
            yield from self._answer_in_parts(batch)
            return
        started = time.perf_counter()
        answers = self._generated(batch)
        seconds = time.perf_counter() - started
        self._generate_seconds += seconds
        if answers is not None:
            for request, answer, tokens in zip(batch.requests, answers, batch.prompt_tokens, strict=True):
                yield Response(
                    request.sample_id,
                    text=answer.text,
                    prompt_tokens=tokens,
                    generated_tokens=answer.tokens,
                    finish_reason=answer.finish_reason,
                    seconds=batch.seconds + seconds,
                )
        elif len(batch.requests) == 1:
            reason = "out of memory with this sample alone: a device with more, a smaller dtype, or quantization"
            yield Response(batch.requests[0].sample_id, error=Failure("system", reason))
        else:
            self._largest_batch = len(batch.requests) // 2
            yield from self._answer_in_parts(batch)

    def _answer_in_parts(self, batch: Batch) -> Iterator[Response]:
        collator, size = self._collator, self._largest_batch
        assert collator is not None
        for start in range(0, len(batch.requests), size):
            yield from self._answer(collator.collate(batch.requests[start : start + size]))

    def _generated(self, batch: Batch) -> list[Answer] | None:
        """Answers of the batch, or None where memory ran out."""
        import torch

        from mhe_hf.generation import answer_batch, is_out_of_memory

        assert self._model is not None
        assert self._processor is not None
        try:
            return answer_batch(self._model, self._processor, batch, self._longest)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause: the traceback holds the tensors that are to be freed.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def next_tokens(self, request: Request, before: Sequence[int], most: int) -> Sequence[Sequence[TokenChance]]:
        """The likeliest tokens at each place of the answer to this request alone; see `mhe.ScoresTokens`."""
        from mhe_hf.next_tokens import likeliest_tokens

        if self._model is None or self._processor is None or self._collator is None:
            raise RuntimeError("next_tokens was called before load")
        batch = self._collator.collate([request])
        for failure in batch.failures.values():
            raise SampleModelError(failure.message)
        return likeliest_tokens(self._model, self._processor, batch, self._longest, before, most)

    def usage(self) -> Mapping[str, float]:
        """Seconds of preprocessing and generating, the batch size in use, and the device's peak memory on CUDA."""
        from mhe_hf.description import peak_device_bytes

        measured = {
            "preprocess_seconds": self._preprocess_seconds,
            "generate_seconds": self._generate_seconds,
            "batch_size": float(self._largest_batch),
        }
        peak = peak_device_bytes() if self._model is not None else None
        if peak is not None:
            measured["peak_device_bytes"] = float(peak)
        return measured

    def close(self) -> None:
        """Free the device."""
        if self._model is None:
            return
        import gc

        import torch

        self._model = self._processor = self._collator = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)
