"""`mhe show tasks TASK --sample N`: one sample, what is asked about it, and the very text that a model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe.backend_abilities import RendersPrompts
from mhe.digests import cache_dir
from mhe.documents.base import parse_options
from mhe.errors import SampleError, UserError
from mhe.model_names import resolve_model
from mhe.prompting import build_request
from mhe.protocols import BackendContext
from mhe.samples import load_samples

if TYPE_CHECKING:
    from pathlib import Path

    from mhe.catalog import Catalog
    from mhe.values import Request, Sample

    Shown = dict[str, object]

RULE = "-" * 72


def sample_details(
    catalog: Catalog,
    task_name: str,
    place: int,
    *,
    split: str | None = None,
    data_dir: Path | None = None,
    model: str | None = None,
    backend: str | None = None,
    offline: bool = False,
) -> Shown:
    """The sample at that place of the split, counted from 1, its messages, and with `model` what this reads.

    `prompt` is the text up to where the answer begins, None where the model is shown the image alone; `refusal` says
    why there is none. Raises `UserError` for a place that the split lacks and for a backend that cannot render, and
    what reading samples and finding models raise.
    """
    if place < 1:
        raise UserError(f"--sample {place}: samples are counted from 1.")
    task = catalog.task(task_name)
    found = load_samples(catalog, task, split=split, limit=place, data_dir=data_dir, offline=offline, need_images=False)
    if len(found.samples) < place:
        raise UserError(f"--sample {place}: split {found.split} of task {task.name} has {len(found.samples)} samples.")
    sample = found.samples[place - 1]
    request = build_request(task, sample, task.generation, 0)
    shown: Shown = {"task": task.key, "split": found.split, "place": place, **_told(sample, request)}
    if model is not None:
        shown |= _read_by(catalog, model, backend, request, offline=offline)
    return shown


def _told(sample: Sample, request: Request) -> Shown:
    return {
        "sample": {
            "id": sample.id,
            "images": [image.id for image in sample.images],
            "question": sample.question,
            "references": list(sample.references),
            "answer_type": sample.answer_type,
            "groups": dict(sample.groups),
        },
        "messages": [{"role": m.role, "images": m.images, "text": m.text} for m in request.messages],
    }


def _read_by(catalog: Catalog, model: str, backend: str | None, request: Request, *, offline: bool) -> Shown:
    spec = resolve_model(model, catalog, backend=backend)
    factory = catalog.backend(spec.backend)
    options = parse_options(factory.Options, spec.options, f"options of model {spec.name}")
    opened = factory(spec, options, BackendContext(offline, cache_dir(), training_samples=list))
    if not isinstance(opened, RendersPrompts):
        raise UserError(
            f"model {spec.name}: the backend {spec.backend} does not tell what its models read. "
            "Leave --model out for the messages alone, or choose another: --backend hf"
        )
    told: Shown = {"model": spec.name, "backend": spec.backend, "prompt": None, "refusal": None}
    try:
        return {**told, "prompt": opened.render_prompt(request)}
    except SampleError as error:
        return {**told, "refusal": str(error)}


def sample_text(shown: Shown) -> str:
    """The same for people."""
    from mhe.cli.show_details import detail_text

    sample, messages = shown["sample"], shown["messages"]
    assert isinstance(sample, dict)
    assert isinstance(messages, list)
    head = {"task": shown["task"], "split": shown["split"], "place": shown["place"], **sample}
    parts = [detail_text(head)]
    for message in messages:
        images = f", {message['images']} image{'s' if message['images'] > 1 else ''}" if message["images"] else ""
        parts.append(f"{RULE}\n{message['role']}{images}:\n{message['text']}")
    if "model" in shown:
        parts.append(f"{RULE}\n{_reading(shown)}")
    return "\n\n".join(parts)


def _reading(shown: Shown) -> str:
    who = f"{shown['model']} through {shown['backend']}"
    if shown["refusal"] is not None:
        return f"{who} refuses it: {shown['refusal']}"
    if shown["prompt"] is None:
        return f"{who} takes no prompt: it is a captioner, and is shown the image alone"
    return f"{who} reads:\n{shown['prompt']}"
