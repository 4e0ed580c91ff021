"""What a teacher expects of the tokens of answers, kept on disk: computed once, read by every training after it.

    $MHE_CACHE_DIR/teacher_logits/<teacher>/      one folder for a teacher, as it is loaded, and k
      about.json                                  who that is
      <digest>.safetensors                        some examples each, written by rename

A folder is named by the teacher's fingerprint (weights, tokenizer, processor, template), the options it is loaded with,
its precision, and k. In it an example is found by the digest of its prompt, its images and its answer: a prompt of
another version is another example, and what was kept for the old one is not found. The temperature is in neither: k
logits are kept as they are, and of all other tokens log Σ exp(logit / T) at the temperatures `TEMPERATURES`, which is
exact there and interpolated in 1 / T between them. Examples go through the teacher one by one, so that none depends on
its neighbours: trainings with other seeds or more data share rows, and a caching that was killed goes on to the
same numbers. Deleting the folder costs the time to fill it again.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import UserError, cache_dir, digest_of
from mhe_hf.training.memory import readable_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch

    from mhe import TrainingExample

FORMAT = 1
TEMPERATURES = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0)
SHARD_EXAMPLES = 256
SHARD_BYTES = 64 << 20
KEY_LENGTH = 32
FREE_SHARE = 0.02
"""Of the disk that must stay free."""


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """A teacher's view of the n tokens of one answer."""

    tokens: torch.Tensor
    """Shape (n,): the answer and the end of its turn."""
    ids: torch.Tensor
    """Shape (n, k), ascending: the likeliest tokens."""
    logits: torch.Tensor
    """Shape (n, k), float32: theirs."""
    rest: torch.Tensor
    """Shape (n, temperatures): log Σ exp(logit / T) over the other tokens; -inf where there are none."""


def example_key(example: TrainingExample) -> str:
    """Digest of prompt, images and answer."""
    request = example.request
    asked = [message.question for message in request.messages]
    return digest_of([request.digest, asked, example.answer])[:KEY_LENGTH]


def bytes_a_token(top_k: int) -> int:
    """Of one token of an answer on disk: its number, k numbers and logits, the rest."""
    return 4 + 8 * top_k + 4 * len(TEMPERATURES)


def top_of(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, logits and rest (see `CachedAnswer`) of float32 logits of shape (n, vocabulary)."""
    import torch

    kept = min(top_k, logits.shape[-1])
    ids = logits.topk(kept, dim=-1).indices.sort(dim=-1).values
    others = logits.scatter(-1, ids, -torch.inf).double()
    rest = torch.stack([(others / T).logsumexp(dim=-1) for T in TEMPERATURES], dim=-1)
    return ids, logits.gather(-1, ids), rest.float()


def rest_at(rest: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of log Σ exp(logit / T) over the other tokens, shape (n,): as kept, or linear in 1 / T between two that are.

    It is convex in 1 / T, so that what is interpolated is never too small.
    """
    if temperature in TEMPERATURES:
        return rest[:, TEMPERATURES.index(temperature)]
    above = next(number for number, T in enumerate(TEMPERATURES) if temperature < T)
    low, high = 1 / TEMPERATURES[above], 1 / TEMPERATURES[above - 1]
    share = (1 / temperature - low) / (high - low)
    return torch_lerp(rest[:, above], rest[:, above - 1], share)


def torch_lerp(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    """Between two tensors; of -inf and -inf the same."""
    import torch

    return torch.where(torch.isneginf(start), start, start + share * (end - start))


class TeacherCache:
    """The kept answers of one teacher. Raises `UserError` for a file that is broken."""

    def __init__(self, identity: Mapping[str, object], root: Path | None = None) -> None:
        self._about = {"format": FORMAT, **identity}
        name = digest_of(self._about)[:KEY_LENGTH]
        self.folder = (root or cache_dir()) / "teacher_logits" / name
        self._places: dict[str, tuple[Path, int]] = {}
        self._open: dict[Path, Mapping[str, torch.Tensor]] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            for number, key in enumerate(_keys_in(path)):
                self._places.setdefault(key, (path, number))

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def read(self, key: str) -> CachedAnswer:
        """What was kept. Raises `KeyError` for what was not."""
        path, number = self._places[key]
        if path not in self._open:
            from safetensors.torch import load_file

            # Mapped, not read: a row costs what it is long.
            self._open[path] = load_file(path)
        stored = self._open[path]
        start, end = stored["starts"][number : number + 2].tolist()
        return CachedAnswer(*(stored[name][start:end] for name in ("tokens", "ids", "logits", "rest")))

    def add(self, rows: Iterable[tuple[str, CachedAnswer]]) -> None:
        """Keep answers as they come, some in a file; each file is whole or absent."""
        waiting: list[tuple[str, CachedAnswer]] = []
        size = 0
        for key, row in rows:
            waiting.append((key, row))
            size += row.ids.numel() * 8
            if len(waiting) >= SHARD_EXAMPLES or size >= SHARD_BYTES:
                self._write(waiting)
                waiting, size = [], 0
        if waiting:
            self._write(waiting)

    def _write(self, rows: Sequence[tuple[str, CachedAnswer]]) -> None:
        import torch
        from safetensors.torch import save

        from mhe_hf.training.watching import write_whole

        self.folder.mkdir(parents=True, exist_ok=True)
        about = self.folder / "about.json"
        if not about.is_file():
            write_whole(about, (json.dumps(self._about, indent=2) + "\n").encode())
        lengths = torch.tensor([0, *(len(row.tokens) for _, row in rows)])
        tensors = {
            "starts": lengths.cumsum(0),
            "tokens": torch.cat([row.tokens for _, row in rows]).int(),
            "ids": torch.cat([row.ids for _, row in rows]).int(),
            "logits": torch.cat([row.logits for _, row in rows]).float(),
            "rest": torch.cat([row.rest for _, row in rows]).float(),
        }
        keys = [key for key, _ in rows]
        path = self.folder / f"{digest_of(keys)[:KEY_LENGTH]}.safetensors"
        write_whole(path, save(tensors, metadata={"keys": json.dumps(keys)}))
        self._places |= {key: (path, number) for number, key in enumerate(keys)}


def _keys_in(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            keys: list[str] = json.loads((stored.metadata() or {})["keys"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is no part of a teacher's cache ({type(error).__name__}: {error}). Delete this file: what it held "
            "is computed again."
        ) from None
    return keys


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raises `UserError` where the disk of `folder` lacks the room, before anything is computed."""
    place = next(path for path in [folder, *folder.parents] if path.is_dir())
    disk = shutil.disk_usage(place)
    room = max(0, disk.free - int(FREE_SHARE * disk.total))
    if needed > room:
        raise UserError(
            f"{what} takes {readable_size(needed)}, and the disk of {place} has room for {readable_size(room)} "
            f"({readable_size(disk.free)} free, of which {FREE_SHARE:.0%} of the disk are left alone). Set "
            "MHE_CACHE_DIR to a larger disk, lower top_k, or compute it anew in every step: --set teacher_logits=online"
        )


def missing_examples(cache: TeacherCache | None, examples: Sequence[TrainingExample]) -> Iterator[tuple[str, int]]:
    """Key and index of each example that is not kept, equal ones once."""
    seen: set[str] = set()
    for number, example in enumerate(examples):
        key = example_key(example)
        if key not in seen and (cache is None or key not in cache):
            yield key, number
        seen.add(key)
