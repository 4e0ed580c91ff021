"""Checkpoints on disk: found by name, written last by a rename, with provenance that no recipe can write.

CHECKPOINTS/<NAME>/<SEED>/
    checkpoint.json   what it is, where it comes from, what it cost
    README.md         the same for people
    history.json      the learning curve
    model/            weights, configuration, tokenizer, processor
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.digests import file_digest
from mhe.documents.checkpoint import Checkpoint
from mhe.documents.model import ModelSpec, TrainingSummary
from mhe.errors import BusyError, DocumentError, StorageError, UnknownNameError, UserError
from mhe.fingerprints import fingerprint_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

CHECKPOINT_FILE = "checkpoint.json"
CARD_FILE = "README.md"
HISTORY_FILE = "history.json"
OWN_FILES = frozenset({CHECKPOINT_FILE, CARD_FILE, HISTORY_FILE})
"""Written anew for each checkpoint; what else lies beside the model is the recipe's."""
MODEL_FOLDER = "model"
WORK_FOLDER = ".work"
_NAME = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]*)(?:@(?P<seed>[0-9]+))?")


@dataclass(frozen=True, slots=True)
class CheckpointName:
    """`NAME` or `NAME@SEED`, taken apart."""

    name: str
    seed: int | None = None

    @classmethod
    def parse(cls, text: str) -> CheckpointName | None:
        """The parts; None for a text that cannot name a checkpoint (a path, a hub id)."""
        found = _NAME.fullmatch(text)
        return cls(found["name"], int(found["seed"]) if found["seed"] else None) if found else None


def checkpoints_dir(chosen: Path | None = None) -> Path:
    """`chosen`, else `$MHE_CHECKPOINTS_DIR`, else `./checkpoints`; it need not exist."""
    if chosen is not None:
        return chosen
    return Path(os.environ.get("MHE_CHECKPOINTS_DIR") or "checkpoints")


