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
    ),
    ModelSpec(
        name="qwen2-vl-2b",
        backend="hf",
        location="Qwen/Qwen2-VL-2B-Instruct",
        summary="Qwen2-VL: ViT at native resolution, patch merger, Qwen2 1.5B",
        licence="Apache-2.0",
        paper="Wang et al., Qwen2-VL, arXiv:2409.12191, 2024",
    ),
    ModelSpec(
        name="llama-3.2-11b-vision",
        backend="hf",
        location="meta-llama/Llama-3.2-11B-Vision-Instruct",
        summary="Llama 3.2 Vision (mllama): tiled ViT, gated cross-attention into Llama 3.1 8B",
        licence="Llama 3.2 Community License",
        paper="Grattafiori et al., The Llama 3 Herd of Models, arXiv:2407.21783, 2024",
    ),
)
