"""From a model's name to a loaded model and its processor, with every way it can fail said in plain words."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from mhe import MissingExtraError, ModelUnusableError
from mhe_hf.architectures import architecture_of
from mhe_hf.locations import Location, find_location
from mhe_hf.options import HfOptions
from mhe_hf.weight_files import check_folder

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, ProcessorMixin

    from mhe import ModelSpec


def load_model(
    spec: ModelSpec, options: HfOptions | None = None, *, offline: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model, in eval mode on its device, and its processor.

    Every weight comes from the checkpoint: one that lacks some is refused, where transformers would make them up.
    Raises `ModelUnusableError`, `MissingExtraError`.
    """
    options = options or HfOptions()
    library_version("transformers")
    location = find_location(spec, offline=offline)
    if location.folder is not None:
        check_folder(location.folder, allow_pickle=options.allow_pickle)
    processor = load_processor(spec, options, offline=offline)
    configuration = _load_configuration(spec, location, options, offline=offline)
    model = _load_weights(spec, location, options, configuration, offline=offline)
    if options.device_map is None and options.quantization == "none":
        model = model.to(chosen_device(options))  # type: ignore[arg-type]
    model.eval()
    return model, processor


def load_processor(spec: ModelSpec, options: HfOptions | None = None, *, offline: bool = False) -> ProcessorMixin:
    """The model's processor, with the image processor of the library that `options.image_processor` names.

    Raises `ModelUnusableError` for a model without image processor, tokenizer or chat template.
    """
    from transformers import AutoImageProcessor, AutoProcessor
    from transformers.processing_utils import ProcessorMixin

    options = options or HfOptions()
    location = find_location(spec, offline=offline)
    arguments = {**_source_arguments(location, offline=offline), "trust_remote_code": options.trust_remote_code}
    try:
        processor: ProcessorMixin = AutoProcessor.from_pretrained(location.source, **arguments)
        if isinstance(processor, ProcessorMixin) and hasattr(processor, "image_processor"):
            wanted = AutoImageProcessor.from_pretrained(location.source, backend=options.image_processor, **arguments)
            processor.image_processor = wanted
    except Exception as error:
        raise _unusable(spec, "its processor cannot be loaded", error) from error
    _check_processor(spec, processor, options)
    return processor


def _check_processor(spec: ModelSpec, processor: object, options: HfOptions) -> None:
    image_processor = getattr(processor, "image_processor", None)
    tokenizer = getattr(processor, "tokenizer", None)
    if image_processor is None or tokenizer is None:
        lacks = "image processor" if image_processor is None else "tokenizer"
        raise ModelUnusableError(
            f"model {spec.name}: it has no {lacks} ({type(processor).__name__}), so it cannot be asked about images. "
            "A folder needs preprocessor_config.json (or processor_config.json) and the tokenizer's files."
        )
    found = getattr(image_processor, "backend", options.image_processor)
    if found != options.image_processor:
        raise ModelUnusableError(
            f"model {spec.name}: image_processor {options.image_processor!r} is not to be had here "
            f"({type(image_processor).__name__} uses {found!r}). Choose it: --set backend.image_processor={found}"
        )
    if not getattr(processor, "chat_template", None):
        raise ModelUnusableError(
            f"model {spec.name}: it has no chat template, so its prompt format is not known. "
            "Put the published one beside the weights as chat_template.jinja."
        )


def _load_configuration(spec: ModelSpec, location: Location, options: HfOptions, *, offline: bool) -> PreTrainedConfig:
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        configuration: PreTrainedConfig = AutoConfig.from_pretrained(
            location.source,
            trust_remote_code=options.trust_remote_code,
            **_source_arguments(location, offline=offline),
        )
    except Exception as error:
        raise _unusable(spec, "its configuration cannot be read", error) from error
    has_own_code = "AutoModelForImageTextToText" in (getattr(configuration, "auto_map", None) or {})
    if type(configuration) not in AutoModelForImageTextToText._model_mapping and not has_own_code:
        raise ModelUnusableError(
            f"model {spec.name}: models of type {configuration.model_type!r} do not take images and text "
            "(transformers' AutoModelForImageTextToText does not know it), so it cannot be asked about images."
        )
    return configuration


