"""Text encoders for metrics: found by folder or hub name, known by their content, one vector a token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhe import MetricUnavailableError, ModelUnusableError, fingerprint_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LEFT_OUT = ("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
UNLIMITED = 1_000_000
"""Tokenizers without a limit of their own claim one of about 1e30."""


def find_encoder(name: str, revision: str | None = None) -> Path:
    """The folder of an encoder: `name` itself, or the hub's copy in the local cache, downloaded where it may be.

    Raises `MetricUnavailableError` where there is none.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise MetricUnavailableError(f"encoder {name!r} is neither a folder nor a hub name of the form owner/name")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MetricUnavailableError(f"encoder {name!r} needs transformers; pip install 'mhe[hf]'") from None
    texts = ["*.json", "*.txt", "*.model"]
    try:
        found = Path(snapshot_download(name, revision=revision, allow_patterns=[*texts, "*.safetensors"]))
        if not any(found.glob("*.safetensors")):
            found = Path(snapshot_download(name, revision=revision, allow_patterns=[*texts, "pytorch_model*.bin"]))
    except Exception as error:  # the hub's client raises errors of several libraries
        told = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise MetricUnavailableError(
            f"encoder {name!r} cannot be had from the hub ({told}); give the folder of a copy"
        ) from error
    return found


def first_device() -> str:
    """The first GPU that torch sees, else the processor."""
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def encoder_digest(folder: Path) -> str:
    """Hex SHA-256 over weights, configuration and tokenizer. Raises `MetricUnavailableError` where there are none."""
    try:
        return fingerprint_folder(folder).digest
    except ModelUnusableError as error:
        raise MetricUnavailableError(f"the encoder cannot be used: {error}") from error


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """One text under the encoder."""

    tokens: tuple[int, ...]
    """Token numbers, special ones included."""
    vectors: torch.Tensor
    """Shape (tokens, width), each of length 1, float32, on the encoder's device."""


class Encoder:
    """A text encoder's tokens and the vectors of one of its layers."""

    def __init__(self, folder: Path, *, layer: int | None, device: str) -> None:
        """Load from `folder`; `layer` counts from 1, None is the last. Raises `MetricUnavailableError`."""
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer, GPT2Tokenizer, RobertaTokenizer
        except ImportError:
            raise MetricUnavailableError("an encoder needs torch and transformers; pip install 'mhe[hf]'") from None
        try:
            self._tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
            model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        except Exception as error:  # a damaged folder fails in many ways
            raise MetricUnavailableError(
                f"the encoder in {folder} cannot be loaded ({type(error).__name__}: {error})"
            ) from error
        if model.config.is_encoder_decoder:
            raise MetricUnavailableError(f"{folder} has a decoder ({model.config.model_type}); give a text encoder")
        self._model: PreTrainedModel = _cut(model, layer, folder).eval().to(device)
        self._device = device
        # Byte-level tokenizers read a first word as another one where no blank stands before it.
        self._prefix = " " if isinstance(self._tokenizer, (GPT2Tokenizer, RobertaTokenizer)) else ""
        self.most_tokens = _most_tokens(self._tokenizer, model)
        self.unweighted = frozenset(
            number for name in LEFT_OUT[:2] if (number := getattr(self._tokenizer, name)) is not None
        )
        """The tokens that open and close a text: matched, but of no weight."""
        self._special = frozenset(getattr(self._tokenizer, name) for name in LEFT_OUT)

    def tokens(self, text: str) -> tuple[int, ...]:
        """Token numbers with the special ones, cut at `most_tokens`; empty where a text has no other token."""
        text = text.strip()
        if not text:
            return ()
        found = tuple(self._tokenizer.encode(self._prefix + text, **self._cut_at()))
        return found if any(number not in self._special for number in found) else ()

    def plain_weights(self, tokens: Sequence[int]) -> tuple[float, ...]:
        """1 for every token but those that open and close a text, which weigh 0."""
        return tuple(0.0 if number in self.unweighted else 1.0 for number in tokens)

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where each of `tokens(text)` stands in `text`: start and end in characters, blanks at its ends left out.

        Equal numbers for a token that stands nowhere, as special ones do. Raises `MetricUnavailableError` for a
        tokenizer that does not tell.
        """
        if not self._tokenizer.is_fast:
            raise MetricUnavailableError(
                f"the encoder's tokenizer ({type(self._tokenizer).__name__}) does not tell where its tokens stand in a "
                "text: choose an encoder with a fast one (tokenizer.json)"
            )
        if not self.tokens(text):
            return []
        stripped = text.strip()
        found = self._tokenizer(self._prefix + stripped, return_offsets_mapping=True, **self._cut_at())
        shift = len(text) - len(text.lstrip()) - len(self._prefix)
        return [_trimmed(text, max(start + shift, 0), max(end + shift, 0)) for start, end in found["offset_mapping"]]

    def _cut_at(self) -> dict[str, Any]:
        return {"truncation": True, "max_length": self.most_tokens} if self.most_tokens else {"truncation": False}

    def vectors(self, texts: Sequence[tuple[int, ...]]) -> list[TokenVectors]:
        """The vectors of tokenised texts, none of them empty, in one batch and in the same order."""
        import torch

        longest = max(len(tokens) for tokens in texts)
        pad = self._tokenizer.pad_token_id or 0
        numbers = torch.tensor([[*tokens, *[pad] * (longest - len(tokens))] for tokens in texts], device=self._device)
        mask = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t in texts], device=self._device)
        with torch.inference_mode():
            states = self._model(input_ids=numbers, attention_mask=mask)[0]
            states = torch.nn.functional.normalize(states, dim=-1)
        return [TokenVectors(tokens, row[: len(tokens)]) for tokens, row in zip(texts, states, strict=True)]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Byte-level tokenizers count the blank before a word as its own."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _cut(model: PreTrainedModel, layer: int | None, folder: Path) -> PreTrainedModel:
    """The model without the layers above `layer`, so that its output is that layer's."""
    if layer is None:
        return model
    # Attributes of the architectures differ, and none of them is declared.
    inside: Any = model
    stack: Any = getattr(inside, "encoder", None) or getattr(inside, "transformer", None)
    layers = getattr(stack, "layer", None)
    if layers is None:
        raise MetricUnavailableError(
            f"the layers of a {model.config.model_type} model cannot be chosen; leave out metrics.bertscore.layer"
        )
    if layer > len(layers):
        raise MetricUnavailableError(f"layer {layer} is asked for, but {folder} has {len(layers)}")
    stack.layer = layers[:layer]
    return model


def _most_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> int | None:
    """The most tokens that both tokenizer and model allow; None where neither sets a limit."""
    limits = [tokenizer.model_max_length] if tokenizer.model_max_length < UNLIMITED else []
    if positions := getattr(model.config, "max_position_embeddings", None):
        # RoBERTa's positions begin after the padding's.
        embeddings: Any = getattr(model, "embeddings", None)
        padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        limits.append(positions - (0 if padding is None else padding + 1))
    return min(limits, default=None)
