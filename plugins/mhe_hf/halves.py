"""A vision-encoder-decoder put together from a published image encoder and a published language model.

Neither half has cross-attention; it is drawn from a seed, so that two such models are the same weights. VisionGPT-2
is ViT and GPT-2 put together so, and then trained.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mhe import ModelUnusableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from transformers import PreTrainedConfig, PreTrainedModel

NEW = ("crossattention", "ln_cross_attn", "encoder_attn", "pooler")
"""Parts of names that a half may lack: cross-attention, and the encoder's pooling, which is not used."""


def joint_configuration(encoder: PreTrainedConfig, decoder: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the two together: the decoder starts from its first token and pads with its last.

    Raises `ModelUnusableError` for a decoder whose configuration names neither.
    """
    from transformers import VisionEncoderDecoderConfig

    decoder.is_decoder = True
    decoder.add_cross_attention = True
    joint: PreTrainedConfig = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    start, end = decoder.bos_token_id, decoder.eos_token_id
    if start is None or end is None:
        raise ModelUnusableError(f"a {decoder.model_type} decoder without bos_token_id and eos_token_id cannot write.")
    joint.decoder_start_token_id = start
    joint.eos_token_id = end
    joint.pad_token_id = decoder.pad_token_id if decoder.pad_token_id is not None else end
    joint.architectures = ["VisionEncoderDecoderModel"]
    joint.dtype = encoder.dtype
    return joint


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's report of missing weights: cross-attention is missing on purpose."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def load_halves(
    sources: tuple[str, str],
    configuration: PreTrainedConfig,
    seed: int,
    arguments: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> tuple[PreTrainedModel, dict[str, set[str]]]:
    """The model, and transformers' report of what neither half holds beside the new cross-attention.

    `sources` and `arguments` are those of encoder and decoder. Raises what transformers raises.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM, VisionEncoderDecoderModel

    loaders = (AutoModel, AutoModelForCausalLM)
    configurations = (configuration.encoder, configuration.decoder)
    halves: list[PreTrainedModel] = []
    report: dict[str, set[str]] = {"missing_keys": set(), "mismatched_keys": set()}
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(seed)
        for loader, source, config, given in zip(loaders, sources, configurations, arguments, strict=True):
            loaded: Any = loader.from_pretrained(source, config=config, output_loading_info=True, **given)
            half, found = loaded
            halves.append(half)
            report["missing_keys"] |= {key for key in found["missing_keys"] if not any(part in key for part in NEW)}
            report["mismatched_keys"] |= {str(item) for item in found.get("mismatched_keys", ())}
        model: PreTrainedModel = VisionEncoderDecoderModel(encoder=halves[0], decoder=halves[1], config=configuration)
    settings = model.generation_config
    if settings is not None:
        settings.decoder_start_token_id = configuration.decoder_start_token_id
        settings.eos_token_id = configuration.eos_token_id
        settings.pad_token_id = configuration.pad_token_id
    return model.to(halves[0].dtype), report  # type: ignore[arg-type]
