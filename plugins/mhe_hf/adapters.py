"""Adapters put on a loaded base: on the whole model or on one sub-module, left beside the weights or merged.

They are PEFT's, or learned prefixes of `mhe_hf.prefixes`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhe import ModelUnusableError
from mhe_hf.adapter_sets import PREFIX_KIND
from mhe_hf.parts import ADAPTER_WEIGHTS
from mhe_hf.versions import library_version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from mhe_hf.options import HfOptions
    from mhe_hf.parts import Adapter, Parts


WRAPPER = "base_model.model."
"""What PEFT puts before the names of a wrapped module's weights."""


def apply_adapters(model: PreTrainedModel, parts: Parts, options: HfOptions) -> PreTrainedModel:
    """The model with its adapters on it, in their order.

    Layers are adapted in place, so that modules keep their names; a prompt or prefix of PEFT's needs its wrapper
    around the module. Raises `ModelUnusableError` for an adapter of another base, `MissingExtraError`.
    """
    seen: dict[str, Path] = {}
    for adapter in parts.adapters:
        _check_base(adapter, parts.names, is_other_allowed=options.other_base)
        if adapter.kind == PREFIX_KIND:
            _load_prefix(model, adapter, is_merged=options.merge_adapter)
            continue
        library_version("peft", extra="tune", needed_for="adapters")
        if not options.merge_adapter:
            _check_apart(adapter, seen)
        model = _with_adapter(model, adapter, is_merged=options.merge_adapter)
    return model


def _check_base(adapter: Adapter, names: Sequence[str], *, is_other_allowed: bool) -> None:
    if not adapter.base or is_other_allowed or adapter.base in names:
        return
    places = {Path(name).expanduser().resolve() for name in names}
    if Path(adapter.base).expanduser().resolve() in places:
        return
    raise ModelUnusableError(
        f"the adapter {adapter.folder} was trained on {adapter.base!r}, and the base is {names[0]!r}. "
        "Where they are the same weights under another name: --set backend.other_base=true"
    )


def _check_apart(adapter: Adapter, seen: dict[str, Path]) -> None:
    """Two adapters beside one layer would replace each other without a word."""
    for key in sorted(_stored_names(adapter.folder)):
        layer = f"{adapter.module}.{key.removeprefix(WRAPPER)}".lstrip(".")
        if layer in seen:
            raise ModelUnusableError(
                f"the adapters {seen[layer]} and {adapter.folder} both change {layer}. "
                "Merge one after the other: --set backend.merge_adapter=true"
            )
        seen[layer] = adapter.folder


def _target_of(model: PreTrainedModel, adapter: Adapter) -> Any:  # noqa: ANN401 - any sub-module, as PEFT takes it
    try:
        return model.get_submodule(adapter.module)
    except AttributeError as error:
        top = ", ".join(name for name, _ in model.named_children())
        raise ModelUnusableError(
            f"the adapter {adapter.folder} is for the module {adapter.module!r}, which {type(model).__name__} lacks "
            f"({error}). Its top modules: {top}"
        ) from None


def _load_prefix(model: PreTrainedModel, adapter: Adapter, *, is_merged: bool) -> None:
    from mhe_hf.prefixes import load_prefix

    if is_merged:
        raise _cannot_merge(adapter)
    load_prefix(_target_of(model, adapter), adapter.folder)


def _cannot_merge(adapter: Adapter) -> ModelUnusableError:
    return ModelUnusableError(
        f"the adapter {adapter.folder} is a prompt or prefix, which has no weights to merge into: "
        "leave merge_adapter=false."
    )


def _with_adapter(model: PreTrainedModel, adapter: Adapter, *, is_merged: bool) -> PreTrainedModel:
    target = _target_of(model, adapter)
    wrapped = _wrapped(target, adapter)
    if is_merged:
        if wrapped.active_peft_config.is_prompt_learning:
            raise _cannot_merge(adapter)
        adapted = wrapped.merge_and_unload(safe_merge=True)
    else:
        adapted = wrapped if wrapped.active_peft_config.is_prompt_learning else wrapped.base_model.model
    if not adapter.module:
        whole: PreTrainedModel = adapted
        return whole
    model.set_submodule(adapter.module, adapted)
    return model


def _wrapped(target: Any, adapter: Adapter) -> Any:  # noqa: ANN401 - PEFT's own classes differ by kind
    from peft import PeftModel, get_peft_model_state_dict

    # Of adapters that lie there already, under the name that their weights are stored by.
    before = {name.replace(".default", "") for name, _ in target.named_parameters()}
    before |= {name.removesuffix(".weight") for name in before if name.endswith("lora_magnitude_vector.weight")}
    try:
        with warnings.catch_warnings():
            # Of missing keys, which are counted below.
            warnings.simplefilter("ignore")
            wrapped = PeftModel.from_pretrained(target, str(adapter.folder), is_trainable=False)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ModelUnusableError(
            f"the adapter {adapter.folder} does not fit {type(target).__name__}, so it was trained on another base "
            f"than this: {type(error).__name__}: {reason}"
        ) from None
    stored = _stored_names(adapter.folder)
    wanted = {key for key in get_peft_model_state_dict(wrapped) if key.removeprefix(WRAPPER) not in before}
    if stored != wanted:
        only = sorted(stored ^ wanted)
        raise ModelUnusableError(
            f"the adapter {adapter.folder} does not fit {type(target).__name__}: {len(stored - wanted)} of its weights "
            f"have no place there, and {len(wanted - stored)} places get none ({', '.join(only[:2])}, …). "
            "It was trained on another base than this."
        )
    return wrapped


def _stored_names(folder: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as stored:
        return set(stored.keys())
