"""What a recipe promises, as far as it can be seen without training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mhe.protocols import RecipeResult
from mhe.testing.contracts.promises import check_name, check_options, promise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mhe.protocols import RecipeFactory, RecipeJob


def check_recipe(
    factory: RecipeFactory, options: Mapping[str, object] | None = None, *, job: RecipeJob | None = None
) -> RecipeResult | None:
    """Options refuse what they do not know, and there is a name and a version; with a `job`, also a dry run.

    A dry run must tell parameters and leave the folder as it was. Returns its result, None without a job.
    Raises `AssertionError` with the broken promise.
    """
    chosen = check_options(factory, options)
    recipe = factory(chosen)
    what = f"recipe {getattr(recipe, 'name', recipe)!r}"
    check_name(recipe.name, recipe.version, what)
    promise(callable(getattr(recipe, "run", None)), f"{what}: has no method run(job)")
    if job is None:
        return None
    before = sorted(job.folder.rglob("*"))
    result = recipe.run(replace(job, dry_run=True))
    promise(isinstance(result, RecipeResult), f"{what}: run returned {type(result).__name__}, not RecipeResult")
    promise(sorted(job.folder.rglob("*")) == before, f"{what}: a dry run wrote into its folder")
    promise(
        0 <= result.trainable_parameters <= result.parameters,
        f"{what}: {result.trainable_parameters} of {result.parameters} parameters cannot be trainable",
    )
    for name, (total, trainable) in result.modules.items():
        promise(0 <= trainable <= total, f"{what}: {trainable} of {total} parameters of {name} cannot be trainable")
    return result
