"""Processors for models whose own cannot be had: the real classes and image sizes, a tokenizer that only counts.

A prompt gets as many image places as the model's own processor gives it, and about as many text tokens: words are
cut every five letters, which is near what the real vocabularies do to English. All words are one token to the model,
so that what it costs is right and what it writes means nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mhe import ModelUnusableError
from mhe_hf.processors import ImageAndText, without_video

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

PIECES = r"\s?\p{L}{1,5}|\s?\p{N}{1,3}|\s?[^\s\p{L}\p{N}]|\s"
WORD = "<word>"
WORD_ID = 100
_MESSAGES = (
    "{% for message in messages %}BEFORE{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}AFTER{% endfor %}{% if add_generation_prompt %}OPEN{% endif %}"
)


def stand_in_processor(configuration: PreTrainedConfig) -> ProcessorMixin:
    """A processor for a model of that configuration. Raises `ModelUnusableError` for a type that is not known here."""
    make = _MAKERS.get(str(configuration.model_type))
    if make is None:
        raise ModelUnusableError(
            f"no stand-in processor is known for models of type {configuration.model_type!r}; there are those of "
            f"{', '.join(sorted(_MAKERS))}. Put the model's own processor and tokenizer beside its config.json."
        )
    return make(configuration)


def _template(before: str, image: str, after: str, opened: str) -> str:
    pieces = {"BEFORE": before, "IMAGE": image, "AFTER": after, "OPEN": opened}
    text = _MESSAGES
    for name, piece in pieces.items():
        text = text.replace(name, piece)
    return text


def _tokenizer(
    configuration: PreTrainedConfig, extra: Mapping[str, int], *, frame: str = "$A", image: str | None = None
) -> PreTrainedTokenizerFast:
    """`extra` are special tokens with their ids; `frame` says what stands around every text."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    text = configuration.get_text_config(decoder=True)
    start = _id(text, "bos_token_id", 1)
    end = _id(text, "eos_token_id", 2)
    pad = _id(text, "pad_token_id", end)
    known = {"<start>": start, "<end>": end, "<pad>": pad, WORD: min(WORD_ID, _id(text, "vocab_size", WORD_ID + 1) - 1)}
    known |= extra
    # Two names of one id: the later stands for both.
    by_id = {number: name for name, number in known.items()}
    names = {name: by_id[number] for name, number in known.items()}
    whole = Tokenizer(models.WordLevel({name: known[name] for name in by_id.values()}, unk_token=names[WORD]))
    whole.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "isolated")
    whole.decoder = decoders.Fuse()
    if frame != "$A":
        parts = [names.get(part, part) for part in frame.split()]
        whole.post_processor = processors.TemplateProcessing(
            single=" ".join(parts), special_tokens=[(part, known[part]) for part in parts if part != "$A"]
        )
    given = {"image_token": image} if image else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token=names["<start>"],
        eos_token=names["<end>"],
        pad_token=names["<pad>"],
        unk_token=names[WORD],
        extra_special_tokens=given,
    )
    others = [name for name in extra if name != image and name == names[name]]
    tokenizer.add_special_tokens({"additional_special_tokens": others} if others else {})
    return tokenizer


def _id(configuration: PreTrainedConfig, name: str, otherwise: int) -> int:
    value = getattr(configuration, name, None)
    if isinstance(value, list):
        value = value[0]
    return value if isinstance(value, int) else otherwise


def _square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def _llava(configuration: PreTrainedConfig) -> ProcessorMixin:
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision = configuration.vision_config
    side = vision.image_size
    return transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=_square(side)),
        tokenizer=_tokenizer(
            configuration, {"<image>": configuration.image_token_index}, frame="<start> $A", image="<image>"
        ),
        patch_size=vision.patch_size,
        vision_feature_select_strategy=configuration.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=_template("{{ message['role'] | upper }}: ", "<image>\n", " ", "ASSISTANT:"),
    )


def _llava_next(configuration: PreTrainedConfig) -> ProcessorMixin:
    import transformers
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    vision = configuration.vision_config
    side = vision.image_size
    return transformers.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size=_square(side),
            image_grid_pinpoints=configuration.image_grid_pinpoints,
        ),
        tokenizer=_tokenizer(
            configuration, {"<image>": configuration.image_token_index}, frame="<start> $A", image="<image>"
        ),
        patch_size=vision.patch_size,
        vision_feature_select_strategy=configuration.vision_feature_select_strategy,
        num_additional_image_tokens=1,
        chat_template=_template("[INST] ", "<image>\n", " [/INST]", ""),
    )


def _qwen2_vl(configuration: PreTrainedConfig) -> ProcessorMixin:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = configuration.vision_config
    places = {
        "<|vision_start|>": configuration.vision_start_token_id,
        "<|vision_end|>": configuration.vision_end_token_id,
        "<|video_pad|>": configuration.video_token_id,
        "<|image_pad|>": configuration.image_token_id,
    }
    # The limits of the published processor: from 2 x 2 to 128 x 128 merged patches.
    unit = (vision.patch_size * vision.spatial_merge_size) ** 2
    return without_video(transformers.Qwen2VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            min_pixels=4 * unit,
            max_pixels=16384 * unit,
        ),
        tokenizer=_tokenizer(configuration, places, image="<|image_pad|>"),
        chat_template=_template(
            "<|s|>{{ message['role'] }}\n", "<|vision_start|><|image_pad|><|vision_end|>", "<|e|>\n", "<|s|>assistant\n"
        ),
    )


def _mllama(configuration: PreTrainedConfig) -> ProcessorMixin:
    import transformers
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    vision = configuration.vision_config
    image = {
        "<|image|>": configuration.image_token_index,
        "<|python_tag|>": max(3, configuration.image_token_index - 246),
    }
    return transformers.MllamaProcessor(
        image_processor=MllamaImageProcessorPil(size=_square(vision.image_size), max_image_tiles=vision.max_num_tiles),
        tokenizer=_tokenizer(configuration, image, frame="<start> $A", image="<|image|>"),
        chat_template=_template("<|h|>{{ message['role'] }}<|h|>\n\n", "<|image|>", "<|h|>", "<|h|>assistant<|h|>\n\n"),
    )


def _blip(configuration: PreTrainedConfig) -> ProcessorMixin:
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    separator = _id(configuration.text_config, "sep_token_id", 102)
    return transformers.BlipProcessor(
        image_processor=BlipImageProcessorPil(size=_square(configuration.vision_config.image_size)),
        tokenizer=_tokenizer(configuration, {"[SEP]": separator}, frame="<start> $A [SEP]"),
    )


def _blip2(configuration: PreTrainedConfig) -> ProcessorMixin:
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return transformers.Blip2Processor(
        image_processor=BlipImageProcessorPil(size=_square(configuration.vision_config.image_size)),
        tokenizer=_tokenizer(configuration, {"<image>": configuration.image_token_index}, frame="<start> $A"),
        num_query_tokens=configuration.num_query_tokens,
    )


def _vision_decoder(configuration: PreTrainedConfig) -> ProcessorMixin:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    images: Any = ViTImageProcessorPil(size=_square(configuration.encoder.image_size))
    return ImageAndText(images, _tokenizer(configuration, {}))


_MAKERS: Mapping[str, Callable[[PreTrainedConfig], ProcessorMixin]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen2_vl,
    "mllama": _mllama,
    "blip": _blip,
    "blip-2": _blip2,
    "vision-encoder-decoder": _vision_decoder,
}
