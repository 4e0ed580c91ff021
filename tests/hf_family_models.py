"""A random model of each family of the papers, a few thousand weights each, written as it is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from hf_models import CHAT_TEMPLATE, CONTEXT, IMAGE, PATCH, WORDS, build_llava, build_tokenizer
from mhe import ModelSpec
from mhe_hf import HfOptions

SQUARE = {"height": IMAGE, "width": IMAGE}
WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}


def _save(folder: Path, model: torch.nn.Module, processor: object, seed: int) -> Path:
    """Random weights wide enough to tell images and questions apart, in the published format."""
    from mhe_hf import save_published

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
            elif "gate" in name:
                # Closed, as they are initialised, they hide the image.
                parameter.fill_(1.0)
    save_published(model, processor, folder)
    return folder


def build_llava_next(folder: Path, seed: int = 0) -> Path:
    """LLaVA-NeXT over Mistral."""
    import transformers
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    tokenizer = build_tokenizer()
    pinpoints = [[IMAGE, 2 * IMAGE], [2 * IMAGE, IMAGE]]
    processor = transformers.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(size=SQUARE, crop_size=SQUARE, image_grid_pinpoints=pinpoints),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    configuration = transformers.LlavaNextConfig(
        vision_config=transformers.CLIPVisionConfig(**WIDE, image_size=IMAGE, patch_size=PATCH),
        text_config=transformers.MistralConfig(
            **WIDE, num_key_value_heads=1, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, sliding_window=None,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
    )  # fmt: skip
    return _save(folder, transformers.LlavaNextForConditionalGeneration(configuration), processor, seed)


QWEN_TEMPLATE = CHAT_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>")


def build_qwen2_vl(folder: Path, seed: int = 0) -> Path:
    """Qwen2-VL; its processor is made without torchvision too."""
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from mhe_hf import without_video

    tokenizer = build_tokenizer("<|image_pad|>")
    places = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": [places[0], places[1], places[3]]})
    start, end, image, video = tokenizer.convert_tokens_to_ids(places)
    processor = without_video(transformers.Qwen2VLProcessor)(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=8 * 8, max_pixels=32 * 32
        ),
        tokenizer=tokenizer,
        chat_template=QWEN_TEMPLATE,
    )
    configuration = transformers.Qwen2VLConfig(
        vision_config={
            "depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 2, "patch_size": 4, "mlp_ratio": 2,
            "spatial_merge_size": 2, "temporal_patch_size": 2,
        },
        text_config={
            **WIDE, "num_key_value_heads": 1, "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    return _save(folder, transformers.Qwen2VLForConditionalGeneration(configuration), processor, seed)


def build_mllama(folder: Path, seed: int = 0) -> Path:
    """Llama 3.2 Vision."""
    import transformers
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    tokenizer = build_tokenizer("<|image|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|python_tag|>"]})
    processor = transformers.MllamaProcessor(
        image_processor=MllamaImageProcessorPil(size=SQUARE, max_image_tiles=2),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<|image|>"),
    )
    configuration = transformers.MllamaConfig(
        vision_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_global_layers": 1,
            "attention_heads": 2, "image_size": IMAGE, "patch_size": PATCH, "vision_output_dim": 128,
            "intermediate_layers_indices": [0], "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config={
            **WIDE, "num_hidden_layers": 3, "num_key_value_heads": 1, "cross_attention_layers": [1],
            "vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )  # fmt: skip
    model = transformers.MllamaForConditionalGeneration(configuration)
    return _save(folder, model, processor, seed)


def gpt2_tokenizer():
    """GPT-2's: byte-level, one special token for start and end, no padding token, no template."""
    from transformers import GPT2TokenizerFast

    own = build_tokenizer().backend_tokenizer
    import json

    model = json.loads(own.to_str())["model"]
    vocabulary = {word: number for word, number in model["vocab"].items() if not word.startswith("<")}
    order = {word: number for number, word in enumerate([*vocabulary, "<|endoftext|>"])}
    return GPT2TokenizerFast(vocab=order, merges=[tuple(pair) for pair in model["merges"]])


