"""Seconds of a token at batch 1 on the CPU, pruned against whole: the same prompt, as many tokens, in turn.

A LLaVA with random weights whose language model is 8 layers of 768 wide, so that reading the weights is most of the
work, as it is at true size. It is pruned as paper 1 does (preset `neto2025-prune`: 30 % of heads and of neurons), by
the recipe, and both are loaded as `mhe` loads them. A ratio is of two sides that ran one after the other, the median
over the rounds; it must be below 1 by more than a tenth. Zeroed weights (`2:4`) are timed beside it: they must gain
nothing.

    python tests/benchmarks/bench_prune.py [--rounds 5] [--tokens 16]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hf_models import build_tokenizer
from mhe import ModelSpec, open_catalog
from mhe.pipelines import Step, StepPlace, run_step
from mhe_compress.prune_sparsity import weakest_of_four
from mhe_hf import HfOptions, collate_training, let_waiting_threads_sleep, load_model, save_published
from prune_cases import example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

WIDTH, LAYERS, HEADS, NEURONS, IMAGE, PATCH = 768, 8, 12, 2048, 32, 8
MOST = 0.9


def build(folder: Path) -> Path:
    import transformers
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from hf_models import CHAT_TEMPLATE

    tokenizer = build_tokenizer()
    size = {"height": IMAGE, "width": IMAGE}
    processor = transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size), tokenizer=tokenizer, patch_size=PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
    )  # fmt: skip
    configuration = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=IMAGE,
            patch_size=PATCH,
        ),
        text_config=transformers.LlamaConfig(
            hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            vocab_size=len(tokenizer), max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    save_published(transformers.LlavaForConditionalGeneration(configuration), processor, folder)
    return folder


def opened(folder: Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    spec = ModelSpec(name="bench", backend="hf", location=str(folder))
    return load_model(spec, HfOptions(device="cpu", dtype="float32"), offline=True)


def seconds_a_token(model: PreTrainedModel, processor: ProcessorMixin, tokens: int) -> float:
    """Of generating with a cache, the prompt's own pass left out."""
    inputs = dict(collate_training([example()], processor, context=None))
    inputs.pop("labels")
    times = []
    with torch.no_grad():
        found = model(**inputs, use_cache=True)
        for _ in range(tokens):
            following = found.logits[:, -1:].argmax(-1)
            started = time.perf_counter()
            found = model(input_ids=following, past_key_values=found.past_key_values, use_cache=True)
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def zeroed(model: PreTrainedModel) -> PreTrainedModel:
    """Two of every four weights of the language model at zero, by size alone: what is timed knows no better."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language_model.layers" in name and parameter.ndim == 2:
                parameter.masked_fill_(weakest_of_four(parameter.abs()), 0)
    return model


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    chosen = parser.parse_args()
    let_waiting_threads_sleep()
    with tempfile.TemporaryDirectory() as name:
        base = build(Path(name) / "base")
        spec = ModelSpec(name="base", backend="hf", location=str(base))
        step = Step(name="pruned", recipe="prune", base=spec, settings={"preset": "neto2025-prune"})
        done = run_step(open_catalog(), step, StepPlace(directory=Path(name) / "checkpoints", offline=True))
        (whole, processor), (pruned, _) = opened(base), opened(Path(done.model.location))
        sparse = zeroed(opened(base)[0])
        parameters = [sum(p.numel() for p in model.parameters()) for model in (whole, pruned)]
        sides = {"whole": whole, "pruned": pruned, "2:4": sparse}
        rounds = [
            {side: seconds_a_token(model, processor, chosen.tokens) for side, model in sides.items()}
            for _ in range(chosen.rounds)
        ]
    ratio = statistics.median(times["pruned"] / times["whole"] for times in rounds)
    zeros = statistics.median(times["2:4"] / times["whole"] for times in rounds)
    median = {side: statistics.median(times[side] for times in rounds) for side in sides}
    print(f"parameters: {parameters[0]:,} whole, {parameters[1]:,} pruned ({parameters[1] / parameters[0]:.3f})")
    print(f"seconds a token: {median['whole']:.4f} whole, {median['pruned']:.4f} pruned, {median['2:4']:.4f} 2:4")
    print(f"pruned against whole: {ratio:.3f} (must be below {MOST})")
    print(f"2:4 against whole: {zeros:.3f} (zeros are multiplied as any other number)")
    return 0 if ratio < MOST else 1


if __name__ == "__main__":
    sys.exit(main())