def _load_weights(
    spec: ModelSpec, location: Location, options: HfOptions, configuration: PreTrainedConfig, *, offline: bool
) -> PreTrainedModel:
    from transformers import AutoModelForImageTextToText

    arguments: dict[str, object] = {
        **_source_arguments(location, offline=offline),
        "config": configuration,
        "dtype": options.dtype,
        "trust_remote_code": options.trust_remote_code,
        "use_safetensors": None if options.allow_pickle else True,
    }
    if options.attn_implementation is not None:
        arguments["attn_implementation"] = options.attn_implementation
    if options.device_map is not None:
        arguments["device_map"] = options.device_map
    if options.quantization != "none":
        arguments["quantization_config"] = quantization_of(options, configuration)
        arguments.setdefault("device_map", {"": str(chosen_device(options))})
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            location.source, output_loading_info=True, **arguments
        )
    except Exception as error:
        raise _unusable(spec, "its weights cannot be loaded", error) from error
    model: PreTrainedModel = loaded[0]
    report = loaded[1]
    lacking = sorted(report["missing_keys"]) + sorted(str(item) for item in report.get("mismatched_keys", ()))
    if lacking:
        raise ModelUnusableError(
            f"model {spec.name}: the checkpoint does not hold {len(lacking)} of the weights that its configuration "
            f"asks for ({', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}); it would answer with noise."
        )
    return model


def quantization_of(options: HfOptions, configuration: PreTrainedConfig) -> BitsAndBytesConfig:
    """What bitsandbytes is told: kind, scales, and the modules to leave alone.

    Raises `MissingExtraError`, and `ModelUnusableError` where modules are to be left alone and it is not known
    where they live.
    """
    import torch
    from transformers import BitsAndBytesConfig

    library_version("bitsandbytes", extra="quant", needed_for=f"quantization {options.quantization}")
    skipped = ["lm_head"]
    kept = {"vision", "fusion", "language"} - set(options.quantized_modules)
    if kept:
        architecture = architecture_of(str(configuration.model_type))
        # Full paths: a name without its `model.` prefix matches nothing, and is quantised without a word.
        skipped += [path for module in sorted(kept) for path in getattr(architecture, module)]
    if options.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.quantization,
        bnb_4bit_use_double_quant=options.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, options.dtype)
        if options.dtype != "auto"
        else _saved_dtype(configuration),
        llm_int8_skip_modules=skipped,
    )


def _saved_dtype(configuration: PreTrainedConfig) -> torch.dtype:
    import torch

    saved = getattr(configuration, "dtype", None)
    return saved if isinstance(saved, torch.dtype) else torch.float32


def chosen_device(options: HfOptions) -> torch.device:
    """The device that `options.device` stands for. Raises `ModelUnusableError` for one that is not here."""
    import torch

    if options.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelUnusableError(
            f"device {options.device!r} cannot be used here: {reason}\nUse --set backend.device=cpu, or auto."
        ) from None
    return device


def library_version(name: str, *, extra: str = "hf", needed_for: str = "backend hf") -> str:
    """The installed version, found without importing it. Raises `MissingExtraError`."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(extra, needed_for, name) from None


def _source_arguments(location: Location, *, offline: bool) -> dict[str, str | bool]:
    if location.folder is not None:
        return {"local_files_only": True}
    return {"local_files_only": offline, "revision": str(location.commit)}


def _unusable(spec: ModelSpec, what: str, error: Exception) -> Exception:
    """An error of a library in the reader's words, with what to type where that is known."""
    if isinstance(error, ModelUnusableError | MissingExtraError):
        return error
    text = str(error).strip() or type(error).__name__
    hint = ""
    if "trust_remote_code" in text:
        hint = "\nIt brings Python code of its own. If you have read it: --set backend.trust_remote_code=true"
        text = text.splitlines()[0]
    elif "orchvision" in text:
        hint = "\nIts processor needs torchvision; `mhe doctor` says how to install the one that fits torch."
    elif "safetensors" in text and "use_safetensors" in text:
        hint = "\nIts weights are pickles, which can run any code. If you trust them: --set backend.allow_pickle=true"
    elif "gated" in text.lower():
        hint = f"\nAccept its licence at https://huggingface.co/{spec.location} and log in: hf auth login"
    elif "cached files" in text or "outgoing traffic" in text:
        hint = f"\nOnce, with a network: hf download {spec.location}"
    return ModelUnusableError(f"model {spec.name} ({spec.location}): {what}: {type(error).__name__}: {text}{hint}")