def vit(folder: Path, seed: int = 0) -> Path:
    """An image encoder with its image processor: the first half of VisionGPT-2."""
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(seed)
    ViTModel(ViTConfig(**WIDE, image_size=IMAGE, patch_size=PATCH)).save_pretrained(folder)
    ViTImageProcessorPil(size=SQUARE).save_pretrained(folder)
    return folder


def gpt2(folder: Path, seed: int = 0, width: int = 64) -> Path:
    """A language model with its tokenizer: the second half."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = gpt2_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    torch.manual_seed(seed)
    configuration = GPT2Config(
        n_embd=width, n_layer=2, n_head=2, n_positions=64, vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end
    )
    GPT2LMHeadModel(configuration).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_visiongpt2(folder: Path, seed: int = 0) -> Path:
    """ViT and GPT-2 as nlpconnect publishes them: image processor and tokenizer side by side."""
    encoder, decoder = vit(folder / "encoder"), gpt2(folder / "decoder")
    spec = ModelSpec(name="t", backend="hf", location=f"{encoder} + {decoder}")
    from mhe_hf import load_model

    model, processor = load_model(spec, HfOptions(device="cpu"))
    return _save(folder / "whole", model, processor, seed)


def bert_tokenizer(folder: Path):
    """BERT's word pieces."""
    from transformers import BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(number) for number in range(97, 123)]
    words += [*dict.fromkeys(word.lower() for word in WORDS.split()), *letters, *(f"##{x}" for x in letters)]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "vocab.txt"
    path.write_text("\n".join(dict.fromkeys(words)) + "\n")
    return BertTokenizerFast.from_pretrained(folder)


def _blip(folder: Path, model_class: str, seed: int) -> Path:
    import transformers
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    tokenizer = bert_tokenizer(folder)
    processor = transformers.BlipProcessor(image_processor=BlipImageProcessorPil(size=SQUARE), tokenizer=tokenizer)
    # Two tokens beyond the tokenizer's, as BLIP has: where the decoder starts, where the joint encoder does.
    configuration = transformers.BlipConfig(
        vision_config={**WIDE, "image_size": IMAGE, "patch_size": PATCH},
        text_config={
            **WIDE, "encoder_hidden_size": 64, "projection_dim": 32, "vocab_size": len(tokenizer) + 2,
            "bos_token_id": len(tokenizer), "sep_token_id": tokenizer.sep_token_id, "pad_token_id": 0,
            "max_position_embeddings": 64, "label_smoothing": 0.1,
        },
        projection_dim=32,
    )  # fmt: skip
    return _save(folder, getattr(transformers, model_class)(configuration), processor, seed)


def build_blip(folder: Path, seed: int = 0) -> Path:
    """BLIP's captioner."""
    return _blip(folder, "BlipForConditionalGeneration", seed)


def build_blip_vqa(folder: Path, seed: int = 0) -> Path:
    """BLIP for question answering."""
    return _blip(folder, "BlipForQuestionAnswering", seed)


def build_blip2(folder: Path, seed: int = 0) -> Path:
    """BLIP-2 over OPT: answers end at a line's end."""
    import transformers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    # OPT's writes its beginning itself, and knows no image token: the processor adds one.
    whole = build_tokenizer("<unused>").backend_tokenizer
    whole.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>"
    )
    processor = transformers.Blip2Processor(
        image_processor=BlipImageProcessorPil(size=SQUARE), tokenizer=tokenizer, num_query_tokens=4
    )
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    configuration = transformers.Blip2Config(
        vision_config={**WIDE, "image_size": IMAGE, "patch_size": PATCH},
        qformer_config={**WIDE, "encoder_hidden_size": 64, "vocab_size": 8, "cross_attention_frequency": 1},
        text_config=transformers.OPTConfig(
            hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=64,
            vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, bos_token_id=2, eos_token_id=line_end,
            pad_token_id=0,
        ),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    return _save(folder, transformers.Blip2ForConditionalGeneration(configuration), processor, seed)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llava": build_llava,
    "llava_next": build_llava_next,
    "qwen2_vl": build_qwen2_vl,
    "mllama": build_mllama,
    "visiongpt2": build_visiongpt2,
    "blip": build_blip,
    "blip-vqa": build_blip_vqa,
    "blip-2": build_blip2,
}
"""A random model of each family, written as it is published."""
CAPTIONERS = ("visiongpt2", "blip")
