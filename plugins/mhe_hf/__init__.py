"""Backend `hf`: any image-text-to-text model of transformers, in this process.

This module is the plugin and stays light: the names below are resolved when first used. They are what plugins that
work on a loaded transformers model may build on: loading, collating, and where modules live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import Architecture, Provider, hookimpl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import BackendFactory, ModelSpec
    from mhe_hf.architectures import (
        ARCHITECTURES,
        MODULES,
        architecture_of,
        module_names,
        module_of,
        module_parameters,
        parameter_size,
    )
    from mhe_hf.backend import HfBackend
    from mhe_hf.collation import Collator, context_of
    from mhe_hf.conversations import adds_special_tokens
    from mhe_hf.families import bind_family, family_of
    from mhe_hf.generation import decode_answer
    from mhe_hf.loading import empty_model, load_configuration, load_model, load_processor
    from mhe_hf.locations import find_location, fingerprint_of
    from mhe_hf.model_classes import needed_class
    from mhe_hf.options import HfOptions
    from mhe_hf.parts import base_of_adapters, find_parts, fingerprint_parts
    from mhe_hf.planned import adapters_of, few_bits_of, write_planned
    from mhe_hf.prefixes import (
        PREFIX,
        AttentionShape,
        KeysAndValues,
        attention_layers,
        load_prefix,
        prefix_states,
        put_prefix,
        take_prefixes,
        write_prefix,
    )
    from mhe_hf.processors import ImageAndText, without_video
    from mhe_hf.prompts import render_prompt, shown_prompt
    from mhe_hf.quantization import restore_layer_classes
    from mhe_hf.saving import save_published
    from mhe_hf.threads import let_waiting_threads_sleep
    from mhe_hf.training_inputs import collate_training, join_training
    from mhe_hf.versions import library_version
    from mhe_hf.weight_files import check_folder

_HOMES = {
    "mhe_hf.architectures": (
        "ARCHITECTURES",
        "MODULES",
        "architecture_of",
        "module_names",
        "module_of",
        "module_parameters",
        "parameter_size",
    ),
    "mhe_hf.backend": ("HfBackend",),
    "mhe_hf.collation": ("Collator", "context_of"),
    "mhe_hf.conversations": ("adds_special_tokens",),
    "mhe_hf.families": ("bind_family", "family_of"),
    "mhe_hf.generation": ("decode_answer",),
    "mhe_hf.loading": ("empty_model", "load_configuration", "load_model", "load_processor"),
    "mhe_hf.locations": ("find_location", "fingerprint_of"),
    "mhe_hf.model_classes": ("needed_class",),
    "mhe_hf.options": ("HfOptions",),
    "mhe_hf.parts": ("base_of_adapters", "find_parts", "fingerprint_parts"),
    "mhe_hf.planned": ("adapters_of", "few_bits_of", "write_planned"),
    "mhe_hf.prefixes": (
        "PREFIX",
        "AttentionShape",
        "KeysAndValues",
        "attention_layers",
        "load_prefix",
        "prefix_states",
        "put_prefix",
        "take_prefixes",
        "write_prefix",
    ),
    "mhe_hf.processors": ("ImageAndText", "without_video"),
    "mhe_hf.prompts": ("render_prompt", "shown_prompt"),
    "mhe_hf.quantization": ("restore_layer_classes",),
    "mhe_hf.saving": ("save_published",),
    "mhe_hf.threads": ("let_waiting_threads_sleep",),
    "mhe_hf.training_inputs": ("collate_training", "join_training"),
    "mhe_hf.versions": ("library_version",),
    "mhe_hf.weight_files": ("check_folder",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ARCHITECTURES",
    "MODULES",
    "PREFIX",
    "AttentionShape",
    "Collator",
    "HfBackend",
    "HfOptions",
    "ImageAndText",
    "KeysAndValues",
    "adapters_of",
    "adds_special_tokens",
    "architecture_of",
    "attention_layers",
    "base_of_adapters",
    "bind_family",
    "check_folder",
    "collate_training",
    "context_of",
    "decode_answer",
    "empty_model",
    "family_of",
    "few_bits_of",
    "find_location",
    "find_parts",
    "fingerprint_of",
    "fingerprint_parts",
    "join_training",
    "let_waiting_threads_sleep",
    "library_version",
    "load_configuration",
    "load_model",
    "load_prefix",
    "load_processor",
    "module_names",
    "module_of",
    "module_parameters",
    "needed_class",
    "parameter_size",
    "prefix_states",
    "put_prefix",
    "render_prompt",
    "restore_layer_classes",
    "save_published",
    "shown_prompt",
    "take_prefixes",
    "without_video",
    "write_planned",
    "write_prefix",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mhe_hf' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def _load_backend() -> BackendFactory:
    from mhe_hf.backend import HfBackend

    return HfBackend


@hookimpl
def register_backends() -> Sequence[Provider[BackendFactory]]:
    """The backend `hf`."""
    return [
        Provider(
            name="hf",
            summary="transformers in this process: image-text-to-text models of the hub or a folder",
            load=_load_backend,
            extra="hf",
        )
    ]


@hookimpl
def register_architectures() -> Sequence[Architecture]:
    """Where vision, fusion and language live in the model classes of the papers."""
    from mhe_hf.architectures import ARCHITECTURES

    return list(ARCHITECTURES.values())


@hookimpl
def register_models() -> Sequence[ModelSpec]:
    """Published models by short name."""
    from mhe_hf.models import MODELS

    return MODELS
