"""A folder loaded by others: by plain transformers in a fresh process, and by vLLM where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhe import UserError
from mhe_compress.distill_states import own_inputs
from mhe_compress.merge_prompts import drawn_example, logits_of
from mhe_hf import collate_training, context_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedModel, ProcessorMixin

SECONDS = 1800
NEW_TOKENS = 8

# Reads no module of mhe: whoever gets the folder has none.
_TRANSFORMERS = """
import json, sys
import torch, transformers
from safetensors.torch import load_file

folder, place, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
configuration = transformers.AutoConfig.from_pretrained(folder)
kind = getattr(transformers, configuration.architectures[0])
model, report = kind.from_pretrained(folder, output_loading_info=True, device_map=sys.argv[4])
wrong = {name: sorted(map(str, report[name]))[:3] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")
         if report.get(name)}
if wrong:
    sys.exit(f"keys do not fit: {wrong}")
transformers.AutoTokenizer.from_pretrained(folder)
heads = [part.get_output_embeddings() for name, part in model.named_modules()
         if hasattr(part, "get_output_embeddings") and (not name or hasattr(part, "config"))]
head = next(head for head in heads if isinstance(head, torch.nn.Module))
seen = []
head.register_forward_hook(lambda _module, _given, output: seen.append(output))
furthest = 0.0
model.eval()
with torch.no_grad():
    for number in range(count):
        given = load_file(f"{place}/given{number}.safetensors", device=str(model.device))
        given = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in given.items()}
        seen.clear()
        model(**given)
        expected = load_file(f"{place}/expected{number}.safetensors")["logits"]
        difference = (seen[0].float().cpu() - expected).abs().max()
        furthest = max(furthest, float("inf") if difference.isnan() else float(difference))
ours = sorted(name for name in sys.modules if name.split(".")[0] == "mhe" or name.startswith("mhe_"))
if ours:
    sys.exit(f"modules of mhe were imported: {ours[:3]}")
print("RESULT " + json.dumps({"difference": furthest}))
"""

_VLLM = """
import json, sys
from importlib import import_module
from PIL import Image

folder, place = sys.argv[1:]
asked = json.load(open(f"{place}/asked.json"))
if __name__ == "__main__":
    from vllm import LLM, ModelRegistry, SamplingParams

    if asked["architecture"] not in ModelRegistry.get_supported_archs():
        print("RESULT " + json.dumps({"unsupported": True}))
        sys.exit(0)
    model = LLM(folder, dtype=asked["dtype"], enforce_eager=True, max_model_len=asked["context"], seed=0,
                limit_mm_per_prompt={"image": 1})
    given = {"prompt": asked["prompt"], "multi_modal_data": {"image": Image.open(f"{place}/image.png").convert("RGB")}}
    taste = SamplingParams(temperature=0.0, max_tokens=asked["tokens"], ignore_eos=True, detokenize=False)
    (answer,) = model.generate([given], taste, use_tqdm=False)
    print("RESULT " + json.dumps({"tokens": list(answer.outputs[0].token_ids)}))
"""


@dataclass(frozen=True, slots=True)
class VllmCheck:
    """What came of asking vLLM."""

    is_loaded: bool
    told: str
    """For the card."""


def check_in_transformers(
    model: PreTrainedModel, processor: ProcessorMixin, folder: Path, count: int, limit: float
) -> float:
    """The largest difference in logits between the model and what a fresh process loads from the folder.

    Raises `UserError` where it does not load there, or differs by more than `limit`.
    """
    from safetensors.torch import save_file

    examples = [drawn_example(number) for number in range(count)]
    with tempfile.TemporaryDirectory(prefix="mhe-export-") as place:
        for number, (example, logits) in enumerate(zip(examples, logits_of(model, processor, examples), strict=True)):
            batch = collate_training([example], processor, context=context_of(model.config))
            given = {name: tensor.cpu().contiguous() for name, tensor in own_inputs(model, batch).items()}
            save_file({**given, "labels": batch["labels"].contiguous()}, Path(place) / f"given{number}.safetensors")
            save_file({"logits": logits.contiguous()}, Path(place) / f"expected{number}.safetensors")
        result = _run(_TRANSFORMERS, [str(folder), place, str(count), str(model.device)], Path(place))
    if isinstance(result, str):
        raise UserError(f"the exported folder does not load in plain transformers: {result}")
    difference = float(str(result["difference"]))
    if not difference <= limit:
        raise UserError(
            f"plain transformers loads the folder, and its logits differ by up to {difference:.3g} from the model's; "
            f"the limit is {limit:g}."
        )
    return difference


def check_in_vllm(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> VllmCheck:
    """Whether vLLM loads the folder, and whether it writes the tokens that transformers writes (greedy)."""
    if importlib.util.find_spec("vllm") is None:
        return VllmCheck(is_loaded=False, told="not tried in vLLM: it is not installed here")
    from mhe_hf import family_of, render_prompt

    example = drawn_example(0)
    if not family_of(processor).reads_questions or getattr(processor, "chat_template", None) is None:
        return VllmCheck(is_loaded=False, told=f"not tried in vLLM: {type(model).__name__} has no chat template")
    with tempfile.TemporaryDirectory(prefix="mhe-export-") as place:
        (Path(place) / "image.png").write_bytes(example.request.images[0].source.read())
        expected = greedy_tokens(model, processor)
        asked = {
            "architecture": type(model).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "prompt": render_prompt(processor, example.request.messages),
            "tokens": NEW_TOKENS,
            "context": min(context_of(model.config) or 4096, 4096),
        }
        (Path(place) / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        result = _run(_VLLM, [str(folder), place], Path(place))
    if isinstance(result, str):
        return VllmCheck(is_loaded=False, told=f"vLLM does not load it: {result}")
    if result.get("unsupported"):
        return VllmCheck(is_loaded=False, told=f"vLLM has no {type(model).__name__}")
    written = result["tokens"]
    assert isinstance(written, list)
    same = next((n for n, (a, b) in enumerate(zip(written, expected, strict=False)) if a != b), len(written))
    return VllmCheck(is_loaded=True, told=f"loaded by vLLM, which writes {same} of {len(expected)} tokens alike")


def greedy_tokens(model: PreTrainedModel, processor: ProcessorMixin) -> list[int]:
    """The likeliest tokens after the drawn prompt, one after another, ends included."""
    import torch

    from mhe_hf import Collator

    batch = Collator(processor, context=context_of(model.config)).collate([drawn_example(0).request])
    given = {name: tensor.to(model.device) for name, tensor in batch.inputs.items()}
    given = {name: t.to(model.dtype) if t.is_floating_point() else t for name, t in given.items()}
    with torch.no_grad():
        generate: Any = model.generate
        written = generate(
            **given, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, eos_token_id=-1
        )
    return [int(token) for token in written[0, -NEW_TOKENS:]]


def _run(code: str, arguments: list[str], place: Path) -> Mapping[str, object] | str:
    """The result of a fresh process, or the last lines of what it said where there is none."""
    script = place / "check.py"
    script.write_text(code, encoding="utf-8")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
    }
    try:
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=SECONDS,
            cwd=place,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {SECONDS} s"
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, object] = json.loads(line.removeprefix("RESULT "))
            return found
    lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-600:] or f"exit code {done.returncode}"
