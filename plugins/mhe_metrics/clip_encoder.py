"""A CLIP checkpoint as two functions: texts to vectors of length 1, images to vectors of length 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mhe import MetricUnavailableError, SampleDataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import PIL.Image
    import torch
    from numpy.typing import NDArray
    from transformers import CLIPModel, PreTrainedTokenizerBase
    from transformers.image_processing_utils import BaseImageProcessor

    Vectors = NDArray[np.float32]

HIGHEST = 2
"""An `eos_token_id` of 2 is an old mistake in published configurations: transformers then takes the highest token."""


class ClipEncoder:
    """Both towers, tokenizer and image processor of one checkpoint, in float32."""

    def __init__(self, folder: Path, *, device: str) -> None:
        """Load from `folder`. Raises `MetricUnavailableError` for what is no whole CLIP."""
        try:
            import transformers
        except ImportError:
            raise MetricUnavailableError("CLIP needs torch and transformers; pip install 'mhe[hf]'") from None
        try:
            config = transformers.AutoConfig.from_pretrained(folder)
        except Exception as error:  # a damaged folder fails in many ways
            raise _unusable(folder, error) from error
        if config.model_type != "clip":
            raise MetricUnavailableError(f"{folder} holds a model of type {config.model_type}; CLIPScore takes a CLIP")
        self._tokenizer: PreTrainedTokenizerBase
        self._processor: BaseImageProcessor
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            self._processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
            model, missing = _load_model(folder)
        except Exception as error:
            raise _unusable(folder, error) from error
        if missing:
            # transformers would fill them at random and go on.
            raise MetricUnavailableError(
                f"the weights in {folder} are not whole: {len(missing)} are missing, such as {missing[0]}"
            )
        self._model: Any = model.eval().to(device)
        self._device = device
        self._size = int(config.vision_config.image_size)
        self.most_tokens = min(self._tokenizer.model_max_length, config.text_config.max_position_embeddings)
        """Longer texts are cut here, their end token kept: 77 in every published CLIP."""
        self.variant = f"transformers {transformers.__version__}, {device.partition(':')[0]}"
        """What may move a feature's last digits."""
        self._check_end(folder, int(config.text_config.eos_token_id))

    def _check_end(self, folder: Path, end: int) -> None:
        """A text's vector is read at its end token. Where model and tokenizer disagree, all texts look alike."""
        tokens = self.tokens("a")
        read_at = max(tokens) if end == HIGHEST else end
        if tokens[-1] != read_at:
            raise MetricUnavailableError(
                f"tokenizer and model in {folder} do not belong together: texts end in token {tokens[-1]}, "
                f"the model reads them at token {read_at}"
            )

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token numbers with the first and the end token, cut at `most_tokens`."""
        return tuple(self._tokenizer(text, truncation=True, max_length=self.most_tokens)["input_ids"])

    def encode_texts(self, texts: Sequence[tuple[int, ...]]) -> Vectors:
        """Shape (texts, width), rows of length 1. Raises `MetricUnavailableError` where they are not finite."""
        import torch

        longest = max(len(tokens) for tokens in texts)
        ids = torch.full((len(texts), longest), texts[0][-1])
        mask = torch.zeros((len(texts), longest), dtype=torch.long)
        for row, tokens in enumerate(texts):
            # On the right and by the end token, the first of which is read: padding cannot reach a vector.
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        with torch.inference_mode():
            hidden = self._model.text_model(
                input_ids=ids.to(self._device), attention_mask=mask.to(self._device)
            ).pooler_output
            return _unit(self._model.text_projection(hidden))

    def pixels(self, picture: PIL.Image.Image) -> torch.Tensor:
        """An RGB picture as the checkpoint's own image processor gives it; shape (3, size, size).

        Raises `SampleDataError` for one that it cannot take, `MetricUnavailableError` where it does not fit the model.
        """
        try:
            found: torch.Tensor = self._processor(images=[picture], return_tensors="pt")["pixel_values"][0]
        except (ValueError, MemoryError) as error:
            raise SampleDataError(f"the image processor refuses it ({error})") from None
        if tuple(found.shape) != (3, self._size, self._size):
            raise MetricUnavailableError(
                f"the encoder's image processor makes images of shape {tuple(found.shape)}, its model takes "
                f"{(3, self._size, self._size)}: preprocessor_config.json does not belong to it"
            )
        return found

    def encode_images(self, pixels: Sequence[torch.Tensor]) -> Vectors:
        """Shape (images, width), rows of length 1. Raises `MetricUnavailableError` where they are not finite."""
        import torch

        with torch.inference_mode():
            hidden = self._model.vision_model(pixel_values=torch.stack(list(pixels)).to(self._device)).pooler_output
            return _unit(self._model.visual_projection(hidden))


def _load_model(folder: Path) -> tuple[CLIPModel, list[str]]:
    import torch
    from transformers import CLIPModel
    from transformers.utils import logging

    was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        loaded: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    finally:
        if was_on:
            logging.enable_progress_bar()
    model, told = loaded
    return model, sorted(told["missing_keys"])


def _unusable(folder: Path, error: Exception) -> MetricUnavailableError:
    return MetricUnavailableError(f"the encoder in {folder} cannot be loaded ({type(error).__name__}: {error})")


def _unit(vectors: torch.Tensor) -> Vectors:
    lengths = vectors.norm(dim=-1, keepdim=True)
    found = vectors / lengths
    if not bool(found.isfinite().all()):
        raise MetricUnavailableError("the encoder gives vectors that are not finite: its weights are damaged")
    array: Vectors = found.float().cpu().numpy()
    return array
