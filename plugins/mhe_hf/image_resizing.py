"""Resizing a picture as it is, where an image processor would copy all its pixels back and forth first.

transformers' processors on Pillow turn a picture into an array, the array into a picture to resize it, and that into
an array again. Resized before, by the same call of Pillow, it comes out the same to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import PIL.Image

OWN_STEPS = (
    "__call__",
    "preprocess",
    "_preprocess_image_like_inputs",
    "_prepare_image_like_inputs",
    "_preprocess",
    "process_image",
    "resize",
)
"""A class that does one of them in its own way is left to do so."""
PLAIN_ARGUMENTS = frozenset({"return_tensors", "do_convert_rgb"})


def resized_before(
    processor: object, picture: PIL.Image.Image, arguments: Mapping[str, object]
) -> PIL.Image.Image | None:
    """The RGB picture as the processor, called with these arguments, would resize it; None where that is not known."""
    from transformers.image_processing_backends import PilBackend

    if not isinstance(processor, PilBackend) or picture.mode != "RGB" or set(arguments) - PLAIN_ARGUMENTS:
        return None
    if any(getattr(type(processor), step) is not getattr(PilBackend, step) for step in OWN_STEPS):
        return None
    # Attributes that transformers' classes have and its types lack.
    wanted, resample, is_resized = (getattr(processor, name) for name in ("size", "resample", "do_resize"))
    size = size_after(dict(wanted or {}), picture.size)
    if is_resized is not True or not isinstance(resample, int) or size is None:
        return None
    return picture.resize(size, resample=resample)


def size_after(wanted: Mapping[str, int], size: tuple[int, int]) -> tuple[int, int] | None:
    """Width and height that a picture of that width and height is given; None for a rule that is not known here."""
    import numpy as np
    from transformers.image_transforms import get_resize_output_image_size
    from transformers.image_utils import ChannelDimension

    if wanted.keys() == {"height", "width"}:
        return wanted["width"], wanted["height"]
    if wanted.keys() != {"shortest_edge"}:
        return None
    # It looks at the shape alone.
    pixels = np.broadcast_to(np.uint8(0), (3, size[1], size[0]))
    height, width = get_resize_output_image_size(
        pixels, wanted["shortest_edge"], default_to_square=False, input_data_format=ChannelDimension.FIRST
    )
    return width, height
