"""The card of an exported model, in the form that model hubs read: a head of YAML, then Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import RecipeJob

USE = """```python
from transformers import {kind}, AutoProcessor

model = {kind}.from_pretrained("FOLDER")
processor = AutoProcessor.from_pretrained("FOLDER")
```"""


def render_export_card(
    job: RecipeJob, title: str, parameters: int, kind: str, dtype: str, few: str | None, notes: Sequence[str]
) -> str:
    """The card: what it is, where it comes from, how to load it, and what was checked."""
    spec = job.base.spec
    origin = spec.lineage[-1].parent if spec.lineage else spec.name
    head: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": origin,
        "tags": ["medical", "radiology", *sorted({step.recipe for step in spec.lineage}), *([few] if few else [])],
    }
    if spec.licence is not None:
        head |= {"license": "other", "license_name": spec.licence}
    lineage = [
        f"{number}. `{step.recipe}` of `{step.parent}`{f' on {step.data}' if step.data else ''}, seed {step.seed}"
        for number, step in enumerate(spec.lineage, 1)
    ]
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        "",
        f"# {title}",
        "",
        f"`{kind}`, {parameters:,} parameters, {few or dtype.removeprefix('torch.')}.",
        "Research use only; not a medical device. The licence of the base holds.",
        "",
        "## Lineage",
        "",
        *(lineage or [f"`{spec.name}` as it is published."]),
        "",
        "## Use",
        "",
        USE.format(kind=kind),
        "",
        "## Checked",
        "",
        *(f"- {note}" for note in notes),
        "",
        f"Fingerprint of the model that was exported: `{job.base.fingerprint}`.",
        "",
    ]
    return "\n".join(lines)