def checkpoint_folder(name: str, seed: int, directory: Path | None = None) -> Path:
    """Where the checkpoint `NAME@SEED` lies, or would lie."""
    return checkpoints_dir(directory) / name / str(seed)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The document of a finished checkpoint; None where none is. Raises `DocumentError` for a damaged one."""
    path = folder / CHECKPOINT_FILE
    return Checkpoint.from_json(path) if path.is_file() else None


def checkpoint_folders(directory: Path | None = None) -> list[Path]:
    """Folders of the finished checkpoints, by name and seed."""
    root = checkpoints_dir(directory)
    folders = [path.parent for path in root.glob(f"*/*/{CHECKPOINT_FILE}") if path.parent.name.isdigit()]
    return sorted(folders, key=lambda folder: (folder.parent.name, int(folder.name)))


def list_checkpoints(directory: Path | None = None) -> list[str]:
    """Names `NAME@SEED` of the finished checkpoints, sorted."""
    return [f"{folder.parent.name}@{folder.name}" for folder in checkpoint_folders(directory)]


def checkpoint_seeds(name: str, directory: Path | None = None) -> list[int]:
    """The seeds of the finished checkpoints of a name, ascending; empty where there are none."""
    root = checkpoints_dir(directory) / name
    return sorted(int(path.parent.name) for path in root.glob(f"*/{CHECKPOINT_FILE}") if path.parent.name.isdigit())


def find_checkpoint(name: str, directory: Path | None = None, *, seed: int | None = None) -> ModelSpec | None:
    """The model behind `NAME[@SEED]`, with lineage and seed; `NAME` alone is seed 0, or `seed` where given.

    None where no such checkpoint exists. Raises `UnknownNameError` where the name exists with other seeds only,
    and `UserError` for `NAME@1` asked for together with another `seed`.
    """
    parts = CheckpointName.parse(name)
    if parts is None:
        return None
    if parts.seed is not None and seed is not None and parts.seed != seed:
        raise UserError(f"{name} names seed {parts.seed}, and seed {seed} is asked for: give one of them.")
    chosen = parts.seed if parts.seed is not None else seed or 0
    folder = checkpoint_folder(parts.name, chosen, directory)
    found = read_checkpoint(folder)
    if found is None:
        seeds = checkpoint_seeds(parts.name, directory)
        if seeds:
            known = [f"{parts.name}@{number}" for number in seeds]
            raise UnknownNameError("checkpoint", f"{parts.name}@{chosen}", known, f"(in {checkpoints_dir(directory)})")
        return None
    return model_of(folder, found)


def model_of(folder: Path, checkpoint: Checkpoint) -> ModelSpec:
    """A checkpoint as a model that can be evaluated or trained further."""
    return ModelSpec(
        name=checkpoint.name,
        backend=checkpoint.backend,
        location=str((folder / checkpoint.model_folder).resolve()),
        options=checkpoint.options,
        summary=f"{checkpoint.recipe} of {checkpoint.parent}",
        lineage=checkpoint.lineage,
        seed=checkpoint.seed,
        training=TrainingSummary(
            parameters=checkpoint.parameters,
            trainable_parameters=checkpoint.trainable_parameters,
            seconds=checkpoint.cost.seconds,
            peak_host_bytes=checkpoint.cost.peak_host_bytes,
            peak_device_bytes=checkpoint.cost.peak_device_bytes,
            device=checkpoint.cost.device,
        ),
        needs_class=checkpoint.needs_class,
    )


def find_step(digest: str, directory: Path | None = None) -> tuple[Path, Checkpoint] | None:
    """A finished checkpoint of an equal step under any name, so that pipelines share their steps.

    One whose document is damaged is passed over with a warning: it is no reason to refuse another step.
    """
    for folder in checkpoint_folders(directory):
        try:
            found = read_checkpoint(folder)
        except DocumentError as error:
            logging.getLogger(__name__).warning("passed over when looking for an equal step: %s", error)
            continue
        if found is not None and found.step_digest == digest:
            return folder, found
    return None


def changed_files(folder: Path, checkpoint: Checkpoint) -> list[str]:
    """Names of files that are missing or no longer what the recipe made, sorted."""
    place = folder / checkpoint.model_folder
    return sorted(
        name
        for name, digest in checkpoint.files.items()
        if not (place / name).is_file() or file_digest(place / name) != digest
    )


def write_checkpoint(
    folder: Path,
    model_folder: Path,
    draft: Checkpoint,
    *,
    replace: bool = False,
    curve: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Move a recipe's result into place and write its provenance; returns the document as written.

    The files are hashed here, whatever `draft` says of them. Everything is put together beside the goal and
    renamed last, so that a checkpoint is there whole or not at all; with `replace` the old one goes only then.
    `curve` are further text files by name. Raises `UserError` where the goal exists and is not to be replaced,
    `ModelUnusableError` where the result holds no weights, `StorageError` where the disk refuses.
    """
    if folder.exists() and not replace:
        raise UserError(f"{folder} exists: give --replace, or another --name.")
    fingerprint = fingerprint_folder(model_folder, fresh=True)
    size = sum(path.stat().st_size for path in model_folder.rglob("*") if path.is_file())
    written = draft.model_copy(
        update={
            "model_folder": MODEL_FOLDER,
            "fingerprint": fingerprint.digest,
            "files": dict(fingerprint.files),
            "bytes_on_disk": size,
        }
    )
    staging = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        model_folder.replace(staging / MODEL_FOLDER)
        _write_texts(staging, written, curve or {})
        _swap(staging, folder)
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written: {error.strerror}. The training's own folder is kept: "
            "make room and run the same command again."
        ) from None
    return written


def adopt_checkpoint(folder: Path, source: Path, checkpoint: Checkpoint, *, replace: bool = False) -> Checkpoint:
    """Give an equal step's result a second name: same files (hard links where the disk has them), own document.

    What the recipe kept beside the model (`RecipeResult.kept_files`) and the curve come along.
    """
    if folder.exists() and not replace:
        raise UserError(f"{folder} exists: give --replace, or another --name.")
    staging = folder.with_name(f".{folder.name}.new")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        shutil.copytree(source / checkpoint.model_folder, staging / MODEL_FOLDER, copy_function=_link_or_copy)
        for path in source.iterdir():
            if path.is_file() and path.name not in OWN_FILES:
                _link_or_copy(str(path), str(staging / path.name))
        _write_texts(staging, checkpoint, {})
        _swap(staging, folder)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror or error}.") from None
    return checkpoint


def _link_or_copy(source: str, goal: str) -> str:
    try:
        os.link(source, goal)
    except OSError:
        # File systems without hard links (exFAT, some network disks).
        shutil.copy2(source, goal)
    return goal


