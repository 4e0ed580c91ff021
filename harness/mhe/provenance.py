"""What a step's checkpoint says of itself: gathered by the core, so that no recipe can write its own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mhe.documents.checkpoint import Checkpoint, ModuleShare, TrainingCost, TrainingData
from mhe.documents.model import Lineage
from mhe.environment import describe_code, describe_environment

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mhe.protocols import InputModel, Recipe, RecipeResult
    from mhe.training_data import TrainingSet


def describe_step(
    *,
    name: str,
    seed: int,
    digest: str,
    recipe: Recipe,
    options: BaseModel,
    base: InputModel,
    base_location: str,
    data: TrainingSet | None,
    result: RecipeResult,
    command: str,
) -> Checkpoint:
    """The provenance of a recipe's result, but for its files, which `write_checkpoint` hashes."""
    parent = base.spec
    parent_name = f"{parent.name}@{parent.seed}" if parent.seed is not None else parent.name
    own = Lineage(
        recipe=recipe.name,
        parent=parent_name,
        parent_fingerprint=base.fingerprint,
        seed=seed,
        data=f"{data.train_record.task} {data.train_record.split}" if data else None,
    )
    return Checkpoint(
        name=name,
        seed=seed,
        backend=result.backend,
        model_folder="",
        options=dict(result.options),
        recipe=recipe.name,
        recipe_version=recipe.version,
        recipe_options=options.model_dump(mode="json"),
        step_digest=digest,
        parent=parent_name,
        parent_location=base_location,
        parent_fingerprint=base.fingerprint,
        lineage=(own, *parent.lineage),
        fingerprint="",
        files={},
        bytes_on_disk=0,
        data=describe_data(data),
        parameters=result.parameters,
        trainable_parameters=result.trainable_parameters,
        modules=tuple(
            ModuleShare(name=name, total=total, trainable=trained) for name, (total, trained) in result.modules.items()
        ),
        cost=describe_cost(result),
        history=tuple(dict(entry) for entry in result.history),
        loads_in=tuple(result.loads_in),
        needs_class=result.needs_class,
        notes=tuple(result.notes),
        environment=describe_environment(),
        code=describe_code(),
        command=command,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def describe_cost(result: RecipeResult) -> TrainingCost:
    """What the recipe measured."""
    return TrainingCost(
        seconds=result.seconds,
        samples_per_second=result.samples_per_second,
        peak_host_bytes=result.peak_host_bytes,
        peak_device_bytes=result.peak_device_bytes,
        device=result.device,
    )


def describe_data(data: TrainingSet | None) -> TrainingData | None:
    """What was trained on, after the guard; None for a step without data."""
    if data is None:
        return None
    return TrainingData(
        train=data.train_record,
        validation=data.validation_record,
        dropped_pairs=data.guard.dropped_pairs,
        shared_images=data.guard.shared_images,
    )
