"""Published models that have a short name.

No revision is pinned here: the commit that the hub resolves is part of the run key and of the record.
"""

from __future__ import annotations

from mhe import ModelSpec

MODELS = (
    ModelSpec(
        name="llava-1.5-7b",
        backend="hf",
        location="llava-hf/llava-1.5-7b-hf",
        summary="LLaVA-1.5: CLIP ViT-L/14 at 336 pixels, two-layer projector, Vicuna 7B",
        licence="Llama 2 Community License",
        paper="Liu et al., Improved Baselines with Visual Instruction Tuning, CVPR 2024",
        tiny_twin="tiny-llava",
    ),
    ModelSpec(
        name="llava-1.6-mistral-7b",
        backend="hf",
        location="llava-hf/llava-v1.6-mistral-7b-hf",
        summary="LLaVA-NeXT: CLIP ViT-L/14 over image tiles, two-layer projector, Mistral 7B",
        licence="Apache-2.0",
        paper="Liu et al., LLaVA-NeXT: Improved reasoning, OCR, and world knowledge, 2024",
        tiny_twin="tiny-llava-next",
    ),
    ModelSpec(
        name="qwen2-vl-2b",
        backend="hf",
        location="Qwen/Qwen2-VL-2B-Instruct",
        summary="Qwen2-VL: ViT at native resolution, patch merger, Qwen2 1.5B",
        licence="Apache-2.0",
        paper="Wang et al., Qwen2-VL, arXiv:2409.12191, 2024",
        tiny_twin="tiny-qwen2-vl",
    ),
    ModelSpec(
        name="llama-3.2-11b-vision",
        backend="hf",
        location="meta-llama/Llama-3.2-11B-Vision-Instruct",
        summary="Llama 3.2 Vision (mllama): tiled ViT, gated cross-attention into Llama 3.1 8B",
        licence="Llama 3.2 Community License",
        paper="Grattafiori et al., The Llama 3 Herd of Models, arXiv:2407.21783, 2024",
        tiny_twin="tiny-mllama",
    ),
    ModelSpec(
        name="visiongpt2",
        backend="hf",
        location="google/vit-base-patch16-224-in21k + openai-community/gpt2",
        summary="VisionGPT-2, captioner: ViT-B/16 and GPT-2 put together, cross-attention untrained: a base to tune",
        licence="Apache-2.0 (ViT), MIT (GPT-2)",
        paper="Dosovitskiy et al., ViT, ICLR 2021; Radford et al., GPT-2, 2019",
        tiny_twin="tiny-visiongpt2",
    ),
    ModelSpec(
        name="vit-gpt2-coco",
        backend="hf",
        location="nlpconnect/vit-gpt2-image-captioning",
        summary="ViT-B/16 and GPT-2 trained on COCO captions: the architecture of visiongpt2, ready to write",
        licence="Apache-2.0",
        paper="Kumar, The Illustrated Image Captioning using transformers, 2022",
        tiny_twin="tiny-visiongpt2",
    ),
    ModelSpec(
        name="blip-captioning",
        backend="hf",
        location="Salesforce/blip-image-captioning-base",
        summary="BLIP captioner: ViT-B/16, text decoder with cross-attention",
        licence="BSD-3-Clause",
        paper="Li et al., BLIP, ICML 2022",
        tiny_twin="tiny-blip",
    ),
    ModelSpec(
        name="blip-vqa",
        backend="hf",
        location="Salesforce/blip-vqa-base",
        summary="BLIP for question answering: ViT-B/16, joint text-multimodal encoder, text decoder",
        licence="BSD-3-Clause",
        paper="Li et al., BLIP, ICML 2022",
        tiny_twin="tiny-blip-vqa",
    ),
    ModelSpec(
        name="blip2-opt-2.7b",
        backend="hf",
        location="Salesforce/blip2-opt-2.7b",
        summary="BLIP-2: ViT-g/14, Q-Former, OPT 2.7B",
        licence="MIT",
        paper="Li et al., BLIP-2, ICML 2023",
        tiny_twin="tiny-blip2",
    ),
    ModelSpec(
        name="miss",
        backend="hf",
        location="Salesforce/blip-vqa-base",
        summary="Base of MISS and MILE: their architecture, BLIP's weights; MISS's own are not published in this form",
        licence="BSD-3-Clause",
        paper="Chen et al., MISS, arXiv:2401.05163, 2024",
        tiny_twin="tiny-blip-vqa",
    ),
)
