"""An image processor that works once on each distinct image, though many questions share it.

It stands in a processor for the processor's own and is handed pictures that carry a key. Features of single images
are kept and laid side by side; where a family's features do not stack (tiles padded to the longest in the batch),
the own image processor gets the whole batch, as ever.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from mhe_hf.image_resizing import resized_before

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    import PIL.Image
    import torch
    from transformers import BatchFeature, ProcessorMixin

KEY = "mhe_key"
Feature = dict[str, object]


class ImageCache:
    """Features by image key, the longest unused forgotten first beyond `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._entries: OrderedDict[Hashable, tuple[Feature, tuple[int, int], int]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[Feature, tuple[int, int]] | None:
        """The features of an image and its size in pixels."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        feature, size, _ = self._entries[key]
        return feature, size

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._held = 0

    def put(self, key: Hashable, feature: Feature, size: tuple[int, int]) -> None:
        """Keep them."""
        needed = sum(v.numel() * v.element_size() for v in feature.values() if _is_tensor(v))  # type: ignore[attr-defined]
        if key in self._entries or needed > self._limit:
            return
        self._entries[key] = (feature, size, needed)
        self._held += needed
        while self._held > self._limit:
            self._held -= self._entries.popitem(last=False)[1][2]


class CachingImageProcessor:
    """Has every attribute of the image processor that it stands for."""

    def __init__(
        self,
        own: object,
        cache: ImageCache,
        reopen: Callable[[Hashable], PIL.Image.Image],
        run: Callable[..., Iterable[Any]] = map,
    ) -> None:
        """`run` is `map` or does the same in several threads."""
        self._own = own
        self._cache = cache
        self._reopen = reopen
        self._run = run
        self.stacks = True
        self.batch: dict[Hashable, Feature] = {}

    def __getattr__(self, name: str) -> object:
        return getattr(self._own, name)

    def __call__(self, images: object, *args: object, **kwargs: object) -> BatchFeature:
        """Features of the images, in order, as the own image processor gives them."""
        units = images if isinstance(images, list | tuple) else [images]
        keys = [_key_of(unit) for unit in units]
        if self.stacks and not args and kwargs.get("return_tensors") == "pt" and None not in keys:
            self._learn(dict(zip(keys, units, strict=True)), kwargs)
            features = [self.batch[key] for key in keys]
            stacked = stack(features)
            if stacked is not None:
                return stacked
            self.stacks = False
        return self._own([self._with_pixels(unit) for unit in units], *args, **kwargs)  # type: ignore[operator, no-any-return]

    def _learn(self, units: Mapping[Hashable, object], kwargs: Mapping[str, object]) -> None:
        """Have the features of all units in `batch`, each worked out once."""
        missing = []
        for key in units:
            if key in self.batch:
                continue
            kept = self._cache.get(key)
            if kept is None:
                missing.append(key)
            else:
                self.batch[key] = kept[0]
        for key, feature in zip(missing, self._run(lambda key: self._alone(units[key], kwargs), missing), strict=True):
            self.batch[key] = feature
            self._cache.put(key, feature, _size_of(units[key]))

    def _alone(self, unit: object, kwargs: Mapping[str, object]) -> Feature:
        shown = self._with_pixels(unit)
        picture: Any = shown[0] if isinstance(shown, list) and len(shown) == 1 else shown
        if getattr(picture, "mode", None) == "RGB":
            if getattr(self._own, "do_convert_rgb", None) is True:
                # Converting RGB to RGB copies every pixel, of images that are far larger than what is made of them.
                kwargs = {"do_convert_rgb": False, **kwargs}
            resized = resized_before(self._own, picture, kwargs)
            if resized is not None:
                shown, kwargs = resized, {"do_resize": False, **kwargs}
        return dict(self._own([shown], **kwargs))  # type: ignore[operator]

    def _with_pixels(self, unit: object) -> object:
        if isinstance(unit, list | tuple):
            return [self._with_pixels(item) for item in unit]
        info = unit.info  # type: ignore[attr-defined]
        return self._reopen(info[KEY]) if info.get("mhe_empty") else unit


def placeholder(key: Hashable, size: tuple[int, int]) -> PIL.Image.Image:
    """A picture of that size without content, for an image whose features are kept."""
    import PIL.Image

    picture = PIL.Image.new("RGB", size, None)
    picture.info.update({KEY: key, "mhe_empty": True})
    return picture


def with_image_processor(processor: ProcessorMixin, image_processor: object) -> ProcessorMixin:
    """A shallow copy of the processor that uses another image processor; the given one stays as it is."""
    twin = copy.copy(processor)
    twin.image_processor = image_processor
    return twin


def stack(features: Sequence[Feature]) -> BatchFeature | None:
    """One batch of several images' features, or None where their shapes differ beyond the first dimension."""
    import torch
    from transformers import BatchFeature

    data: dict[str, object] = {}
    for name, first in features[0].items():
        values = [feature.get(name) for feature in features]
        if _is_tensor(first):
            tensors: list[torch.Tensor] = [value for value in values if isinstance(value, torch.Tensor)]
            if len(tensors) < len(values) or len({(t.shape[1:], t.dtype) for t in tensors}) > 1:
                return None
            data[name] = torch.cat(tensors)
        elif isinstance(first, list):
            lists = [value for value in values if isinstance(value, list)]
            data[name] = [item for value in lists for item in value]
        else:
            return None
    return BatchFeature(data)


def _is_tensor(value: object) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.ndim > 0


def _key_of(unit: object) -> Hashable | None:
    if isinstance(unit, list | tuple):
        keys = tuple(_key_of(item) for item in unit)
        if not keys or None in keys:
            return None
        return keys[0] if len(keys) == 1 else keys
    key: Hashable | None = getattr(unit, "info", {}).get(KEY)
    return key


def _size_of(unit: object) -> tuple[int, int]:
    while isinstance(unit, list | tuple):
        unit = unit[0]
    width, height = unit.size  # type: ignore[attr-defined]
    return int(width), int(height)
