"""Where attention heads and feed-forward neurons live in each model class; part of the table of architectures.

`language` is every layer that reads or writes text: the language model with its cross-attention, and BLIP's joint
encoder, which shares one configuration with the decoder. `vision` is the image encoder. Projectors, mergers and the
Q-Former are in neither.
"""

from __future__ import annotations

from mhe import HeadsPlace, NeuronsPlace

_SEPARATE = ("q_proj", "k_proj", "v_proj")
_FUSED = ("qkv", "qkv", "qkv")
_GATED = ("gate_proj", "up_proj")
_BERT = ("self.query", "self.key", "self.value")

_CLIP = "model.vision_tower.encoder.layers.*"
_LLAMA = "model.language_model.layers.*"

LLAVA_HEADS = (
    HeadsPlace("vision", f"{_CLIP}.self_attn", _SEPARATE, "out_proj", "vision_config"),
    HeadsPlace("language", f"{_LLAMA}.self_attn", _SEPARATE, "o_proj", "text_config"),
)
LLAVA_NEURONS = (
    NeuronsPlace("vision", f"{_CLIP}.mlp", ("fc1",), "fc2", "vision_config"),
    NeuronsPlace("language", f"{_LLAMA}.mlp", _GATED, "down_proj", "text_config"),
)

_QWEN_VISION = "model.visual.blocks.*"

QWEN2_VL_HEADS = (
    HeadsPlace("vision", f"{_QWEN_VISION}.attn", _FUSED, "proj", "vision_config", "num_heads"),
    HeadsPlace("language", f"{_LLAMA}.self_attn", _SEPARATE, "o_proj", "text_config"),
)
QWEN2_VL_NEURONS = (
    NeuronsPlace("vision", f"{_QWEN_VISION}.mlp", ("fc1",), "fc2", "vision_config", "mlp_ratio"),
    NeuronsPlace("language", f"{_LLAMA}.mlp", _GATED, "down_proj", "text_config"),
)

_MLLAMA_VISION = tuple(f"model.vision_model.{name}.layers.*" for name in ("transformer", "global_transformer"))

MLLAMA_HEADS = (
    *(
        HeadsPlace("vision", f"{path}.self_attn", _SEPARATE, "o_proj", "vision_config", "attention_heads")
        for path in _MLLAMA_VISION
    ),
    HeadsPlace("language", f"{_LLAMA}.self_attn", _SEPARATE, "o_proj", "text_config"),
    HeadsPlace("language", f"{_LLAMA}.cross_attn", _SEPARATE, "o_proj", "text_config"),
)
MLLAMA_NEURONS = (
    *(NeuronsPlace("vision", f"{path}.mlp", ("fc1",), "fc2", "vision_config") for path in _MLLAMA_VISION),
    NeuronsPlace("language", f"{_LLAMA}.mlp", _GATED, "down_proj", "text_config"),
)

_GPT2 = "decoder.transformer.h.*"

VISION_DECODER_HEADS = (
    HeadsPlace("vision", "encoder.layers.*.attention", _SEPARATE, "o_proj", "encoder"),
    HeadsPlace("language", f"{_GPT2}.attn", ("c_attn", "c_attn", "c_attn"), "c_proj", "decoder", "n_head"),
    HeadsPlace("language", f"{_GPT2}.crossattention", ("q_attn", "c_attn", "c_attn"), "c_proj", "decoder", "n_head"),
)
VISION_DECODER_NEURONS = (
    NeuronsPlace("vision", "encoder.layers.*.mlp", ("fc1",), "fc2", "encoder"),
    NeuronsPlace("language", f"{_GPT2}.mlp", ("c_fc",), "c_proj", "decoder", "n_inner"),
)

_BLIP_VISION = "vision_model.encoder.layers.*"
_BLIP_TEXT = ("text_encoder.encoder.layer.*", "text_decoder.bert.encoder.layer.*")

BLIP_HEADS = (
    HeadsPlace("vision", f"{_BLIP_VISION}.self_attn", _FUSED, "projection", "vision_config"),
    *(
        HeadsPlace("language", f"{path}.{attention}", _BERT, "output.dense", "text_config")
        for path in _BLIP_TEXT
        for attention in ("attention", "crossattention")
    ),
)
BLIP_NEURONS = (
    NeuronsPlace("vision", f"{_BLIP_VISION}.mlp", ("fc1",), "fc2", "vision_config"),
    *(NeuronsPlace("language", path, ("intermediate.dense",), "output.dense", "text_config") for path in _BLIP_TEXT),
)

_OPT = "language_model.model.decoder.layers.*"

BLIP2_HEADS = (
    HeadsPlace("vision", f"{_BLIP_VISION}.self_attn", _FUSED, "projection", "vision_config"),
    HeadsPlace("language", f"{_OPT}.self_attn", _SEPARATE, "out_proj", "text_config"),
)
BLIP2_NEURONS = (
    NeuronsPlace("vision", f"{_BLIP_VISION}.mlp", ("fc1",), "fc2", "vision_config"),
    NeuronsPlace("language", _OPT, ("fc1",), "fc2", "text_config", "ffn_dim"),
)
