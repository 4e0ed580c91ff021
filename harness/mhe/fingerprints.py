"""Which weights exactly: content digests of everything in a model's folder that can change an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe.digests import digest_of, file_digest
from mhe.errors import ModelUnusableError
from mhe.values import Fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"})
CONTENT_SUFFIXES = WEIGHT_SUFFIXES | {".json", ".jinja", ".txt", ".model", ".py", ".tiktoken", ".vocab", ".spm"}
ADAPTER_FILE = "adapter_config.json"
NOT_CONTENT = frozenset({"checkpoint.json", "trainer_state.json", "training_args.bin", "all_results.json"})


def fingerprint_folder(folder: Path, *, fresh: bool = False, extra_folders: Sequence[Path] = ()) -> Fingerprint:
    """Digest over names and contents of weights, adapters, configuration, tokenizer, processor and chat template.

    Notes, pictures and training logs do not count; folders inside that hold adapters (PEFT's layout of several) do.
    `extra_folders` (adapters) are added in their order; `fresh` reads every byte again. Raises `ModelUnusableError`
    where a folder or its weights are missing.
    """
    files: dict[str, str] = {}
    size = 0
    for number, place in enumerate([folder, *extra_folders]):
        if not place.is_dir():
            raise ModelUnusableError(f"{place}: no such folder.")
        inside = sorted(p for p in place.iterdir() if (p / ADAPTER_FILE).is_file())
        found = [path for folder in (place, *inside) for path in _content(folder)]
        if not any(p.suffix in WEIGHT_SUFFIXES for p in found):
            raise ModelUnusableError(
                f"{place} holds no weights (looked for {', '.join(sorted(WEIGHT_SUFFIXES))}); "
                "give the folder that save_pretrained wrote."
            )
        for path in found:
            try:
                name = path.relative_to(place).as_posix()
                files[f"{number}/{name}" if number else name] = file_digest(path, fresh=fresh)
                size += path.stat().st_size
            except OSError as error:
                raise ModelUnusableError(f"{path} cannot be read: {error.strerror or error}") from None
    return Fingerprint(digest=digest_of(files), verified=True, files=files, bytes_on_disk=size)


def _content(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in CONTENT_SUFFIXES and p.name not in NOT_CONTENT)
