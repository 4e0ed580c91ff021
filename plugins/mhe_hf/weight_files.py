"""Looking at a model's folder before transformers does, so that what is wrong is said in plain words."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

from mhe import ModelUnusableError

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


def check_folder(folder: Path, *, allow_pickle: bool) -> None:
    """Raise `ModelUnusableError` where the folder cannot hold a usable model: no configuration, no weights, missing
    shards, a truncated or corrupt safetensors file, or pickles that were not asked for.
    """
    configuration = folder / "config.json"
    if not configuration.is_file():
        raise ModelUnusableError(f"{folder} has no config.json; give the folder that save_pretrained wrote.")
    _read_json(configuration)
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_shards(index)
    for path in files:
        check_safetensors(path)
    if files:
        return
    pickles = sorted({p.name for pattern in PICKLES for p in folder.glob(pattern)})
    if not pickles:
        raise ModelUnusableError(f"{folder} holds no weights: no *.safetensors file.")
    if not allow_pickle:
        raise ModelUnusableError(
            f"{folder} holds its weights as pickle ({', '.join(pickles)}), which can run any code when opened.\n"
            "If you trust its maker: --set backend.allow_pickle=true. Better: save it again as safetensors."
        )


def _read_json(path: Path) -> dict[str, object]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnusableError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(data, dict):
        raise ModelUnusableError(f"{path} should hold a JSON object, and holds a {type(data).__name__}.")
    return data


def _check_shards(index: Path) -> None:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelUnusableError(f"{index} has no weight_map; copy the file again.")
    missing = sorted({str(name) for name in weight_map.values() if not (index.parent / str(name)).is_file()})
    if missing:
        raise ModelUnusableError(f"{index.parent} lacks {', '.join(missing)}, named in {index.name}; copy them again.")


def check_safetensors(path: Path) -> None:
    """Raise `ModelUnusableError` unless the file's length is what its header says. Reads the header only."""
    again = "copy or download the file again."
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(8)
            if len(start) < 8:
                raise ModelUnusableError(f"{path} is truncated ({size} bytes, not even a header); {again}")
            (length,) = struct.unpack("<Q", start)
            if length > LARGEST_HEADER:
                raise ModelUnusableError(f"{path} is not a safetensors file (its first bytes are {start!r}); {again}")
            raw = stream.read(length)
    except OSError as error:
        raise ModelUnusableError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) < length:
        raise ModelUnusableError(f"{path} is truncated ({size} bytes, its header alone needs {8 + length}); {again}")
    try:
        header = json.loads(raw)
        end = max((int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ModelUnusableError(f"{path} is corrupt (header: {type(error).__name__}: {error}); {again}") from None
    expected = 8 + length + end
    if size != expected:
        word = "truncated" if size < expected else "corrupt"
        raise ModelUnusableError(f"{path} is {word}: {size} bytes, and its header promises {expected}; {again}")
