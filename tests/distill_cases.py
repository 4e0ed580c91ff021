"""Steps of the recipe `distill` on small random models, and its loss by hand, for the tests of compression."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import tune_cases
from mhe.documents.pipeline import TrainingChoice
from mhe.pipelines import Step, StepPlace, plan_step

SETTINGS = {
    "learning_rate": 1e-3, "batch_size": 4, "max_steps": 4, "evaluate_every": 2, "save_every": 2, "keep": "last",
}  # fmt: skip


def step_of(base: Path, teacher: Path | None = None, name: str = "student", **settings: object) -> Step:
    return Step(
        name=name,
        recipe="distill",
        base=tune_cases.model_at(base),
        settings={**SETTINGS, **settings},
        inputs={"teacher": tune_cases.model_at(teacher)} if teacher else {},
        data=(TrainingChoice(task="vqa-rad"),),
    )


def examples_of(catalog, step: Step, place: StepPlace):
    """What the step trains on."""
    data = plan_step(catalog, step, place).data
    assert data is not None
    return data.train


def weights_of(folder: Path):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def configuration_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def logits_of(model, inputs):
    """Logits of any family, by calling its parts: shape (rows, tokens, vocabulary)."""
    if model.config.model_type != "blip":
        return model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    seen = model.vision_model(pixel_values=inputs["pixel_values"])[0]
    mask = inputs["attention_mask"]
    sees = mask.new_ones(seen.shape[:-1])
    if not hasattr(model, "text_encoder"):
        return model.text_decoder(
            input_ids=inputs["input_ids"], attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=sees
        ).logits
    told = model.text_encoder(
        input_ids=inputs["input_ids"], attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=sees
    )[0]
    return model.text_decoder(
        input_ids=inputs["decoder_input_ids"], attention_mask=inputs["decoder_attention_mask"],
        encoder_hidden_states=told, encoder_attention_mask=mask,
    ).logits  # fmt: skip


def answer_logits(model, processor, example):
    """(logits, tokens) of one answer, one place at a time, without the code under test."""
    import torch

    from mhe_hf import collate_training

    inputs = collate_training([example], processor)
    with torch.no_grad():
        logits = logits_of(model, inputs)[0].double()
    labels = inputs["labels"][0].tolist()
    lag = 0 if model.config.is_encoder_decoder else 1
    places = [place for place, label in enumerate(labels) if label != -100]
    return logits[[place - lag for place in places]], [labels[place] for place in places]


def loss_by_hand(student, teacher, examples, *, temperature: float, alpha: float, top_k: int | None = None) -> float:
    """Hard and soft loss over all answers' tokens; `student` and `teacher` are (model, processor)."""
    import torch

    hard, soft, count = 0.0, 0.0, 0
    for example in examples:
        (ours, tokens), (theirs, same) = (answer_logits(*pair, example) for pair in (student, teacher))
        assert tokens == same
        hard -= sum(float(row.log_softmax(-1)[token]) for row, token in zip(ours, tokens, strict=True))
        p, q = (torch.softmax(rows / temperature, dim=-1) for rows in (theirs, ours))
        if top_k is not None:
            best = theirs.topk(top_k, dim=-1).indices
            p, q = (torch.cat([c.gather(-1, best), 1 - c.gather(-1, best).sum(-1, keepdim=True)], -1) for c in (p, q))
        soft += float((p * (p / q).log()).sum())
        count += len(tokens)
    return ((1 - alpha) * hard + alpha * temperature**2 * soft) / count


def quiet_loader():
    from mhe_hf import load_model

    def load(folder: Path):
        return load_model(tune_cases.model_at(folder), offline=True)

    return load


def with_options(step: Step, **options: object) -> Step:
    """The step on a base with further options."""
    return replace(step, base=step.base.model_copy(update={"options": options}))
