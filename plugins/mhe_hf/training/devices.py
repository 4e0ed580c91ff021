"""What a training computes on and with: precision and attention, chosen for the device where nothing is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mhe import UserError
from mhe_hf import HfOptions, empty_model, load_configuration

if TYPE_CHECKING:
    from mhe import RecipeJob
    from mhe_hf.training.options import TrainingOptions

FLASH = "flash_attention_2"
FIRST_FLASH_CAPABILITY = (8, 0)
"""Ampere; flash attention 2 has no kernels for GPUs before it."""


def choose_precision(options: TrainingOptions) -> str:
    """`fp32`, `bf16` or `fp16`: as asked, or what the device is good at. Raises `UserError` for what it cannot do."""
    refusal = refused_precision(options)
    if refusal is not None:
        raise UserError(refusal)
    return planned_precision(options)


def planned_precision(options: TrainingOptions) -> str:
    """The precision as asked, whether this machine can do it or not, or what its device is good at."""
    import torch

    if options.dtype != "auto":
        return options.dtype
    if not uses_cuda(options):
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def refused_precision(options: TrainingOptions) -> str | None:
    """Why this machine cannot train in the precision that is asked for, and what to use; None where it can."""
    import torch

    has_cuda = uses_cuda(options)
    if options.dtype == "fp16" and not has_cuda:
        return "dtype=fp16 needs a CUDA device: use dtype=auto, fp32 or bf16."
    if options.dtype == "bf16" and has_cuda and not torch.cuda.is_bf16_supported():
        return "this GPU has no bf16: use dtype=auto, fp16 or fp32."
    return None


def choose_attention(options: TrainingOptions, job: RecipeJob) -> str | None:
    """How attention is computed: as asked for, as the base is loaded elsewhere, or flash attention 2 where it can be.

    It can be with 16 bits on a CUDA device that it has kernels for, where the package flash_attn is installed and every
    part of the model takes it. None leaves the choice to transformers.
    """
    asked = asked_attention(options, job)
    if asked is not None or not uses_cuda(options) or choose_precision(options) == "fp32":
        return asked
    import torch
    from transformers import PreTrainedModel
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not is_flash_attn_2_available() or torch.cuda.get_device_capability() < FIRST_FLASH_CAPABILITY:
        return None
    spec = job.base.spec
    shape = empty_model(load_configuration(spec, HfOptions.model_validate(spec.options), offline=job.offline))
    parts = [part for part in shape.modules() if isinstance(part, PreTrainedModel)]
    return FLASH if all(part._supports_flash_attn for part in parts) else None


def asked_attention(options: TrainingOptions, job: RecipeJob) -> str | None:
    """The attention that the recipe's options, or else the base's, ask for."""
    return options.attn_implementation or HfOptions.model_validate(job.base.spec.options).attn_implementation


def uses_cuda(options: TrainingOptions) -> bool:
    """Whether the training runs on a CUDA device."""
    import torch

    return options.device == "auto" and torch.cuda.is_available()
