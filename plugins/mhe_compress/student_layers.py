"""A model with fewer language layers: which are kept, and the model that is left, in its own class.

`evenly`: of N layers n are kept at equal distances, the first and the last among them: round(i (N - 1) / (n - 1)).
`importance`: the n layers that change their input the most are kept. A layer's block influence is 1 - cos(x, y) of its
input x and its output y, meaned over the tokens of calibration samples (Men et al., ShortGPT, arXiv:2403.03853, eq. 1).

Where layers are of two kinds (mllama: layers that look at the image, and layers that read the text), each kind keeps
the share, and at least one of either stays. BLIP has one number of layers for the joint encoder and the decoder, so
that both lose as many.
"""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mhe import UserError
from mhe_hf import architecture_of, module_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedConfig, PreTrainedModel

    from mhe import Architecture

Kept = dict[str, list[int]]
"""Dotted name of a list of layers to the indices that are kept, ascending."""


def text_configuration(configuration: PreTrainedConfig) -> Any:  # noqa: ANN401 - its fields differ by family
    """The part of a configuration that describes the language layers; changing it changes the whole."""
    return configuration.get_text_config(decoder=True)


def layer_lists(model: PreTrainedModel, architectures: Mapping[str, Architecture]) -> dict[str, nn.ModuleList]:
    """The lists of layers that the language's number of layers counts, by dotted name; the decoder's first.

    Raises `UserError` where none is found.
    """
    architecture = architecture_of(str(model.config.model_type), architectures or None)
    total = text_configuration(model.config).num_hidden_layers
    found = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, nn.ModuleList)
        and len(part) == total
        and (module_of(name, architecture) == "language" or name.startswith("text_encoder."))
    }
    # BLIP's joint encoder comes before its decoder in the model.
    ordered = dict(sorted(found.items(), key=lambda pair: pair[0].startswith("text_encoder.")))
    if not ordered:
        raise UserError(f"no list of {total} language layers is found in this {architecture.model_type} model.")
    return ordered


def kinds_of_layers(configuration: PreTrainedConfig) -> list[list[int]]:
    """Indices of the layers of each kind: one kind, or layers that read text and layers that look at the image."""
    text = text_configuration(configuration)
    looking = sorted(getattr(text, "cross_attention_layers", None) or ())
    reading = [number for number in range(text.num_hidden_layers) if number not in looking]
    return [reading, looking] if looking else [reading]


def counts_to_keep(kinds: Sequence[Sequence[int]], keep: float) -> list[int]:
    """How many layers of each kind stay: `keep` is a share below 1, or their whole number.

    Raises `UserError` where that is none, or not fewer than there are.
    """
    total = sum(len(kind) for kind in kinds)
    wanted = _nearest(keep * total) if keep < 1 else int(keep)
    if not 0 < wanted < total:
        raise UserError(
            f"keep_layers={keep:g} would leave {wanted} of {total} language layers. Give a share between 0 and 1 that "
            f"leaves at least one and drops at least one, or a number from 1 to {total - 1}."
        )
    others = [max(1, _nearest(wanted * len(kind) / total)) for kind in kinds[1:]]
    counts = [wanted - sum(others), *others]
    if counts[0] < 1:
        raise UserError(
            f"keep_layers={keep:g} would leave no layer that reads text beside {sum(others)} that look at the image: "
            f"keep at least {len(kinds)} of {total} layers."
        )
    return counts


def evenly(members: Sequence[int], count: int) -> list[int]:
    """`count` of the members at equal distances, the first and the last among them; of one, the first."""
    if count == 1:
        return [members[0]]
    return [members[_nearest(i * (len(members) - 1) / (count - 1))] for i in range(count)]


def choose_evenly(model: PreTrainedModel, keep: float, architectures: Mapping[str, Architecture]) -> Kept:
    """The kept layers of each list."""
    kinds = kinds_of_layers(model.config)
    counts = counts_to_keep(kinds, keep)
    chosen = sorted(number for kind, count in zip(kinds, counts, strict=True) for number in evenly(kind, count))
    return {name: list(chosen) for name in layer_lists(model, architectures)}


