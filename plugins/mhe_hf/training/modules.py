"""Which parameters are trained: vision, fusion and language, each set alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mhe import UserError
from mhe_hf import MODULES, architecture_of, module_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from transformers import PreTrainedModel

    from mhe import Architecture

Treatment = Literal["frozen", "full"]


@dataclass(frozen=True, slots=True)
class Shares:
    """Parameters by module."""

    modules: Mapping[str, tuple[int, int]]
    """Module to (all, trained)."""

    @property
    def parameters(self) -> int:
        """All of them, tied ones once."""
        return sum(total for total, _ in self.modules.values())

    @property
    def trainable(self) -> int:
        """Those that are trained."""
        return sum(trained for _, trained in self.modules.values())


def set_trainable(
    model: PreTrainedModel, treatments: Mapping[str, Treatment], architectures: Mapping[str, Architecture]
) -> Shares:
    """Freeze and thaw the parameters of each module, in place; returns the counts.

    Raises `ModelUnusableError` for a type of model whose modules are not known, and `UserError`, with the modules
    found, where parameters belong to none of them, a module that is to be trained has none, or all are frozen.
    """
    architecture = architecture_of(str(model.config.model_type), architectures or None)
    homes = check_homes(model, architecture, [m for m, treatment in treatments.items() if treatment != "frozen"])
    counts = {module: [0, 0] for module in MODULES}
    for name, parameter in model.named_parameters():
        module = homes[name]
        is_trained = treatments.get(module, "frozen") != "frozen"
        parameter.requires_grad_(is_trained)
        counts[module][0] += parameter.numel()
        counts[module][1] += parameter.numel() if is_trained else 0
    shares = Shares({module: (total, trained) for module, (total, trained) in counts.items()})
    if not shares.trainable:
        choices = ", ".join(f"{module}={treatment}" for module, treatment in treatments.items())
        raise UserError(
            f"nothing would be trained: {choices}. "
            f"Set one of {', '.join(MODULES)} to full, such as --set language=full."
        )
    return shares


def check_homes(model: PreTrainedModel, architecture: Architecture, trained: Sequence[str]) -> dict[str, str]:
    """Each parameter's module, `vision`, `fusion` or `language`, by the parameter's name.

    Raises `UserError`, with the modules found, where a parameter belongs to none or one of `trained` has none.
    """
    homes = {name: module_of(name, architecture) for name, _ in model.named_parameters()}
    found = _top_modules(model)
    homeless = sorted(name for name, module in homes.items() if module is None)
    if homeless:
        raise UserError(
            f"{len(homeless)} parameters of this {architecture.model_type} model belong neither to vision, fusion nor "
            f"language: {', '.join(homeless[:3])}{', …' if len(homeless) > 3 else ''}. Modules found: {found}. "
            "A plugin says where they belong with register_architectures()."
        )
    if empty := [module for module in trained if module not in homes.values()]:
        missing = " and no ".join(empty)
        raise UserError(f"this {architecture.model_type} model has no {missing} module. Modules found: {found}.")
    return {name: str(module) for name, module in homes.items()}


def _top_modules(model: torch.nn.Module) -> str:
    names = [name for name, _ in model.named_modules() if name and name.count(".") < 2]
    return ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
