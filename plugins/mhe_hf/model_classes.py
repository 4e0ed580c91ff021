"""Model classes of plugins: for checkpoints whose shapes no class of transformers can have.

The config.json of such a checkpoint names the class under `architectures` and keeps the `model_type` of the class it
subclasses, so that processors, prompts, adapters and the table of architectures hold for it as well. Where the class
is, a plugin says with the hook `register_model_classes`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

    from mhe import Catalog


def own_class(configuration: PreTrainedConfig) -> Any | None:  # noqa: ANN401 - transformers' models share no public base
    """The registered class that the configuration names; None where the library's own will do.

    Raises `UserError` where it cannot be imported.
    """
    import transformers

    for name in configuration.architectures or ():
        if not hasattr(transformers, name) and name in _catalog().model_classes:
            return _catalog().model_class(name)
    return None


def class_names(configuration: PreTrainedConfig) -> frozenset[str]:
    """The classes that the configuration names, with those that a registered one subclasses."""
    named = frozenset(configuration.architectures or ())
    found = own_class(configuration)
    return named if found is None else named | {base.__name__ for base in found.__mro__}


def needed_class(model: torch.nn.Module) -> str | None:
    """What a checkpoint of this model needs besides transformers, such as `mhe_compress.PrunedModel`; None for none."""
    base = getattr(model, "get_base_model", None)
    kind = type(base() if callable(base) else model)
    top = kind.__module__.partition(".")[0]
    return None if top in ("transformers", "transformers_modules") else f"{top}.{kind.__name__}"


@lru_cache(maxsize=1)
def _catalog() -> Catalog:
    from mhe import open_catalog

    return open_catalog()
