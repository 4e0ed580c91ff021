"""A model at its true size with weights drawn from a seed: what it costs can be measured, what it writes is noise.

The configuration is bundled under the model's registered name, or lies in a folder that is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhe import Fingerprint, ModelUnusableError, digest_of, file_digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

    from mhe import ModelSpec
    from mhe_hf.options import HfOptions

BUNDLED = Path(__file__).parent / "configurations"
SAME_AS = {"blip-vqa": "miss", "vit-gpt2-coco": "visiongpt2"}
"""Models of one architecture and size."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model")


def configuration_folder(spec: ModelSpec) -> Path:
    """Where the model's config.json lies. Raises `ModelUnusableError` where there is none."""
    given = Path(spec.location).expanduser()
    bundled = BUNDLED / SAME_AS.get(spec.name, spec.name)
    for folder in (given, bundled):
        if (folder / "config.json").is_file():
            return folder
    raise ModelUnusableError(
        f"no configuration is bundled for {spec.name}, and {spec.location} is no folder with a config.json.\n"
        f"Bundled: {', '.join(bundled_names())}. For another model: --model FOLDER, which holds its config.json."
    )


def bundled_names() -> list[str]:
    """Registered names whose configuration is part of this package."""
    return sorted([*(folder.name for folder in BUNDLED.iterdir() if folder.is_dir()), *SAME_AS])


def has_own_processor(folder: Path) -> bool:
    """Whether the model's own tokenizer lies beside its configuration."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def random_fingerprint(spec: ModelSpec, options: HfOptions) -> Fingerprint:
    """Of configuration and seed: two such models on one kind of device are the same weights."""
    digest = file_digest(configuration_folder(spec) / "config.json")
    content = {"configuration": digest, "random weights of seed": options.seed_of_new_weights}
    return Fingerprint(digest_of(content), verified=True, files={"config.json": digest})


def random_model(spec: ModelSpec, options: HfOptions) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The model in eval mode on its device, and its own processor or a stand-in.

    Raises `ModelUnusableError` for a configuration that cannot be built.
    """
    import torch
    from transformers import AutoConfig

    from mhe_hf.families import bind_family, family_of
    from mhe_hf.loading import chosen_device, empty_model, load_processor
    from mhe_hf.stand_ins import stand_in_processor

    folder = configuration_folder(spec)
    configuration = AutoConfig.from_pretrained(folder, local_files_only=True)
    if has_own_processor(folder):
        processor = load_processor(spec.model_copy(update={"location": str(folder)}), options, offline=True)
    else:
        processor = stand_in_processor(configuration)
        bind_family(processor, configuration, options.prefix)
    device = chosen_device(options)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(options.seed_of_new_weights)
        model = _drawn(type(empty_model(configuration)), configuration, options, device)
    if options.quantization != "none":
        model = _quantised(model, configuration, options, device)
    family_of(processor).mend(model)
    model.eval()
    return model, processor


def _drawn(
    model_class: type[PreTrainedModel], configuration: PreTrainedConfig, options: HfOptions, device: torch.device
) -> PreTrainedModel:
    import torch

    saved = getattr(configuration, "dtype", None)
    dtype = getattr(torch, options.dtype) if options.dtype != "auto" else saved or torch.float32
    arguments: dict[str, Any] = {"dtype": dtype}
    if options.attn_implementation is not None:
        arguments["attn_implementation"] = options.attn_implementation
    try:
        # Drawn where they will lie: on a CPU the billions of a true size take minutes.
        with device:
            model: PreTrainedModel = model_class._from_config(configuration, **arguments)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelUnusableError(f"the configuration cannot be built: {type(error).__name__}: {error}") from error
    return model


def _quantised(
    model: PreTrainedModel, configuration: PreTrainedConfig, options: HfOptions, device: torch.device
) -> PreTrainedModel:
    """The same weights in fewer bits, by the way that loading takes."""
    from mhe_hf.quantization import quantization_of

    kind: Any = type(model)
    settings = quantization_of(options, configuration, kind)
    weights = model.state_dict()
    dtype = model.dtype
    del model
    loaded: Any = kind.from_pretrained(
        None,
        config=configuration,
        state_dict=weights,
        dtype=dtype,
        quantization_config=settings,
        device_map={"": str(device)},
        output_loading_info=True,
    )
    quantised: PreTrainedModel = loaded[0]
    missing = loaded[1]["missing_keys"]
    if missing:
        raise ModelUnusableError(f"{len(missing)} weights were lost while quantising: {', '.join(sorted(missing)[:3])}")
    return quantised
