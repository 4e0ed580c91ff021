"""Options that every training recipe has. What cannot change the result says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mhe import Part, Preset
from mhe_hf.training.presets import checked_preset, with_preset

_NEUTRAL = {"answer_neutral": True}


class TrainingOptions(Part):
    """How long, how fast, on what, and when it is good enough."""

    presets: ClassVar[Mapping[str, Preset]] = {}
    """Of each recipe; see `mhe_hf.training.presets`."""
    may_share: ClassVar[bool] = True
    """Several processes may train together; see `RecipeJob.processes`."""

    # Neutral, because all values it stands for are recorded and digested themselves.
    preset: Annotated[str | None, Field(json_schema_extra=_NEUTRAL)] = None
    """Values of a paper, below everything that is set besides."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """The peak; AdamW."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Examples in one forward pass, on each device."""
    gradient_accumulation: Annotated[int, Field(ge=1)] = 1
    """Forward passes in one step; one step sees `batch_size` times this many examples, on each device."""
    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training examples."""
    max_steps: Annotated[int | None, Field(ge=1)] = None
    """Ends after this many steps, whatever `epochs` says."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of all steps in which the rate rises from 0."""
    scheduler: Literal["linear", "cosine", "constant", "constant_with_warmup", "one_cycle"] = "cosine"
    """`one_cycle` is torch's OneCycleLR: up over `warmup` from 1/25 of the rate, then down to nearly nothing, with the
    first moment's decay going from .95 to .85 and back."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are scaled down to this norm."""
    evaluate_every: Annotated[int | None, Field(ge=1)] = None
    """Steps between validations; once an epoch where empty. The last step is always validated."""
    best_by: str = "loss"
    """Which validation is the best: `loss`, the lowest validation loss; or a value of the task's metrics (`accuracy`,
    `bleu-4`), of answers generated at each validation."""
    best_by_samples: Annotated[int | None, Field(ge=1)] = 100
    """How many validation samples are answered for `best_by`, drawn by the seed; all where empty."""
    patience: Annotated[int | None, Field(ge=1)] = None
    """Stops after this many validations that are no better than the best before them; never where empty."""
    keep: Literal["best", "last"] = "best"
    """Which weights are the result: those of the best validation, or the last ones."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the computation; weights are kept in float32 while training. `auto`: bf16, else fp16, on CUDA, fp32 else."""
    device: Literal["auto", "cpu"] = "auto"
    attn_implementation: str | None = None
    """`eager`, `sdpa`, `flash_attention_2`; where empty flash attention 2 if it is installed and the model, the GPU and
    16 bits allow it, transformers' own choice else."""
    gradient_checkpointing: bool = False
    """Computes activations twice, to keep fewer in memory."""
    save_every: Annotated[int | None, Field(ge=1, json_schema_extra=_NEUTRAL)] = None
    """Steps between saves that an interrupted training continues from; once an epoch where empty."""
    trackers: Annotated[tuple[str, ...], Field(json_schema_extra=_NEUTRAL)] = ()
    """Trackers that transformers' `Trainer` knows: `tensorboard`, `wandb`, `mlflow`, …"""

    @model_validator(mode="before")
    @classmethod
    def _values_of_preset(cls, given: object) -> object:
        return with_preset(cls.presets, given)

    @field_validator("preset")
    @classmethod
    def _preset_exists(cls, name: str | None) -> str | None:
        return checked_preset(cls.presets, name)

    @model_validator(mode="after")
    def _choices_agree(self) -> TrainingOptions:
        if self.scheduler == "one_cycle" and not self.warmup:
            raise ValueError("scheduler one_cycle needs a warmup above 0, such as 0.3")
        if self.scheduler == "constant" and self.warmup > 0 and "warmup" in self.model_fields_set:
            raise ValueError("scheduler constant has no warm-up: use constant_with_warmup, or warmup=0")
        return self
