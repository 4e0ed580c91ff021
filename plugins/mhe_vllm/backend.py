"""The backend `vllm`: vLLM's offline engine, stepped so that each answer is given as soon as it is there.

Light until `load`: what is needed to find a run again (fingerprint, versions, options) imports neither torch nor vLLM.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mhe import BackendDescription, Failure, MheError, ModelUnusableError, Response
from mhe_hf import HfOptions, decode_answer, let_waiting_threads_sleep, library_version, load_processor, shown_prompt
from mhe_vllm.adapter_sets import find_set, write_renamed
from mhe_vllm.engine import Engine, vllm_version
from mhe_vllm.options import VllmOptions
from mhe_vllm.weights import count_parameters, find_folder, fingerprint

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from pydantic import BaseModel
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    from mhe import BackendContext, ModelSpec, Request
    from mhe_vllm.prompts import Prompt, PromptMaker

VERSION = "2"
"""Raised when a change here can change an answer."""


@dataclasses.dataclass(frozen=True, slots=True)
class _InFlight:
    request: Request
    started: float


class VllmBackend:
    """Any image-text-to-text model that vLLM has, prompted as the backend `hf` prompts it."""

    Options: ClassVar[type[BaseModel]] = VllmOptions

    def __init__(self, model: ModelSpec, options: BaseModel, context: BackendContext, /) -> None:
        self._spec = model
        self._options = VllmOptions.model_validate(options.model_dump())
        self._context = context
        self._description: BackendDescription | None = None
        self._engine: Engine | None = None
        self._renamed: tempfile.TemporaryDirectory[str] | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._prompts: PromptMaker | None = None
        self._submitted = 0
        self._preprocess_seconds = 0.0
        self._generate_seconds = 0.0

    def describe(self) -> BackendDescription:
        """Fingerprint, versions and options; after `load` also device, precision and parameters.

        Raises `ModelUnusableError`, and `MissingExtraError` where vLLM is not installed.
        """
        if self._description is None:
            versions = [vllm_version(), *(f"{name} {library_version(name)}" for name in ("transformers", "torch"))]
            self._description = BackendDescription(
                name="vllm",
                version=", ".join([f"vllm backend {VERSION}", *versions]),
                fingerprint=fingerprint(self._spec, self._options, offline=self._context.offline),
                key_options=self._options.in_key(),
                neutral_options=self._options.neutral(),
            )
        return self._description

    def load(self) -> None:
        """Imports torch and vLLM, and brings the weights to the device."""
        described = self.describe()
        let_waiting_threads_sleep()
        from mhe_vllm.prompts import PromptMaker

        folder = find_folder(self._spec, offline=self._context.offline)
        processor = self._open_processor(folder)
        self._tokenizer = processor.tokenizer
        self._prompts = PromptMaker(processor)
        adapter = None if self._options.adapter is None else Path(self._options.adapter).expanduser()
        of_set = find_set(self._spec, offline=self._context.offline)
        if of_set is not None:
            self._renamed = tempfile.TemporaryDirectory(prefix="mhe-adapter-")
            adapter = write_renamed(of_set, Path(self._renamed.name))
        try:
            self._engine = Engine(folder, self._options, adapter)
        except MheError:
            raise
        except Exception as error:
            raise ModelUnusableError(self._refusal(error)) from error
        counted = None if self._options.quantization else count_parameters(folder)
        model = self._engine.configuration.model_config
        dtype = str(model.dtype).removeprefix("torch.")
        self._description = dataclasses.replace(
            described,
            device=self._device_name(),
            precision=dtype if model.quantization is None else f"{model.quantization} ({dtype} outside)",
            parameters=None if counted is None else counted[0],
            bits_per_weight=None if counted is None else counted[1],
        )

    def _open_processor(self, folder: Path) -> ProcessorMixin:
        local = self._spec.model_copy(update={"location": str(folder), "revision": None})
        chosen = HfOptions(
            image_processor=self._options.image_processor, trust_remote_code=self._options.trust_remote_code
        )
        return load_processor(local, chosen, offline=True)

    def render_prompt(self, request: Request) -> str | None:
        """The text that the model reads before it answers; see `mhe.RendersPrompts`."""
        return shown_prompt(self._open_processor(find_folder(self._spec, offline=self._context.offline)), request)

    def _refusal(self, error: Exception) -> str:
        hint = "\nIf this vLLM does not have the architecture, transformers may: --backend hf"
        if "not supported" in str(error) and "rchitecture" in str(error):
            hint = "\nThis vLLM does not have the architecture: use --backend hf."
        return f"model {self._spec.name}: vLLM cannot load it: {type(error).__name__}: {str(error).strip()}{hint}"

    def _device_name(self) -> str:
        assert self._engine is not None
        if self._engine.device != "cuda":
            return self._engine.device
        import torch

        names = [torch.cuda.get_device_name(n) for n in range(self._options.tensor_parallel_size)]
        return f"cuda: {names[0]}" if len(names) == 1 else f"cuda: {len(names)} x {names[0]}"

    def generate(self, requests: Sequence[Request], pending: Collection[str]) -> Iterator[Response]:
        """Answers of the pending requests as they finish; as many are in the engine as it works on at once.

        An exception of the engine ends the run; what it had answered before is kept.
        """
        engine, prompts = self._engine, self._prompts
        if engine is None or prompts is None:
            raise RuntimeError("generate was called before load")
        wanted = set(pending)
        asked = [request for request in requests if request.sample_id in wanted]
        self._check_images(asked)
        core = engine.llm.llm_engine
        most = engine.configuration.scheduler_config.max_num_seqs
        # A process of its own is kept busy while the next requests are prepared here.
        room = 2 * most if engine.has_own_process else most
        coming = prompts.make_ahead(asked, ahead=min(room, 64))
        flying: dict[str, _InFlight] = {}
        try:
            is_over = False
            while flying or not is_over:
                while len(flying) < room and not is_over:
                    prompt = next(coming, None)
                    if prompt is None:
                        is_over = True
                    elif (failure := self._submit(prompt, flying)) is not None:
                        yield Response(prompt.request.sample_id, error=failure)
                if flying:
                    yield from self._step(core, flying)
        finally:
            coming.close()
            if flying:
                core.abort_request(list(flying))

    def _check_images(self, requests: Sequence[Request]) -> None:
        most = max((len(request.images) for request in requests), default=0)
        if most > self._options.max_images:
            raise ModelUnusableError(
                f"a request shows {most} images, and memory was set aside for {self._options.max_images}: "
                f"--set backend.max_images={most}"
            )

    def _submit(self, prompt: Prompt, flying: dict[str, _InFlight]) -> Failure | None:
        """Give a prompt to the engine, or tell why it has no answer."""
        from vllm.exceptions import VLLMClientError

        from mhe_vllm.prompts import as_engine_input

        if prompt.failure is not None:
            return prompt.failure
        assert self._engine is not None
        started, arrival = time.perf_counter(), time.time()
        core = self._engine.llm.llm_engine
        name = str(self._submitted)
        self._submitted += 1
        try:
            core.add_request(
                name,
                as_engine_input(prompt),
                _sampling(prompt.request),
                arrival_time=arrival,
                lora_request=self._engine.lora,
            )
        except VLLMClientError as error:
            failure = Failure("model", f"vLLM refuses the prompt: {error}")
        except (ValueError, ArithmeticError, IndexError) as error:
            failure = Failure("model", f"the model's processor refuses it: {type(error).__name__}: {error}")
        except BaseException:
            core.abort_request([name])
            raise
        else:
            flying[name] = _InFlight(prompt.request, started)
            return None
        finally:
            self._preprocess_seconds += time.perf_counter() - started
        if prompt.pictures:
            # Its image is known on this side of the engine and was never sent to the other: the next question about
            # it would be sent without pixels.
            core.reset_mm_cache()
        return failure

    def _step(self, core: Any, flying: dict[str, _InFlight]) -> Iterator[Response]:  # noqa: ANN401 - a class of vLLM
        started = time.perf_counter()
        outputs = core.step()
        ended = time.perf_counter()
        self._generate_seconds += ended - started
        for output in outputs:
            if output.finished:
                yield self._response(output, flying.pop(output.request_id), ended)

    def _response(self, output: Any, flight: _InFlight, ended: float) -> Response:  # noqa: ANN401 - a class of vLLM
        request, (answer,) = flight.request, output.outputs
        if answer.finish_reason not in ("stop", "length"):
            # What vLLM calls abort or error came from its scheduler, not from the prompt.
            reason = f"vLLM ended the request: {answer.finish_reason}"
            return Response(request.sample_id, error=Failure("system", reason))
        assert self._tokenizer is not None
        # Decoded as a whole by the model's own tokenizer, as the backend `hf` does: vLLM decodes piece by piece.
        text = decode_answer(self._tokenizer, answer.token_ids)
        cuts = [place for stop in request.generation.stop if (place := text.find(stop)) >= 0]
        first = getattr(output.metrics, "first_token_latency", 0.0) or None
        return Response(
            request.sample_id,
            text=(text[: min(cuts)] if cuts else text).strip(),
            prompt_tokens=len(output.prompt_token_ids),
            generated_tokens=len(answer.token_ids),
            finish_reason="stop" if cuts else answer.finish_reason,
            seconds=ended - flight.started,
            first_token_seconds=first,
        )

    def usage(self) -> Mapping[str, float]:
        """Seconds of preprocessing and generating, samples at once, and the device's peak memory where it is known."""
        measured = {"preprocess_seconds": self._preprocess_seconds, "generate_seconds": self._generate_seconds}
        if self._engine is None or self._engine.llm is None:
            return measured
        measured["batch_size"] = float(self._engine.configuration.scheduler_config.max_num_seqs)
        if self._engine.device == "cuda" and not self._engine.has_own_process:
            import torch

            measured["peak_device_bytes"] = float(torch.cuda.max_memory_allocated())
        return measured

    def close(self) -> None:
        """End the engine and free the device."""
        if self._engine is not None:
            self._engine.close()
            self._engine = self._tokenizer = self._prompts = None
        if self._renamed is not None:
            self._renamed.cleanup()
            self._renamed = None


def _sampling(request: Request) -> Any:  # noqa: ANN401 - a class of vLLM
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    asked = request.generation
    is_sampled = asked.temperature > 0
    return SamplingParams(
        temperature=asked.temperature,
        top_p=asked.top_p if is_sampled else 1.0,
        seed=request.seed if is_sampled else None,
        max_tokens=asked.max_new_tokens,
        stop=list(asked.stop) or None,
        # The text is made from the tokens, but a stop text must be seen while they come.
        detokenize=bool(asked.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
