"""How the parameters that a stage does not train are held still while transformers' `Trainer` works."""

# ruff: noqa: ARG002 - the signatures are those of transformers' callbacks

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import TrainerCallback

if TYPE_CHECKING:
    import torch
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from mhe_tune.stages import StagePlan


class StageKeeper(TrainerCallback):
    """Lets only the parameters of the present stage require gradients while a step is taken.

    All that any stage trains are in the optimizer from the beginning, so that its state can be saved and read at any
    step. A parameter without a gradient is passed over by AdamW: it keeps its value to the bit (weight decay
    included) and gets no moments, and its bias correction starts with its own first step. Between steps all of them
    require gradients again, which is how saving and loading know them.
    """

    def __init__(self, model: torch.nn.Module, plan: StagePlan) -> None:
        ever = plan.ever_trained
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if name in ever}
        self._plan = plan

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: object
    ) -> None:
        """Hold still what this stage does not train."""
        number = next(n for n, end in enumerate(self._plan.ends) if state.global_step < end)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(name in self._plan.trained[number])

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **extra: object
    ) -> None:
        """Let go again."""
        for parameter in self._parameters.values():
            parameter.requires_grad = True
