"""The tasks that come with mhe, and the readers of their data."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from mhe import Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

    from mhe import DatasetReaderFactory

TASK_FOLDERS = (
    "phantom_caption",
    "phantom_caption_source",
    "phantom_caption_target",
    "phantom_vqa",
    "phantom_vqa_source",
    "phantom_vqa_target",
    "roco",
    "roco_327",
    "slake",
    "slake_zh",
    "vqa_rad",
)


def _load_phantom() -> DatasetReaderFactory:
    from mhe_tasks.phantom.reader import PhantomReader

    return PhantomReader


def _load_rocov2() -> DatasetReaderFactory:
    from mhe_tasks.readers.rocov2 import Rocov2Reader

    return Rocov2Reader


def _load_slake() -> DatasetReaderFactory:
    from mhe_tasks.readers.slake import SlakeReader

    return SlakeReader


def _load_vqa_rad() -> DatasetReaderFactory:
    from mhe_tasks.readers.vqa_rad import VqaRadReader

    return VqaRadReader


@hookimpl
def register_task_folders() -> Sequence[Traversable]:
    """One folder a task."""
    return [files("mhe_tasks") / name for name in TASK_FOLDERS]


@hookimpl
def register_readers() -> Sequence[Provider[DatasetReaderFactory]]:
    """One reader a data set; the hub copies need the extra `data`."""
    return [
        Provider("phantom", "Radiology-like images drawn from a seed; nothing to download", _load_phantom),
        Provider("rocov2", "ROCOv2's release (captions and concepts as CSV), or its hub copy", _load_rocov2),
        Provider("slake", "SLAKE's release (JSON and imgs/), English or Chinese, or its hub copy", _load_slake),
        Provider("vqa-rad", "VQA-RAD's official JSON and image folder, or its hub copy", _load_vqa_rad),
    ]
