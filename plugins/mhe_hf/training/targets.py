"""Which layers an adapter goes to: linear layers of vision, fusion and language, by the ends of their names."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from mhe import UserError
from mhe_hf import MODULES, architecture_of, module_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from transformers import PreTrainedModel

    from mhe import Architecture

ALL = "all"
"""In the place of names: every linear layer of the module."""

LINEAR_CLASSES = frozenset({"Linear", "Linear4bit", "Linear8bitLt", "Conv1D"})
"""`Conv1D` is GPT-2's linear layer, the 4- and 8-bit ones are bitsandbytes'."""


def linear_layers(model: torch.nn.Module, architecture: Architecture) -> dict[str, list[str]]:
    """Dotted names of the linear layers of each module, in the model's order; the output head is not among them."""
    heads = _output_heads(model)
    found: dict[str, list[str]] = {module: [] for module in MODULES}
    for name, layer in model.named_modules():
        if type(layer).__name__ in LINEAR_CLASSES and layer not in heads:
            module = module_of(name, architecture)
            if module is not None:
                found[module].append(name)
    return found


def _output_heads(model: torch.nn.Module) -> list[torch.nn.Module]:
    """What turns states into tokens: adapting it would break its tie to the embeddings in many models."""
    heads = []
    for name, part in model.named_modules():
        given = getattr(part, "get_output_embeddings", None)
        head = given() if callable(given) and (not name or hasattr(part, "config")) else None
        if head is not None:
            heads.append(head)
    return heads


def choose_targets(
    model: PreTrainedModel,
    wanted: Mapping[str, Sequence[str]],
    architectures: Mapping[str, Architecture],
) -> dict[str, list[str]]:
    """The layers of each module that the patterns name, in the model's order.

    `wanted` maps a module to ends of layers' names: `q_proj`, `self_attn.q_proj`, `blocks.*.attn.qkv` (`*` stands for
    one name), or `all`. Raises `UserError`, with the names that there are, where a pattern matches nothing.
    """
    architecture = architecture_of(str(model.config.model_type), architectures or None)
    layers = linear_layers(model, architecture)
    chosen: dict[str, list[str]] = {}
    problems = []
    for module, patterns in wanted.items():
        if not patterns:
            problems.append(f"{module}_targets is empty: give names of layers, or `{ALL}`")
        if not layers[module]:
            problems.append(f"{module} has no linear layer in this {architecture.model_type} model")
            continue
        problems += [
            f"{module}_targets: {_unmatched(pattern, module, layers)}"
            for pattern in patterns
            if pattern != ALL and not any(ends_with(name, pattern) for name in layers[module])
        ]
        chosen[module] = [
            name for name in layers[module] if any(pattern == ALL or ends_with(name, pattern) for pattern in patterns)
        ]
    if problems:
        raise UserError("the adapter's layers cannot be found:\n  " + "\n  ".join(problems))
    return chosen


def ends_with(name: str, pattern: str) -> bool:
    """Whether the last names of a dotted name are those of the pattern; `*` stands for any one name."""
    parts, wanted = name.split("."), pattern.split(".")
    tail = parts[-len(wanted) :]
    return len(tail) == len(wanted) and all(w in ("*", part) for w, part in zip(wanted, tail, strict=True))


def last_names(names: Sequence[str]) -> list[str]:
    """The distinct last parts of dotted names, with the one before where the last is only a number, sorted."""
    ends = set()
    for name in names:
        parts = name.split(".")
        ends.add(".".join(parts[-2:]) if parts[-1].isdigit() and len(parts) > 1 else parts[-1])
    return sorted(ends)


def _unmatched(pattern: str, module: str, layers: Mapping[str, Sequence[str]]) -> str:
    known = last_names(layers[module])
    close = difflib.get_close_matches(pattern, known, n=1)
    elsewhere = [
        other for other, names in layers.items() if other != module and any(ends_with(n, pattern) for n in names)
    ]
    hint = f" Did you mean {close[0]}?" if close else f" ({', '.join(elsewhere)} has such.)" if elsewhere else ""
    return f"no linear layer of {module} is called {pattern!r}. There are: {', '.join(known)}.{hint}"


def common_root(names: Sequence[str], prefer: Sequence[str] = ()) -> str:
    """The dotted name of the deepest sub-module that holds all of these layers.

    One of `prefer` (a module's own path in the architecture's table) is taken where it holds them all. A lone layer's
    root is what it lies in.
    """
    for path in prefer:
        if "*" not in path and all(name.startswith(f"{path}.") for name in names):
            return path
    split = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
