"""The tokenizer of the small models: byte-level BPE, trained on the text of the tasks that a model learns.

Its alphabet is all 256 bytes, so that any text can be written and read back; what the training text does not hold
costs more tokens, never an unknown one. It adds no special tokens of its own: the chat template places them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"  # noqa: S105 - stands for an image in prompts, no secret
CONTROL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", IMAGE_TOKEN)
CONTEXT = 2048

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' %} {% elif message['role'] == 'system' -%}{%- else -%}USER: {% endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}{{ eos_token }}
{%- elif message['role'] == 'system' -%}{{ '\\n' }}
{%- else %} ASSISTANT:{% endif -%}
{%- endfor -%}
"""
"""LLaVA-1.5's, `USER: <image>\\n… ASSISTANT: …</s>`. A user's turn always opens the assistant's."""


def train_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> PreTrainedTokenizerFast:
    """Return a tokenizer of at most `vocabulary` entries, with bos, eos, pad, unk and image tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    unknown, begin, end, pad, _ = CONTROL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=unknown,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        extra_special_tokens=[IMAGE_TOKEN],
        padding_side="left",
        model_max_length=CONTEXT,
        # The clean-up would turn " ." into "." and so lose text.
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
