"""From a model's place to its processor: tokenizer, image processor and, where the family has one, chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer, PreTrainedConfig
from transformers.processing_utils import ProcessorMixin
from transformers.utils.hub import cached_file
from transformers.utils.import_utils import is_torchvision_available

if TYPE_CHECKING:
    from collections.abc import Mapping

VIDEO = "video_processor"


class ImageAndText(ProcessorMixin):
    """Image processor and tokenizer of a model that is published with the two side by side and nothing around them."""

    def __init__(self, image_processor: object, tokenizer: object) -> None:
        super().__init__(image_processor, tokenizer)  # type: ignore[no-untyped-call]

    def save_pretrained(self, save_directory: str | Path, **_: object) -> None:  # type: ignore[override]
        """Write each as it was found, so that plain transformers reads them."""
        self.image_processor.save_pretrained(save_directory)
        self.tokenizer.save_pretrained(save_directory)


def without_video(processor_class: type[ProcessorMixin]) -> type[ProcessorMixin]:
    """The class without its video part, which needs torchvision; the image part works with PIL.

    A processor of it saves under the original's name, with the settings of the video part where they are known.
    """

    class ImagesOnly(processor_class):  # type: ignore[misc, valid-type]
        video_settings: Mapping[str, object] | None = None

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name != VIDEO]

        def to_dict(self) -> dict[str, Any]:
            settings: dict[str, Any] = super().to_dict()
            return {**settings, VIDEO: dict(self.video_settings)} if self.video_settings else settings

    ImagesOnly.__name__ = ImagesOnly.__qualname__ = processor_class.__name__
    return ImagesOnly


def open_processor(
    source: str, configuration: PreTrainedConfig, image_backend: str, arguments: Mapping[str, Any]
) -> object:
    """The processor under `source`, with the image processor of the library `image_backend`.

    What comes back is whatever transformers finds there; it may be a tokenizer or image processor alone. Raises what
    transformers raises.
    """
    if configuration.model_type == "vision-encoder-decoder":
        return pair_processor(source, source, image_backend, arguments)
    processor: Any
    class_with_video = _class_with_video(configuration)
    settings = None if class_with_video is None else _video_settings(source, _without_trust(arguments))
    if class_with_video is None or (settings is not None and is_torchvision_available()):
        processor = AutoProcessor.from_pretrained(source, **arguments)
    else:
        # There is no torchvision to run the video part, or the model came without one.
        processor = without_video(class_with_video).from_pretrained(source, **_without_trust(arguments))
        processor.video_settings = settings
    if isinstance(processor, ProcessorMixin) and hasattr(processor, "image_processor"):
        processor.image_processor = AutoImageProcessor.from_pretrained(source, backend=image_backend, **arguments)
    return processor


def pair_processor(
    image_source: str, text_source: str, image_backend: str, arguments: Mapping[str, Any]
) -> ImageAndText:
    """The image processor of one place and the tokenizer of another (or the same)."""
    return ImageAndText(
        AutoImageProcessor.from_pretrained(image_source, backend=image_backend, **arguments),
        AutoTokenizer.from_pretrained(text_source, **arguments),
    )


def _class_with_video(configuration: PreTrainedConfig) -> type[ProcessorMixin] | None:
    """The class of the model's processor, where it has a video part."""
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    if type(configuration) not in PROCESSOR_MAPPING:
        return None
    known: Any = PROCESSOR_MAPPING[type(configuration)]
    return known if VIDEO in known.get_attributes() else None


def _video_settings(source: str, arguments: Mapping[str, Any]) -> Mapping[str, object] | None:
    """The published settings of the video part, so that a copy of the processor has them too."""
    whole = _json(source, "processor_config.json", arguments)
    if isinstance(whole.get(VIDEO), dict):
        return dict(whole[VIDEO])
    own = _json(source, "video_preprocessor_config.json", arguments)
    if own:
        return own
    # Older checkpoints have one file for images and video; the class follows from the image processor's name.
    shared = _json(source, "preprocessor_config.json", arguments)
    kind = str(shared.pop("image_processor_type", ""))
    return {**shared, "video_processor_type": kind.replace("Image", "Video")} if kind else None


def _json(source: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **arguments,
    )
    content = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    return content if isinstance(content, dict) else {}


def _without_trust(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name != "trust_remote_code"}
