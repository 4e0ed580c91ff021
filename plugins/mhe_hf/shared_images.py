"""Questions about one image in a batch: the image, and the prompt up to its end, go through the model once.

What follows the image is each row's own. The rows of a batch are laid out anew: the part that is shared, padding, the
rest. Keys and values of the shared part are worked out once for each image and copied to its rows, as prefix caching
does in a server (Kwon et al. 2023, section 4.4). Sums run in another order than without, so that scores differ in
their last bits, as they do from one batch to another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedModel

CLASSES = frozenset({"transformers.models.llava.modeling_llava.LlavaForConditionalGeneration"})
"""Model classes whose images stand in the prompt, in one row of `pixel_values` each, and whose positions follow from
the attention mask alone. A class that wraps or changes one of them (an adapter, a pruned model) is not one of them."""
ATTENTIONS = frozenset({"sdpa", "eager"})
"""Implementations that read any mask; recipes put keys of their own before others."""
PLAIN_INPUTS = frozenset({"input_ids", "attention_mask", "pixel_values"})


@dataclass(frozen=True, slots=True)
class _Layout:
    """Rows whose prompts begin alike."""

    starts: list[int]
    """Where each row's padding ends."""
    shared: int
    """Tokens up to the image's end."""
    firsts: list[int]
    """The row that each distinct image is taken from."""
    places: list[int]
    """For each row, the place of its image among these."""


def with_shared_images(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], same_image: Sequence[int]
) -> Mapping[str, object]:
    """What `generate` is given in place of `inputs` (padded left, on the model's device), of the same width.

    `same_image` names for each row the first row that shows the same one image; it is empty where rows show none or
    several. The inputs come back as they are where nothing can be shared: another class of model, no image twice,
    prompts that do not begin alike.
    """
    layout = _layout(model, inputs, same_image)
    if layout is None:
        return inputs
    cache = _encode_shared(model, inputs, layout)
    if cache is None:
        return inputs
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    place = torch.arange(ids.shape[1], device=ids.device)
    padding = torch.tensor(layout.starts, device=ids.device)[:, None]
    # Where the token of each place comes from: the shared part, then the row's padding, then its rest.
    source = torch.where(
        place < layout.shared,
        place + padding,
        torch.where(place < layout.shared + padding, place - layout.shared, place),
    )
    return {"input_ids": ids.gather(1, source), "attention_mask": mask.gather(1, source), "past_key_values": cache}


def _layout(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], same_image: Sequence[int]) -> _Layout | None:
    if len(set(same_image)) == len(same_image) or not _can_share(model) or set(inputs) != PLAIN_INPUTS:
        return None
    ids, mask, pixels = (inputs[name] for name in ("input_ids", "attention_mask", "pixel_values"))
    if len(pixels) != len(ids):
        return None
    starts = (ids.shape[1] - mask.sum(dim=1)).tolist()
    is_image = ids == model.config.image_token_id
    if not bool(is_image.any(dim=1).all()):
        return None
    # The last image token of each row, counted from where its padding ends.
    ends = (ids.shape[1] - is_image.flip(1).int().argmax(dim=1)).tolist()
    shared = ends[0] - starts[0]
    beginnings = [ids[row, start : start + shared] for row, start in enumerate(starts)]
    is_alike = all(end - start == shared for start, end in zip(starts, ends, strict=True))
    # A row of nothing but the shared part has no token left to go on from.
    has_rest = max(ends) < ids.shape[1]
    if not (is_alike and has_rest and all(torch.equal(beginnings[0], other) for other in beginnings)):
        return None
    firsts = sorted(set(same_image))
    return _Layout(starts, shared, firsts, [firsts.index(row) for row in same_image])


def _can_share(model: PreTrainedModel) -> bool:
    name = f"{type(model).__module__}.{type(model).__name__}"
    return name in CLASSES and model.config.get_text_config()._attn_implementation in ATTENTIONS


def _encode_shared(model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], layout: _Layout) -> DynamicCache | None:
    """Keys and values of the shared part, a row of them for each row; None from a model that keeps them otherwise."""
    start = layout.starts[0]
    alike = inputs["input_ids"][0, start : start + layout.shared].expand(len(layout.firsts), -1)
    output = model(
        input_ids=alike,
        attention_mask=torch.ones_like(alike),
        pixel_values=inputs["pixel_values"][layout.firsts],
        use_cache=True,
        logits_to_keep=1,
    )
    cache = output.past_key_values
    if not isinstance(cache, DynamicCache) or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    cache.batch_select_indices(torch.tensor(layout.places, device=alike.device))
    return cache
