"""The tokenizers of the small models, trained on the text of the tasks that a model learns.

Most are byte-level BPE: the alphabet is all 256 bytes, so that any text can be written and read back; what the
training text does not hold costs more tokens, never an unknown one. They add no special tokens of their own: the
chat template places them. BLIP's is WordPiece, as published: lower case, with single characters for what is new.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BertTokenizer, PreTrainedTokenizerFast

CONTEXT = 2048
VOCABULARY = 1024
"""At most; training stops where every word of the text is a token."""


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Tokens that are commands, in the order of their ids, which are the first of the vocabulary."""

    names: tuple[str, ...]
    begin: str
    end: str
    pad: str
    unknown: str | None = None
    others: tuple[str, ...] = ()
    """Those that have no role of their own, such as the image's place."""


def train_bpe(
    texts: Iterable[str], control: ControlTokens, *, template: str | None = None, context: int = CONTEXT
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of at most `VOCABULARY` entries, with a chat template where one is given."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(control.names),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    unknown = {} if control.unknown is None else {"unk_token": control.unknown}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **unknown,
        bos_token=control.begin,
        eos_token=control.end,
        pad_token=control.pad,
        extra_special_tokens=list(control.others),
        padding_side="left",
        model_max_length=context,
        # The clean-up would turn " ." into "." and so lose text.
        clean_up_tokenization_spaces=False,
        chat_template=template,
    )


def build_wordpiece(texts: Iterable[str], *, context: int) -> BertTokenizer:
    """Return BERT's tokenizer with BLIP's two further tokens, `[DEC]` (begins what the decoder writes) and `[ENC]`.

    Its vocabulary is every word of the texts, the most frequent first, and every printable character, at the start
    of a word and inside it: the library's trainer makes another one each time.
    """
    from tokenizers import normalizers, pre_tokenizers
    from transformers import BertTokenizer

    control = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"]
    lower, split = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text, times in Counter(texts).items():
        for word, _ in split.pre_tokenize_str(lower.normalize_str(text)):
            counts[word] += times
    characters = sorted({c for c in string.printable.lower() if not c.isspace()} | {c for word in counts for c in word})
    words = [word for word, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])) if len(word) > 1]
    entries = [*control, *characters, *(f"##{c}" for c in characters), *words]
    return BertTokenizer(
        vocab={entry: place for place, entry in enumerate(entries[:VOCABULARY])},
        bos_token="[DEC]",  # noqa: S106 - a name of a token, no secret
        extra_special_tokens=["[ENC]"],
        model_max_length=context,
    )
