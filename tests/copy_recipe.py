"""A recipe that trains nothing, for the tests of steps and pipelines."""

from __future__ import annotations

import shutil
from typing import Annotated

from pydantic import Field

from mhe.documents.base import Part
from mhe.protocols import RecipeResult


class CopyOptions(Part):
    strength: Annotated[float, Field(gt=0)] = 1.0
    chatty: Annotated[bool, Field(json_schema_extra={"answer_neutral": True})] = False


class CopyRecipe:
    """Copies its base and adds a file; counts its calls, and fails where told to."""

    Options = CopyOptions
    name = "copy"
    version = "1"
    calls: list[str]
    fault: BaseException | None = None

    def __init__(self, options):
        self.options = options

    def run(self, job):
        if job.dry_run:
            return RecipeResult(job.folder / "model", 10, 5, {"language": (10, 5)})
        type(self).calls.append(str(job.folder))
        (job.folder / "half.txt").write_text("half done")
        if type(self).fault is not None:
            raise type(self).fault
        shutil.copytree(job.base.spec.location, job.folder / "model")
        (job.folder / "model" / "made.json").write_text(f"[{self.options.strength}, {job.seed}]")
        (job.folder / "curve.svg").write_text("<svg/>")
        return RecipeResult(
            job.folder / "model", 10, 5, {"language": (10, 5)}, history=[{"step": 1.0, "loss": 2.0}], seconds=1.5
        )


class CatalogWith:
    """The real catalogue, with one more recipe."""

    def __init__(self, catalog):
        self._catalog = catalog

    def recipe(self, name):
        return CopyRecipe if name == "copy" else self._catalog.recipe(name)

    def __getattr__(self, name):
        return getattr(self._catalog, name)
