"""How each family of models is asked, decodes and learns: one table, one file a family.

A model's type chooses its family; types that are not in the table are asked through their chat template. The family
of a loaded processor is known to `family_of`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from mhe import ModelUnusableError
from mhe_hf.families.blip import BlipAnswers, BlipCaptions, BlipTokens
from mhe_hf.families.blip2 import Blip2
from mhe_hf.families.chat import ChatFamily
from mhe_hf.families.vision_decoder import VisionDecoder
from mhe_hf.model_classes import class_names

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedConfig, ProcessorMixin

    from mhe_hf.families.family import Family

_bound: WeakKeyDictionary[ProcessorMixin, Family] = WeakKeyDictionary()


def _blip(configuration: PreTrainedConfig, prefix: str) -> Family:
    text = configuration.text_config
    tokens = BlipTokens(start=int(text.bos_token_id), end=int(text.sep_token_id), pad=int(text.pad_token_id))
    names = class_names(configuration)
    if "BlipForQuestionAnswering" in names:
        return BlipAnswers(tokens)
    if "BlipForConditionalGeneration" in names:
        return BlipCaptions(tokens, prefix)
    raise ModelUnusableError(
        f"a BLIP checkpoint of class {', '.join(sorted(names)) or 'unknown'} writes no text. Its config.json must name "
        "BlipForQuestionAnswering or BlipForConditionalGeneration under architectures."
    )


def _blip2(configuration: PreTrainedConfig, _prefix: str) -> Family:
    text = configuration.text_config
    if not configuration.use_decoder_only_language_model:
        raise ModelUnusableError(
            f"BLIP-2 over an encoder-decoder language model ({text.model_type}) cannot be asked; those over OPT can."
        )
    end = text.eos_token_id
    return Blip2(
        end=int(end[0] if isinstance(end, list) else end),
        pad=int(text.pad_token_id),
        image_token=int(configuration.image_token_index),
        queries=int(configuration.num_query_tokens),
    )


def _vision_decoder(configuration: PreTrainedConfig, prefix: str) -> Family:
    decoder = configuration.decoder

    def token(*names: str) -> int:
        found = [getattr(where, name, None) for name in names for where in (configuration, decoder)]
        known = [value for value in found if isinstance(value, int)]
        if not known:
            raise ModelUnusableError(f"the model's configuration names no {names[0]}; add it to config.json.")
        return known[0]

    end = token("eos_token_id")
    return VisionDecoder(
        start=token("decoder_start_token_id", "bos_token_id"),
        end=end,
        pad=token("pad_token_id", "eos_token_id"),
        prefix=prefix,
    )


FAMILIES: Mapping[str, Callable[[PreTrainedConfig, str], Family]] = {
    "blip": _blip,
    "blip-2": _blip2,
    "vision-encoder-decoder": _vision_decoder,
}
"""Model types without a chat template, and what makes their family from configuration and prefix."""


def family_for(configuration: PreTrainedConfig, prefix: str = "") -> Family:
    """The family of a model with that configuration; `prefix` begins every caption of a captioner.

    Raises `ModelUnusableError` for a class of a known type that writes no text.
    """
    make = FAMILIES.get(str(configuration.model_type))
    return ChatFamily() if make is None else make(configuration, prefix)


def bind_family(processor: ProcessorMixin, configuration: PreTrainedConfig, prefix: str = "") -> Family:
    """Remember whose processor it is: `load_processor` does, and whoever makes one by hand should."""
    family = family_for(configuration, prefix)
    if isinstance(family, ChatFamily):
        family = ChatFamily(pad=int(processor.tokenizer.pad_token_id or 0))
    _bound[processor] = family
    return family


def family_of(processor: ProcessorMixin) -> Family:
    """The family of a processor that was loaded or bound; that of chat templates for one that carries a template.

    Raises `ModelUnusableError` where neither holds.
    """
    family = _bound.get(processor)
    if family is not None:
        return family
    if getattr(processor, "chat_template", None):
        return ChatFamily()
    raise ModelUnusableError(
        f"how a model with a {type(processor).__name__} is asked cannot be told from the processor, which has no chat "
        "template: load it with mhe_hf.load_processor, or call mhe_hf.bind_family(processor, model.config)."
    )