def _write_texts(staging: Path, checkpoint: Checkpoint, texts: Mapping[str, str]) -> None:
    files = {
        **texts,
        HISTORY_FILE: json.dumps(list(checkpoint.history), indent=1) + "\n",
        CARD_FILE: render_card(checkpoint),
        CHECKPOINT_FILE: checkpoint.to_json(),
    }
    for name, text in files.items():
        with (staging / name).open("w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())


def _swap(staging: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    staging.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_work(work: Path) -> None:
    """Delete a finished step's work folder. Raises `BusyError` for anything that is not one."""
    if work.parent.name != WORK_FOLDER:
        raise BusyError(f"{work} is not a work folder of mhe and is left alone.")
    shutil.rmtree(work, ignore_errors=True)


def render_card(checkpoint: Checkpoint) -> str:
    """The model card, as Markdown: lineage, data, parameters, cost, how to evaluate it."""
    identity = f"{checkpoint.name}@{checkpoint.seed}"
    share = checkpoint.trainable_parameters / checkpoint.parameters if checkpoint.parameters else 0.0
    origin = (
        f"Made by mhe {checkpoint.code.mhe_version} with the recipe `{checkpoint.recipe}` "
        f"(version {checkpoint.recipe_version}) from `{checkpoint.parent}` on {checkpoint.finished}. "
        "Research use only; not a medical device."
    )
    parameters = (
        f"{checkpoint.parameters:,}, of which {checkpoint.trainable_parameters:,} were trained ({share:.3%}); "
        f"{checkpoint.bytes_on_disk:,} bytes on disk."
    )
    lineage = [
        f"{number}. {step.recipe} of `{step.parent}`{f' on {step.data}' if step.data else ''}, seed {step.seed}"
        for number, step in enumerate(checkpoint.lineage, 1)
    ]
    lines = [f"# {identity}", "", origin, "", "## Lineage", "", *lineage, "", "## Data", "", *_data_lines(checkpoint)]
    lines += ["", "## Parameters", "", parameters, ""]
    if checkpoint.modules:
        lines += _table(
            ("module", "parameters", "trained"),
            [(m.name, f"{m.total:,}", f"{m.trainable:,}") for m in checkpoint.modules],
        )
    lines += ["## Cost", "", *_cost_lines(checkpoint), "", "## Use", ""]
    if checkpoint.loads_in:
        lines += [f"Loads without mhe in: {', '.join(checkpoint.loads_in)} (folder `{checkpoint.model_folder}/`).", ""]
    if checkpoint.needs_class:
        lines += [f"Needs the class `{checkpoint.needs_class}`.", ""]
    lines += ["```", f"mhe eval --model {identity} --task TASK", "```", ""]
    lines += [f"- {note}" for note in checkpoint.notes]
    lines += ["", f"Fingerprint `{checkpoint.fingerprint}`, step `{checkpoint.step_digest}`.", ""]
    return "\n".join(lines)


def _data_lines(checkpoint: Checkpoint) -> list[str]:
    data = checkpoint.data
    if data is None:
        return ["None: nothing was trained on."]
    train = data.train
    lines = [
        f"- training: {train.samples:,} pairs on {train.images:,} images of {train.task}, {train.split} ({train.place})"
    ]
    if data.validation is not None:
        held = data.validation
        lines.append(f"- validation: {held.samples:,} pairs on {held.images:,} images of {held.task}, {held.split}")
    lines.append(f"- training pairs dropped because they repeat an evaluated pair: {data.dropped_pairs:,}")
    lines.append(f"- images shared with an evaluated split, as the task declares: {data.shared_images:,}")
    return lines


def _cost_lines(checkpoint: Checkpoint) -> list[str]:
    cost = checkpoint.cost
    lines = [f"- {cost.seconds:,.1f} s on {cost.device or 'an unnamed device'}"]
    if cost.samples_per_second is not None:
        lines.append(f"- {cost.samples_per_second:,.1f} samples/s")
    if cost.peak_host_bytes is not None:
        lines.append(f"- peak host memory {cost.peak_host_bytes / 2**20:,.0f} MiB")
    if cost.peak_device_bytes is not None:
        lines.append(f"- peak device memory {cost.peak_device_bytes / 2**20:,.0f} MiB")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'|'.join(['---'] * len(head))}|",
        *[f"| {' | '.join(row)} |" for row in rows],
        "",
    ]
