"""Small data sets in the official layouts and in those of the hub copies, made from nothing for tests.

make_rocov2(folder)              ROCOv2's release: CSV files with their traps, tiny JPEGs, ids with gaps
make_slake(folder, annotations)  SLAKE's images for the real JSON files
make_rocov2_copy, make_vqa_rad_copy, make_slake_copy   the same in the shape of the hub copies
"""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import PIL.Image

MODALITY_CONCEPTS = {
    "ct": "C0040405",
    "mri": "C0024485",
    "ultrasound": "C0041618",
    "radiograph": "C1306645",
    "angiogram": "C0002978",
    "pet": "C0032743",
}
MODALITY_CYCLE = ["ct"] * 7 + ["radiograph"] * 6 + ["mri"] * 4 + ["ultrasound"] * 3 + ["angiogram", "pet", "unknown"]
CAPTION_TRAPS = [
    ' Chest radiograph, "two views", of the left lung.',
    "Axial CT (A) of the abdomen; arrow: 3.5 x 2-cm mass.",
    "MRI of the brain\nwith a second line.",
    "Échographie rénale: kyste de 12 mm — µ, ≤ 5 %.",
    "Figure with a comma, and an apostrophe's end",
    "=SUM(A1:A2) is no formula here",
]
ROCOV2_SIZES = {"train": 60, "valid": 24, "test": 420}


def tiny_jpeg(seed: int, side: int = 32) -> bytes:
    """A JPEG of blurred noise; no two seeds look alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    picture = PIL.Image.fromarray(coarse).resize((side, side), PIL.Image.Resampling.BICUBIC)
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def rocov2_rows(split: str, size: int) -> list[tuple[str, str, str]]:
    """(id, caption, modality) of a split, with every seventh number missing, as published ids have gaps."""
    rows = []
    number = 0
    while len(rows) < size:
        number += 1
        if number % 7 == 0:
            continue
        modality = MODALITY_CYCLE[number % len(MODALITY_CYCLE)]
        caption = f"{modality.upper()} image number {number} of the chest showing a small nodule in the right lobe."
        if number % 10 == 0:
            caption = CAPTION_TRAPS[number // 10 % len(CAPTION_TRAPS)] + f" No. {number}"
        rows.append((f"ROCOv2_2023_{split}_{number:06d}", caption, modality))
    return rows


def make_rocov2(
    folder: Path, sizes: dict[str, int] | None = None, *, layout: str = "{split}_images/{split}", zipped: bool = False
) -> Path:
    """A release of ROCOv2 in `folder`: by default 60 train, 24 validation and 420 test figures."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, size) in enumerate((sizes or ROCOV2_SIZES).items()):
        rows = rocov2_rows(split, size)
        _write_csv(folder / f"{split}_captions.csv", "Caption", [(name, caption) for name, caption, _ in rows])
        manual = [(name, ";".join(_concepts(modality))) for name, _, modality in rows]
        _write_csv(folder / f"{split}_concepts_manual.csv", "CUIs", manual)
        _write_csv(folder / f"{split}_concepts.csv", "CUIs", [(name, f"{cuis};C0028259") for name, cuis in manual])
        images = folder / layout.format(split=split)
        images.mkdir(parents=True, exist_ok=True)
        for number, (name, _, _) in enumerate(rows):
            (images / f"{name}.jpg").write_bytes(tiny_jpeg(seed * 100_000 + number))
        if zipped:
            with zipfile.ZipFile(folder / f"{split}_images.zip", "w") as archive:
                for file in sorted(images.iterdir()):
                    archive.write(file, f"{split}/{file.name}")
            shutil.rmtree(images)
    lines = "".join(f"{cui},{name}\n" for name, cui in MODALITY_CONCEPTS.items())
    (folder / "cui_mapping.csv").write_text("CUI,Canonical name\n" + lines, encoding="utf-8")
    return folder


def _concepts(modality: str) -> list[str]:
    if modality == "unknown":
        return []
    region = ["C0817096", "C1999039"] if modality == "radiograph" else []
    return [MODALITY_CONCEPTS[modality], *region]


def _write_csv(path: Path, column: str, rows: list[tuple[str, str]]) -> None:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerows([("ID", column), *rows])
    path.write_bytes(text.getvalue().encode("utf-8"))


def make_slake(folder: Path, annotations: Path, *, zipped: bool = False) -> Path:
    """SLAKE in `folder`: the JSON files of `annotations`, and an image made for each name in them."""
    folder.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for file in ("train.json", "validate.json", "test.json"):
        content = (annotations / file).read_bytes()
        (folder / file).write_bytes(content)
        names |= {entry["img_name"] for entry in json.loads(content)}
    pictures = {name: tiny_jpeg(500_000 + number) for number, name in enumerate(sorted(names))}
    if zipped:
        with zipfile.ZipFile(folder / "imgs.zip", "w") as archive:
            for name, data in pictures.items():
                archive.writestr(f"imgs/{name}", data)
        return folder
    for name, data in pictures.items():
        path = folder / "imgs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def make_slake_copy(folder: Path, annotations: Path) -> Path:
    """SLAKE as the hub has it: `validation.json`, and the images in `imgs.zip`."""
    make_slake(folder, annotations, zipped=True)
    (folder / "validate.json").rename(folder / "validation.json")
    return folder


def make_rocov2_copy(folder: Path, sizes: dict[str, int]) -> Path:
    """ROCOv2 as parquet: `image`, `image_id`, `caption`, `cui`."""
    for seed, (split, size) in enumerate(sizes.items()):
        rows = rocov2_rows(split, size)
        columns = {
            "image": [{"bytes": tiny_jpeg(seed * 100_000 + i), "path": None} for i in range(len(rows))],
            "image_id": [name for name, _, _ in rows],
            "caption": [caption for _, caption, _ in rows],
            "cui": [[*_concepts(modality), "C0028259"] for _, _, modality in rows],
        }
        _write_parquet(folder, {"valid": "validation"}.get(split, split), columns)
    return folder


def make_vqa_rad_copy(folder: Path, rows: dict[str, list[tuple[bytes, str, str]]]) -> Path:
    """VQA-RAD as parquet: `image`, `question`, `answer` for each split's (image, question, answer)."""
    for split, entries in rows.items():
        columns = {
            "image": [{"bytes": data, "path": None} for data, _, _ in entries],
            "question": [question for _, question, _ in entries],
            "answer": [answer for _, _, answer in entries],
        }
        _write_parquet(folder, split, columns)
    return folder


def _write_parquet(folder: Path, split: str, columns: dict[str, list[object]]) -> None:
    import datasets

    features = datasets.Features(
        {
            name: datasets.Image()
            if name == "image"
            else datasets.List(datasets.Value("string"))
            if name == "cui"
            else datasets.Value("string")
            for name in columns
        }
    )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(columns, features=features)
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
