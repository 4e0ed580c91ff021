"""Recipe `ia3`: one learnt vector a layer rescales keys, values and the inner activation; all weights stay frozen.

The output of a key or value layer is multiplied by its vector, and so is the input of a layer named in `feedforward`;
vectors start at 1, so that training starts at the base. The fewest trained parameters of all recipes here.
`vision`, `fusion` and `language` are each `frozen`, `full` or `adapter`.

    mhe tune --model tiny-llava --recipe ia3 --task vqa-rad --name my-ia3 --set learning_rate=1e-2

Source: Liu et al., Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, NeurIPS
2022, section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mhe import UserError
from mhe_hf import MODULES, architecture_of
from mhe_hf.training.adapter_training import train_adapters
from mhe_hf.training.adapters import AdapterTreatment
from mhe_hf.training.options import TrainingOptions
from mhe_hf.training.targets import ends_with, last_names, linear_layers
from mhe_tune.adapter_presets import IA3_PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from peft import IA3Config
    from pydantic import BaseModel
    from transformers import PreTrainedModel

    from mhe import RecipeJob, RecipeResult

KEYS_AND_VALUES = ("k_proj", "v_proj", "key", "value", "attn.c_attn", "attn.qkv", "self_attn.qkv")
"""What the layers are called in the families here; where keys and queries are one layer, it is that one."""
FEEDFORWARD = ("down_proj", "fc2", "mlp.c_proj", "mlp.2", "linear_2", "output.dense", "output_query.dense")


class Ia3Options(TrainingOptions):
    """Options of the recipe `ia3`."""

    presets = IA3_PRESETS

    vision: AdapterTreatment = "frozen"
    fusion: AdapterTreatment = "frozen"
    language: AdapterTreatment = "adapter"
    vision_targets: tuple[str, ...] = ()
    """Ends of the names of the rescaled layers; where empty, those that are keys, values and second feed-forward
    layers by the names that the families here use."""
    fusion_targets: tuple[str, ...] = ()
    language_targets: tuple[str, ...] = ()
    feedforward: tuple[str, ...] = FEEDFORWARD
    """Of the rescaled layers, those whose input is rescaled, not their output."""


class Ia3Recipe:
    """Learnt rescaling by module."""

    Options: ClassVar[type[BaseModel]] = Ia3Options
    name = "ia3"
    version = "1"

    def __init__(self, options: BaseModel) -> None:
        assert isinstance(options, Ia3Options)
        self.options = options

    def run(self, job: RecipeJob) -> RecipeResult:
        """Train, or with `job.dry_run` tell what would be trained."""
        return train_adapters(self.options, job, self._config, usual_targets=usual_targets)

    def _config(self, model: PreTrainedModel, layers: Mapping[str, Sequence[str]]) -> IA3Config:  # noqa: ARG002 - one signature for all adapters
        from peft import IA3Config

        names = [name for chosen in layers.values() for name in chosen]
        inner = [name for name in names if any(ends_with(name, end) for end in self.options.feedforward)]
        # PEFT wants to be told both before it looks at the model.
        return IA3Config(target_modules=sorted(names), feedforward_modules=sorted(inner))


def usual_targets(model: PreTrainedModel, module: str, job: RecipeJob) -> tuple[str, ...]:
    """The usual layers' names that a module has. Raises `UserError`, with those that there are, where it has none."""
    architecture = architecture_of(str(model.config.model_type), job.architectures or None)
    names = linear_layers(model, architecture)[module]
    found = tuple(end for end in (*KEYS_AND_VALUES, *FEEDFORWARD) if any(ends_with(name, end) for name in names))
    if not found:
        raise UserError(
            f"no layer of {module} is called as keys, values or feed-forward layers usually are. Name them with "
            f"{module}_targets; there are: {', '.join(last_names(names)) or 'none'} (modules: {', '.join(MODULES)})."
        )
    return found
