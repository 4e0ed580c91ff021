"""The table of modules, against the real model classes on the meta device."""

from __future__ import annotations

import pytest
import torch
import transformers

from mhe import Architecture, ModelUnusableError
from mhe_hf import ARCHITECTURES, architecture_of, module_names, module_parameters
from mhe_hf.architectures import module_of

VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**VISION, "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 64}
CLIP = {**VISION, "image_size": 16, "patch_size": 8}


def llava():
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP), text_config=transformers.LlamaConfig(**TEXT)
    )
    return transformers.LlavaForConditionalGeneration(config)


def llava_next():
    config = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**CLIP), text_config=transformers.MistralConfig(**TEXT)
    )
    return transformers.LlavaNextForConditionalGeneration(config)


def qwen2_vl():
    config = transformers.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "patch_size": 8},
        text_config={**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}},
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def mllama():
    config = transformers.MllamaConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_global_layers": 1,
            "attention_heads": 2, "image_size": 16,
            "patch_size": 8, "vision_output_dim": 64, "intermediate_layers_indices": [0],
        },
        text_config={**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1], "pad_token_id": 0},
    )  # fmt: skip
    return transformers.MllamaForConditionalGeneration(config)


def vision_gpt2():
    encoder = transformers.ViTConfig(**CLIP)
    decoder = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, add_cross_attention=True)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    return transformers.VisionEncoderDecoderModel(config)


def blip():
    text = {**VISION, "vocab_size": 64, "encoder_hidden_size": 32, "projection_dim": 32}
    config = transformers.BlipConfig(vision_config=CLIP, text_config=text)
    return transformers.BlipForQuestionAnswering(config)


def blip2():
    config = transformers.Blip2Config(
        vision_config=CLIP,
        qformer_config={**VISION, "encoder_hidden_size": 32, "vocab_size": 8},
        text_config=transformers.OPTConfig(
            hidden_size=32, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=32,
            vocab_size=64, max_position_embeddings=64,
        ),
        num_query_tokens=4,
    )  # fmt: skip
    return transformers.Blip2ForConditionalGeneration(config)


def blip_captions():
    text = {**VISION, "vocab_size": 64, "encoder_hidden_size": 32, "projection_dim": 32}
    return transformers.BlipForConditionalGeneration(transformers.BlipConfig(vision_config=CLIP, text_config=text))


BUILDERS = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_vl": qwen2_vl,
    "mllama": mllama,
    "vision-encoder-decoder": vision_gpt2,
    "blip": blip,
    "blip-2": blip2,
}


def test_every_row_of_the_table_is_tested():
    assert set(BUILDERS) == set(ARCHITECTURES)


@pytest.mark.parametrize("model_type", BUILDERS)
def test_every_parameter_belongs_to_one_module(model_type):
    with torch.device("meta"):
        model = BUILDERS[model_type]()
    assert model.config.model_type == model_type
    counts = module_parameters(model)
    assert set(counts) == {"vision", "fusion", "language"}, [
        name for name, _ in model.named_parameters() if module_of(name, ARCHITECTURES[model_type]) is None
    ]
    assert all(counts.values()), counts
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("model_type", BUILDERS)
def test_every_path_of_the_table_exists(model_type):
    with torch.device("meta"):
        model = BUILDERS[model_type]()
    names = [name for name, _ in model.named_modules()] + [name for name, _ in model.named_parameters()]
    architecture = ARCHITECTURES[model_type]
    optional = {"enc_to_dec_proj"}  # only where the two halves differ in width
    for module in ("vision", "fusion", "language"):
        for path in getattr(architecture, module):
            alone = Architecture(model_type, vision=(path,), fusion=(), language=())
            assert path in optional or any(module_of(name, alone) for name in names), path


def test_cross_attention_counts_as_fusion_and_the_rest_of_the_layer_as_language():
    table = ARCHITECTURES["mllama"]
    assert module_of("model.language_model.layers.3.cross_attn.q_proj.weight", table) == "fusion"
    assert module_of("model.language_model.layers.3.mlp.up_proj.weight", table) == "language"
    assert module_of("somewhere.else", table) is None
    assert module_of("model.visual.merger.mlp.0.weight", ARCHITECTURES["qwen2_vl"]) == "fusion"
    assert module_of("model.visual.blocks.0.attn.qkv.weight", ARCHITECTURES["qwen2_vl"]) == "vision"


def test_names_of_modules():
    with torch.device("meta"):
        model = llava()
    names = module_names(model, ARCHITECTURES["llava"], "fusion")
    assert names == [
        "model.multi_modal_projector",
        "model.multi_modal_projector.linear_1",
        "model.multi_modal_projector.act",
        "model.multi_modal_projector.linear_2",
    ]


def test_blips_captioner_has_no_joint_encoder_and_every_parameter_a_module():
    with torch.device("meta"):
        model = blip_captions()
    counts = module_parameters(model)
    assert set(counts) == {"vision", "fusion", "language"}
    assert counts["fusion"] == 0, "its cross-attention lies in the decoder, which is language"
    assert counts["vision"] > 0
    assert counts["language"] > 0


def test_an_unknown_type_names_the_known_ones():
    with pytest.raises(ModelUnusableError, match=r"'resnet' is not known[\s\S]*llava_next"):
        architecture_of("resnet")
