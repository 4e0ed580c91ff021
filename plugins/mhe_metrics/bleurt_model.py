"""BLEURT checkpoints in transformers' format: which there are, how they are read, and one score a pair of texts.

Two layouts are known. A BERT (or RemBERT) for sequence classification with one label, as `Elron/bleurt-large-512`, is
loaded as it is. One of `model_type: bleurt`, as `lucadiliello/BLEURT-20`, is of a class outside transformers; its
layers are BERT's, or RemBERT's where its embeddings are narrower than its layers, under other names, so that its
weights are loaded into those, every one of them or none. Its texts are cut into pieces by SentencePiece as Google's
program does it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mhe import MetricUnavailableError
from mhe_metrics.encoders import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from transformers import PreTrainedModel

    Tokens = tuple[int, ...]

INSTALL = "pip install 'mhe[hf]'"
PIECES = "spm.model"
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SPECIAL = 3
"""Tokens that open, part and close a pair."""


class Tokenizer(Protocol):
    """A text's tokens without special ones, and the numbers of those."""

    opening: int
    closing: int
    most_tokens: int | None

    def tokens(self, text: str) -> list[int]:
        """Token numbers; none for an empty text."""
        ...


class BleurtModel:
    """A checkpoint in memory."""

    def __init__(self, folder: Path, *, most_tokens: int, device: str) -> None:
        """Load from `folder`; a pair is cut at `most_tokens`, or at what the model allows if that is fewer.

        Raises `MetricUnavailableError` for what is no BLEURT checkpoint, or cannot be loaded whole.
        """
        try:
            import torch  # noqa: F401 - found missing here, and not half-way
            import transformers  # noqa: F401
        except ImportError:
            raise MetricUnavailableError(f"BLEURT needs torch and transformers: {INSTALL}") from None
        config = _read_config(folder)
        try:
            model = _load_own(folder, config) if config.get("model_type") == "bleurt" else _load_plain(folder)
            self._tokenizer = _load_tokenizer(folder)
        except MetricUnavailableError:
            raise
        except Exception as error:  # a damaged folder fails in many ways
            raise MetricUnavailableError(
                f"the BLEURT checkpoint in {folder} cannot be loaded ({type(error).__name__}: {error})"
            ) from error
        self._model: Any = model.float().eval()
        self._model.to(device)
        self._device = device
        limits = (most_tokens, model.config.max_position_embeddings, self._tokenizer.most_tokens)
        self.most_tokens = min(limit for limit in limits if limit is not None)

    def tokens(self, text: str) -> Tokens:
        """The tokens of one text, as many as can count."""
        return tuple(self._tokenizer.tokens(text)[: self.most_tokens])

    def scores(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> list[float]:
        """One score for each pair of reference and answer, in one batch: `[CLS] reference [SEP] answer [SEP]`."""
        import torch

        rows, segments = [], []
        for reference, answer in pairs:
            kept = cut_pair(reference, answer, self.most_tokens - SPECIAL)
            first = [self._tokenizer.opening, *kept[0], self._tokenizer.closing]
            second = [*kept[1], self._tokenizer.closing]
            rows.append(first + second)
            segments.append([0] * len(first) + [1] * len(second))
        longest = max(len(row) for row in rows)
        with torch.inference_mode():
            logits = self._model(
                input_ids=self._padded(rows, longest),
                token_type_ids=self._padded(segments, longest),
                attention_mask=self._padded([[1] * len(row) for row in rows], longest),
            ).logits
        found: list[float] = logits.squeeze(-1).double().tolist()
        return found

    def _padded(self, rows: Sequence[Sequence[int]], longest: int) -> torch.Tensor:
        import torch

        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=self._device)


