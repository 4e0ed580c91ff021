"""What works for each family of models: the one table that the tests run through and that docs/backends.md shows.

A cell of ABILITIES is the parameter of a test that fails where it is not so, yes or no: `evaluate`, `tune` and `4 bits`
in tests/test_backend_table.py, `vLLM` in tests/with_vllm/test_families.py.

`python tests/backend_table.py` writes the page, `--check` leaves with 1 where it is stale.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "backends.md"
TEXT = Path(__file__).parent / "data" / "backends.md"
PLACE = "<!-- table -->\n"
WITH_HF = ("evaluate", "tune", "4 bits")
WITH_VLLM = "vLLM"


@dataclass(frozen=True)
class Family:
    """One row."""

    title: str
    classes: str
    """The key of `hf_family_models.FAMILIES`."""
    twin: str
    """Of `mhe_tiny`."""
    works: tuple[str, ...]


ABILITIES = (
    Family("LLaVA-1.5", "llava", "tiny-llava", (*WITH_HF, WITH_VLLM)),
    Family("LLaVA-NeXT (LLaVA-1.6)", "llava_next", "tiny-llava-next", (*WITH_HF, WITH_VLLM)),
    Family("Qwen2-VL", "qwen2_vl", "tiny-qwen2-vl", (*WITH_HF, WITH_VLLM)),
    Family("Llama 3.2 Vision (mllama)", "mllama", "tiny-mllama", WITH_HF),
    Family("VisionGPT-2 (ViT and GPT-2)", "visiongpt2", "tiny-visiongpt2", WITH_HF),
    Family("BLIP, captions", "blip", "tiny-blip", WITH_HF),
    Family("BLIP, questions (MISS, MILE)", "blip-vqa", "tiny-blip-vqa", WITH_HF),
    Family("BLIP-2 over OPT", "blip-2", "tiny-blip2", (*WITH_HF, WITH_VLLM)),
)


def table() -> str:
    """As Markdown, with the registered names of each family's models."""
    from mhe_hf.models import MODELS

    columns = (*WITH_HF, WITH_VLLM)
    lines = [
        f"| family | registered models | tiny twin | {' | '.join(columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]
    for family in ABILITIES:
        names = ", ".join(f"`{spec.name}`" for spec in MODELS if spec.tiny_twin == family.twin)
        cells = ["yes" if column in family.works else "no" for column in columns]
        lines.append(f"| {family.title} | {names} | `{family.twin}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The written text with the table in its place."""
    text = TEXT.read_text(encoding="utf-8")
    assert text.count(PLACE) == 1
    return text.replace(PLACE, table())


def main(arguments: list[str]) -> int:
    """Write the page, or check it."""
    is_there = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page()
    if "--check" in arguments:
        if not is_there:
            print("stale, run `make docs`: backends.md", file=sys.stderr)
        return 0 if is_there else 1
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
