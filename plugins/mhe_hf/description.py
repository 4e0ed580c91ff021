"""What is known and set of a model once it is loaded: device, precision, parameters, memory, ends of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import torch

from mhe_hf.architectures import module_parameters, parameter_size
from mhe_hf.quantization import stored_quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mhe_hf.options import HfOptions


class LoadedFacts(TypedDict):
    """The fields of `BackendDescription` that only a loaded model can fill."""

    device: str
    precision: str
    parameters: int
    module_parameters: dict[str, int]
    bits_per_weight: float


def loaded_facts(model: PreTrainedModel, options: HfOptions) -> LoadedFacts:
    """Device and precision in words, parameters (tied ones once) in total and by module, stored bits per weight."""
    parameters = sum(parameter_size(p) for p in model.parameters())
    stored = stored_bytes(model)
    dtype = str(model.dtype).removeprefix("torch.")
    kind = options.quantization if options.quantization != "none" else stored_quantization(model.config)
    return LoadedFacts(
        device=_device_name({parameter.device for parameter in model.parameters()}),
        precision=dtype if kind is None else f"{kind} ({dtype} outside)",
        parameters=parameters,
        module_parameters=module_parameters(model),
        bits_per_weight=round(8 * stored / parameters, 4) if parameters else 0.0,
    )


def forget_ends(model: PreTrainedModel) -> None:
    """Have no token end an answer, in the model and in a decoder inside it, whose own settings fill what is open."""
    for module in model.modules():
        settings = getattr(module, "generation_config", None)
        if settings is not None:
            settings.eos_token_id = None


def stored_bytes(model: PreTrainedModel) -> int:
    """Bytes of all weights with the scales of those in few bits, tied ones once."""
    return sum(_stored_bytes(parameter) for parameter in model.parameters())


def _stored_bytes(parameter: torch.nn.Parameter) -> int:
    stored = parameter.numel() * parameter.element_size()
    scales = getattr(parameter, "SCB", None)
    if scales is not None:
        stored += scales.numel() * scales.element_size()
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        # Scales count too: they are what double quantisation makes smaller.
        stored += sum(v.numel() * v.element_size() for v in state.as_dict(packed=True).values())
    return int(stored)


def _device_name(devices: set[torch.device]) -> str:
    """Where the weights lie: devices of CUDA by their product's name, and how many where they are several."""
    kinds = sorted({device.type for device in devices} - {"cuda"})
    names = [torch.cuda.get_device_name(device) for device in devices if device.type == "cuda"]
    counts = (f"{names.count(name)} x {name}" if len(names) > 1 else name for name in sorted(set(names)))
    return ", ".join([*(f"cuda: {shown}" for shown in counts), *kinds])


def peak_device_bytes() -> tuple[int, int] | None:
    """Most memory allocated at once since loading, and most reserved, summed over CUDA devices; None without one."""
    if not torch.cuda.is_available():
        return None
    devices = range(torch.cuda.device_count())
    allocated = sum(torch.cuda.max_memory_allocated(number) for number in devices)
    return allocated, sum(torch.cuda.max_memory_reserved(number) for number in devices)
