"""From tokens to an answer's text: what a stream of the same tokens shows, where an answer ends in a character too."""

from __future__ import annotations

import random

import pytest
from tokenizers.decoders import DecodeStream

from hf_models import build_tokenizer
from mhe_hf import decode_answer

TEXT = "Läsion 3 µm: 病灶 🩻 rechts"
SIGN = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def streamed(tokenizer, tokens) -> str:
    """As vLLM's server sends it: piece by piece, and a piece only once it is whole."""
    stream = DecodeStream(skip_special_tokens=True)
    pieces = (stream.step(tokenizer.backend_tokenizer, token) for token in tokens)
    return "".join(piece for piece in pieces if piece is not None)


def test_an_answer_that_ends_within_a_character_ends_before_it(tokenizer):
    tokens = tokenizer(TEXT, add_special_tokens=False).input_ids
    assert len(tokens) > len(TEXT), "characters of several tokens"
    assert decode_answer(tokenizer, tokens) == TEXT
    cut = 0
    for end in range(len(tokens)):
        text = decode_answer(tokenizer, tokens[:end])
        assert TEXT.startswith(text)
        cut += tokenizer.decode(tokens[:end]) != text
    assert cut >= 8, "most ends between the tokens of a character are within it"


def test_any_tokens_read_as_in_a_stream(tokenizer):
    """Random tokens are mostly bytes that are no text; those in the middle of an answer are shown."""
    draw = random.Random(7)
    known = [token for token in range(len(tokenizer)) if token not in tokenizer.all_special_ids]
    shown = 0
    for length in [1, 2, 3, 5, 8, 13] * 60:
        tokens = draw.choices(known, k=length)
        text = decode_answer(tokenizer, tokens)
        assert text == streamed(tokenizer, tokens)
        shown += SIGN in text
    assert shown > 50
