"""A small release in VQA-RAD's layout, a random model and steps on them, for the tests of tuning."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image

from hf_models import build_llava
from mhe.documents.model import ModelSpec
from mhe.documents.pipeline import TrainingChoice
from mhe.pipelines import Step, StepPlace

COLOURS = {"left": (220, 30, 30), "right": (30, 30, 220)}
SETTINGS = {"learning_rate": 3e-3, "batch_size": 4, "max_steps": 8, "evaluate_every": 4, "save_every": 2}


def write_release(folder: Path, *, images: int = 12, tests: int = 3, repeat: bool = True) -> Path:
    """Two training questions an image; the first test question repeats a training pair in other spelling."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(images):
        side = ("left", "right")[number % 2]
        red, green, blue = COLOURS[side]
        name = f"image{number}.png"
        PIL.Image.new("RGB", (32, 32), (red, green + number, blue)).save(folder / "images" / name)
        rows.append(row(name, f"where is the lung {number}", side, "OPEN", "freeform"))
        rows.append(
            row(name, f"is there a fracture {number}?", "yes" if side == "left" else "no", "CLOSED", "freeform")
        )
    for number in range(tests):
        question = f"Where is  the LUNG {number}?" if repeat and number == 0 else f"what is this {number}"
        rows.append(row(f"image{number}.png", question, "left", "OPEN", "test_freeform"))
    for number, item in enumerate(rows):
        item["qid"] = str(number)
    (folder / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def row(image: str, question: str, answer: str, answer_type: str, phrase_type: str) -> dict[str, str]:
    return {
        "qid": "", "phrase_type": phrase_type, "qid_linked_id": "", "image_case_url": "", "image_name": image,
        "image_organ": "CHEST", "evaluation": "evaluated", "question": question, "question_rephrase": "NULL",
        "question_relation": "NULL", "question_frame": "NULL", "question_type": "POS", "answer": answer,
        "answer_type": answer_type,
    }  # fmt: skip


def write_model(folder: Path) -> Path:
    return build_llava(folder, hidden=32, layers=1)


def model_at(folder: Path) -> ModelSpec:
    return ModelSpec(name=folder.name, backend="hf", location=str(folder))


def step_on(base: Path, name: str = "tuned", *, seed: int = 0, task: str = "vqa-rad", **settings: object) -> Step:
    return Step(
        name=name,
        recipe="full",
        base=model_at(base),
        settings={**SETTINGS, **settings},
        data=(TrainingChoice(task=task),),
        seed=seed,
    )


def place_at(directory: Path, data_dir: Path, **changes: object) -> StepPlace:
    return StepPlace(directory=directory, data_dir=data_dir, offline=True, **changes)  # type: ignore[arg-type]
