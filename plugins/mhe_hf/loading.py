"""From a model's name to a loaded model and its processor, with every way it can fail said in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mhe import MissingExtraError, ModelUnusableError
from mhe_hf.families import bind_family, family_for, family_of
from mhe_hf.families.chat import ChatFamily
from mhe_hf.halves import joint_configuration, load_halves
from mhe_hf.model_classes import own_class
from mhe_hf.options import HfOptions
from mhe_hf.parts import find_parts
from mhe_hf.quantization import keep_odd_layers_unpacked, make_whole, quantization_of, stored_quantization
from mhe_hf.versions import library_version
from mhe_hf.weight_files import check_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

    from mhe import ModelSpec
    from mhe_hf.locations import Location
    from mhe_hf.parts import Parts


def load_model(
    spec: ModelSpec, options: HfOptions | None = None, *, offline: bool = False, is_made_whole: bool = False
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model with its adapters, in eval mode on its device, and its processor.

    With `is_made_whole`, weights of few bits are turned into whole ones of the same values before adapters are put on.

    Every weight comes from the checkpoint: one that lacks some is refused, where transformers would make them up. A
    model put together from two halves draws its cross-attention from `options.seed_of_new_weights`.
    Raises `ModelUnusableError`, `MissingExtraError`.
    """
    options = options or HfOptions()
    library_version("transformers")
    parts = find_parts(spec, options, offline=offline)
    for place in (parts.base, parts.decoder):
        if place is not None and place.folder is not None:
            check_folder(place.folder, allow_pickle=options.allow_pickle)
    configuration = _read_configuration(spec, parts, options, offline=offline)
    processor = _open_processor(spec, parts, options, configuration, offline=offline)
    model = _load_weights(spec, parts, options, configuration, offline=offline, is_made_whole=is_made_whole)
    family_of(processor).mend(model)
    if is_made_whole:
        model = make_whole(model)
    if parts.adapters:
        from mhe_hf.adapters import apply_adapters

        model = apply_adapters(model, parts, options)
    # Weights of few bits were put where they belong while they were loaded.
    if options.device_map is None and options.quantization == "none" and stored_quantization(configuration) is None:
        model = model.to(chosen_device(options))  # type: ignore[arg-type]
    model.eval()
    return model, processor


def load_processor(spec: ModelSpec, options: HfOptions | None = None, *, offline: bool = False) -> ProcessorMixin:
    """The model's processor, with the image processor of the library that `options.image_processor` names.

    Raises `ModelUnusableError` for a model without image processor or tokenizer, or of no known family and without
    chat template.
    """
    options = options or HfOptions()
    parts = find_parts(spec, options, offline=offline)
    configuration = _read_configuration(spec, parts, options, offline=offline)
    return _open_processor(spec, parts, options, configuration, offline=offline)


def load_configuration(spec: ModelSpec, options: HfOptions | None = None, *, offline: bool = False) -> PreTrainedConfig:
    """The configuration of the base, of the two halves together where there are two.

    Its `dtype` is the published one. Raises `ModelUnusableError`.
    """
    options = options or HfOptions()
    return _read_configuration(spec, find_parts(spec, options, offline=offline), options, offline=offline)


def empty_model(configuration: PreTrainedConfig) -> PreTrainedModel:
    """A model of that configuration on the meta device: shapes and names without weights."""
    import torch

    with torch.device("meta"):
        model: PreTrainedModel = _model_class(configuration)._from_config(configuration)
    return model


def _open_processor(
    spec: ModelSpec, parts: Parts, options: HfOptions, configuration: PreTrainedConfig, *, offline: bool
) -> ProcessorMixin:
    from mhe_hf.processors import open_processor, pair_processor

    arguments = {**_source_arguments(parts.base, offline=offline), "trust_remote_code": options.trust_remote_code}
    found: Any
    try:
        if parts.decoder is None:
            found = open_processor(parts.base.source, configuration, options.image_processor, arguments)
        else:
            found = pair_processor(parts.base.source, parts.decoder.source, options.image_processor, arguments)
    except Exception as error:
        raise _unusable(spec, "its processor cannot be loaded", error) from error
    processor: ProcessorMixin = found
    _check_processor(spec, processor, options)
    family = bind_family(processor, configuration, options.prefix)
    if isinstance(family, ChatFamily) and not getattr(processor, "chat_template", None):
        raise ModelUnusableError(
            f"model {spec.name}: it has no chat template, so its prompt format is not known. "
            "Put the published one beside the weights as chat_template.jinja."
        )
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


def _read_configuration(spec: ModelSpec, parts: Parts, options: HfOptions, *, offline: bool) -> PreTrainedConfig:
    from transformers import AutoConfig, AutoModelForImageTextToText

    def read(place: Location) -> PreTrainedConfig:
        configuration: PreTrainedConfig = AutoConfig.from_pretrained(
            place.source,
            trust_remote_code=options.trust_remote_code,
            **_source_arguments(place, offline=offline),
        )
        return configuration

    try:
        configuration = read(parts.base)
        if parts.decoder is not None:
            configuration = joint_configuration(configuration, read(parts.decoder))
    except Exception as error:
        raise _unusable(spec, "its configuration cannot be read", error) from error
    has_own_code = "AutoModelForImageTextToText" in (getattr(configuration, "auto_map", None) or {})
    if type(configuration) not in AutoModelForImageTextToText._model_mapping and not has_own_code:
        raise ModelUnusableError(
            f"model {spec.name}: models of type {configuration.model_type!r} do not take images and text "
            "(transformers' AutoModelForImageTextToText does not know it), so it cannot be asked about images."
        )
    return configuration


