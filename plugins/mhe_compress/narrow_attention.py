"""Attention of BLIP's and BLIP-2's image encoders with fewer heads.

The library's own divides the model's width by the number of heads to find a head's size, which holds for the whole
number only. These compute the same from the size that the module keeps.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip_2.modeling_blip_2 import Blip2Attention


class _Narrow:
    """`forward` for a fused projection of query, key and value, without regard to the model's width."""

    def forward(self: Any, hidden_states: torch.Tensor, **_more: object) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States of shape (rows, places, width) to the same shape, and no attention weights."""
        rows, places, _ = hidden_states.shape
        mixed = self.qkv(hidden_states).reshape(rows, places, 3, self.num_heads, self.head_dim)
        query, key, value = mixed.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout.p if isinstance(self, BlipAttention) else self.attention_dropout
        mixture = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout if self.training else 0.0, scale=self.scale
        )
        joined = mixture.transpose(1, 2).reshape(rows, places, self.num_heads * self.head_dim)
        return self.projection(joined), None


# The library takes keywords that it does not read; ours leaves them out of the signature.
class NarrowBlipAttention(_Narrow, BlipAttention):  # type: ignore[misc]
    """BLIP's."""


class NarrowBlip2Attention(_Narrow, Blip2Attention):  # type: ignore[misc]
    """BLIP-2's."""


NARROW: dict[str, type[torch.nn.Module]] = {
    "BlipAttention": NarrowBlipAttention,
    "Blip2Attention": NarrowBlip2Attention,
}
"""By the name of the class whose place they take."""