def cut_pair(reference: Tokens, answer: Tokens, room: int) -> tuple[Tokens, Tokens]:
    """Both texts without the tokens that do not fit: the longer loses its last, at equal length the answer.

    Source: `_truncate_seq_pair` of google-research/bleurt.
    """
    over = max(0, len(reference) + len(answer) - room)
    longer = min(over, abs(len(reference) - len(answer)))
    kept_reference, kept_answer = len(reference), len(answer)
    if kept_reference > kept_answer:
        kept_reference -= longer
    else:
        kept_answer -= longer
    # From equal lengths on they take turns, the answer first.
    rest = over - longer
    return reference[: kept_reference - rest // 2], answer[: kept_answer - (rest + 1) // 2]


def _read_config(folder: Path) -> Mapping[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MetricUnavailableError(f"{folder} has no readable config.json ({error})") from None
    if not isinstance(config, dict) or config.get("model_type") not in ("bert", "rembert", "bleurt"):
        kind = config.get("model_type") if isinstance(config, dict) else None
        raise MetricUnavailableError(f"{folder} is no BLEURT checkpoint: model_type is {kind!r}, not bert or bleurt")
    return config


def _load_plain(folder: Path) -> PreTrainedModel:
    from transformers import AutoModelForSequenceClassification

    model, told = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    _check_whole(folder, told["missing_keys"], told["unexpected_keys"])
    if model.config.num_labels != 1:
        raise MetricUnavailableError(f"{folder} has {model.config.num_labels} labels, where BLEURT has one score")
    return model  # type: ignore[no-any-return]


def _load_own(folder: Path, config: Mapping[str, Any]) -> PreTrainedModel:
    from transformers import BertConfig, BertForSequenceClassification, RemBertConfig, RemBertForSequenceClassification

    if absent := [name for name in NEEDED if not isinstance(config.get(name), int)]:
        raise MetricUnavailableError(f"config.json of {folder} lacks {', '.join(absent)}")
    sizes = {name: config[name] for name in NEEDED}
    sizes |= {
        "hidden_act": config.get("hidden_act", "gelu"),
        "max_position_embeddings": config.get("max_position_embeddings", 512),
        "type_vocab_size": config.get("type_vocab_size", 2),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
        "num_labels": 1,
    }
    width = config.get("embedding_size")
    model: PreTrainedModel
    if width is None:
        inner, model = "bert", BertForSequenceClassification(BertConfig(**sizes))
    else:
        # RemBERT's usual numbers of two tokens that are not used here need not lie inside the vocabulary.
        unused = {"output_embedding_size": width, "bos_token_id": None, "eos_token_id": None}
        own = RemBertConfig(**sizes, input_embedding_size=width, **unused)
        inner, model = "rembert", RemBertForSequenceClassification(own)
    weights = {
        name.replace("bleurt.", f"{inner}.", 1).replace(
            ".embedding_projection.", ".embedding_hidden_mapping_in."
        ): value
        for name, value in _read_weights(folder).items()
    }
    try:
        told = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise MetricUnavailableError(f"the weights in {folder} do not fit its config.json: {error}") from None
    _check_whole(folder, told.missing_keys, told.unexpected_keys)
    return model


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / "model.safetensors").is_file():
        from safetensors.torch import load_file

        return dict(load_file(folder / "model.safetensors"))
    if (folder / "pytorch_model.bin").is_file():
        import torch

        return dict(torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True))
    raise MetricUnavailableError(f"{folder} has neither model.safetensors nor pytorch_model.bin")


def _check_whole(folder: Path, missing: Sequence[str], unexpected: Sequence[str]) -> None:
    # Old checkpoints store the numbers 0 to 511 as a weight.
    extra = [name for name in unexpected if not name.endswith("position_ids")]
    if missing or extra:
        names = ", ".join([*sorted(missing), *sorted(extra)][:3])
        raise MetricUnavailableError(
            f"{folder} is no BLEURT checkpoint that is known here: {len(missing)} weights are missing and "
            f"{len(extra)} have no place ({names}, …); one with a regression head is needed"
        )


def _load_tokenizer(folder: Path) -> Tokenizer:
    return _Pieces(folder / PIECES) if (folder / PIECES).is_file() else _Words(folder)


class _Words:
    """The tokenizer of transformers that the folder holds."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, BertTokenizer

        # A class of its own that the folder may name is not one of transformers; the vocabulary is BERT's.
        is_bert = (folder / "vocab.txt").is_file()
        self._tokenizer: Any = (BertTokenizer if is_bert else AutoTokenizer).from_pretrained(folder)
        self.opening: int = self._tokenizer.cls_token_id
        self.closing: int = self._tokenizer.sep_token_id
        limit: int = self._tokenizer.model_max_length
        self.most_tokens = limit if limit < UNLIMITED else None

    def tokens(self, text: str) -> list[int]:
        # The very text `[SEP]` in an answer is no end of it.
        found: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return found


class _Pieces:
    """SentencePiece, as Google's program uses it for BLEURT-20."""

    most_tokens: int | None = None

    def __init__(self, path: Path) -> None:
        try:
            import sentencepiece
        except ImportError:
            raise MetricUnavailableError(
                f"{path.name} needs the package sentencepiece: pip install 'mhe[metrics]'"
            ) from None
        self._model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.opening, self.closing = (self._model.piece_to_id(piece) for piece in ("[CLS]", "[SEP]"))
        if self._model.unk_id() in (self.opening, self.closing):
            raise MetricUnavailableError(f"{path} has no pieces [CLS] and [SEP], which BLEURT needs")

    def tokens(self, text: str) -> list[int]:
        # By number: a piece that is unknown may be spelt as `[SEP]` is, and would be taken for it by its spelling.
        found: list[int] = self._model.encode(text)
        return found