def _model_class(configuration: PreTrainedConfig) -> Any:  # noqa: ANN401 - transformers' Auto classes share no base
    """The class for the family; of the Auto class the one behind it, but for code that lies beside the weights.

    A class of a plugin, where the configuration names one.
    """
    import transformers

    registered = own_class(configuration)
    if registered is not None:
        return registered
    found = getattr(transformers, family_for(configuration).model_class)
    mapping = getattr(found, "_model_mapping", {})
    return mapping.get(type(configuration), found)


def _load_weights(
    spec: ModelSpec,
    parts: Parts,
    options: HfOptions,
    configuration: PreTrainedConfig,
    *,
    offline: bool,
    is_made_whole: bool,
) -> PreTrainedModel:
    arguments = _weight_arguments(options)
    if options.quantization != "none" and parts.decoder is not None:
        raise ModelUnusableError(
            f"model {spec.name} is put together from two halves, which are not quantised: tune it, and quantise what "
            "was saved."
        )
    stored = stored_quantization(configuration)
    if stored is not None:
        _check_stored(spec, stored, options, is_made_whole=is_made_whole)
        arguments.setdefault("device_map", {"": str(chosen_device(options))})
    try:
        model_class = _model_class(configuration)
        if options.quantization != "none":
            arguments["quantization_config"] = quantization_of(options, configuration, model_class)
            arguments.setdefault("device_map", {"": str(chosen_device(options))})
        model, report = _weights(parts, options, configuration, arguments, model_class, offline=offline)
    except Exception as error:
        raise _unusable(spec, "its weights cannot be loaded", error) from error
    lacking = sorted(report["missing_keys"]) + sorted(str(item) for item in report.get("mismatched_keys", ()))
    if lacking:
        raise ModelUnusableError(
            f"model {spec.name}: the checkpoint does not hold {len(lacking)} of the weights that its configuration "
            f"asks for ({', '.join(lacking[:3])}{', …' if len(lacking) > 3 else ''}); it would answer with noise."
        )
    if stored is not None or options.quantization != "none":
        keep_odd_layers_unpacked(model)
    return model


def _check_stored(spec: ModelSpec, stored: str, options: HfOptions, *, is_made_whole: bool) -> None:
    """Raises for options that weights stored in few bits cannot follow, and where their library is not installed."""
    if options.quantization != "none":
        raise ModelUnusableError(
            f"model {spec.name} is quantised already ({stored}), so quantization={options.quantization} cannot be had: "
            "leave it out, or start from the model it was quantised from."
        )
    if options.merge_adapter and not is_made_whole:
        raise ModelUnusableError(
            f"model {spec.name} is stored in {stored}, and weights of few bits cannot take an adapter in exactly: "
            "leave merge_adapter=false, or use the recipe merge, which makes them whole first."
        )
    if stored in ("nf4", "fp4", "int8"):
        library_version("bitsandbytes", extra="quant", needed_for=f"a checkpoint stored in {stored}")


def _weights(
    parts: Parts,
    options: HfOptions,
    configuration: PreTrainedConfig,
    arguments: dict[str, object],
    model_class: Any,  # noqa: ANN401 - transformers' Auto classes share no base
    *,
    offline: bool,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    of_base = {**arguments, **_source_arguments(parts.base, offline=offline)}
    if parts.decoder is not None:
        of_decoder = {**arguments, **_source_arguments(parts.decoder, offline=offline)}
        sources = (parts.base.source, parts.decoder.source)
        return load_halves(sources, configuration, options.seed_of_new_weights, (of_base, of_decoder))
    loaded: Any = model_class.from_pretrained(
        parts.base.source,
        config=configuration,
        output_loading_info=True,
        trust_remote_code=options.trust_remote_code,
        **of_base,
    )
    return loaded[0], loaded[1]


def _weight_arguments(options: HfOptions) -> dict[str, object]:
    arguments: dict[str, object] = {
        "dtype": options.dtype,
        "use_safetensors": None if options.allow_pickle else True,
    }
    if options.attn_implementation is not None:
        arguments["attn_implementation"] = options.attn_implementation
    if options.device_map is not None:
        arguments["device_map"] = options.device_map
    return arguments


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
    elif "size mismatch" in text or "ignore_mismatched_sizes" in text:
        hint = "\nIf config.json names a plugin's class under architectures, that plugin is not installed: mhe doctor"
    elif "gated" in text.lower():
        hint = f"\nAccept its licence at https://huggingface.co/{spec.location} and log in: hf auth login"
    elif "cached files" in text or "outgoing traffic" in text:
        hint = f"\nOnce, with a network: hf download {spec.location}"
    return ModelUnusableError(f"model {spec.name} ({spec.location}): {what}: {type(error).__name__}: {text}{hint}")