def choose_by_influence(model: PreTrainedModel, keep: float, influence: Mapping[str, Sequence[float]]) -> Kept:
    """The kept layers of each list, by `influence` of every layer of every list; of equals the earlier stays."""
    kinds = kinds_of_layers(model.config)
    counts = counts_to_keep(kinds, keep)
    kept: Kept = {}
    for name, values in influence.items():
        chosen: list[int] = []
        for kind, count in zip(kinds, counts, strict=True):
            chosen += sorted(kind, key=lambda number: (-values[number], number))[:count]
        kept[name] = sorted(chosen)
    return kept


def block_influence(
    model: PreTrainedModel, lists: Mapping[str, nn.ModuleList], batches: Sequence[Mapping[str, torch.Tensor]]
) -> dict[str, list[float]]:
    """1 - cos of every layer's input and output, meaned over all tokens of `batches`, which have no padding."""
    sums = {name: [0.0] * len(layers) for name, layers in lists.items()}
    tokens = {name: [0] * len(layers) for name, layers in lists.items()}

    def watcher(name: str, number: int) -> Any:  # noqa: ANN401 - torch's type of a hook
        def watch(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:  # noqa: ANN401
            before = given[0] if given else named["hidden_states"]
            after = output if isinstance(output, torch.Tensor) else output[0]
            change = 1 - torch.cosine_similarity(before.double(), after.double(), dim=-1)
            sums[name][number] += float(change.sum())
            tokens[name][number] += change.numel()

        return watch

    handles = [
        layer.register_forward_hook(watcher(name, number), with_kwargs=True)
        for name, layers in lists.items()
        for number, layer in enumerate(layers)
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: [s / max(1, n) for s, n in zip(sums[name], tokens[name], strict=True)] for name in lists}


# ---------------------------------------------------------------- what is left


def shortened_configuration(configuration: PreTrainedConfig, kept: Sequence[int]) -> PreTrainedConfig:
    """A copy for the kept language layers: their number, and every field that says something layer by layer."""
    short: PreTrainedConfig = copy.deepcopy(configuration)
    text = text_configuration(short)
    total = text.num_hidden_layers
    for name, value in text.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == total and name != "cross_attention_layers":
            setattr(text, name, [value[number] for number in kept])
    if getattr(text, "cross_attention_layers", None):
        looking = set(text.cross_attention_layers)
        text.cross_attention_layers = [new for new, old in enumerate(kept) if old in looking]
    if isinstance(getattr(text, "max_window_layers", None), int):
        # Layers from this one on look at a window: as many of those before it as stayed.
        text.max_window_layers = sum(number < text.max_window_layers for number in kept)
    text.num_hidden_layers = len(kept)
    return short


def drop_layers(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    """A model of the same class with the kept layers alone, their weights those of `model`, bit for bit."""
    from transformers.initialization import no_init_weights

    configuration = shortened_configuration(model.config, next(iter(kept.values())))
    state = kept_state(model.state_dict(), kept)
    with no_init_weights():
        short: PreTrainedModel = type(model)._from_config(configuration, dtype=model.dtype)
    short.load_state_dict(state, strict=True)
    short.generation_config = model.generation_config
    short.to(model.device)  # type: ignore[arg-type]
    short.train(model.training)
    return short


def kept_state(state: Mapping[str, torch.Tensor], kept: Kept) -> dict[str, torch.Tensor]:
    """Weights by name without those of dropped layers, the others renumbered."""
    places = {name: {old: new for new, old in enumerate(numbers)} for name, numbers in kept.items()}
    found: dict[str, torch.Tensor] = {}
    for key, tensor in state.items():
        home = next((name for name in places if key.startswith(f"{name}.")), None)
        if home is None:
            found[key] = tensor
            continue
        number, _, inside = key[len(home) + 1 :].partition(".")
        if int(number) in places[home]:
            found[f"{home}.{places[home][int(number)]}.{inside}"] = tensor
    return found


def _nearest(value: float) -> int:
    """The nearest whole number, halves upwards; what floats make of a product is forgiven."""
    return math.floor(value + 0.5 + 1e-9)
