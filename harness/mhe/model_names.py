"""From what a user types after `--model` to a model specification.

In this order: a registered name, a checkpoint `NAME[@SEED]` made by `mhe tune`, a folder, `org/name[@revision]`
on the hub, and for a backend that knows names of its own (a server), any other name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mhe.checkpoints import CheckpointName, find_checkpoint, list_checkpoints
from mhe.documents.model import ModelSpec
from mhe.errors import ModelUnusableError, UnknownNameError, UserError

if TYPE_CHECKING:
    from mhe.catalog import Catalog

DEFAULT_BACKEND = "hf"
"""Of a folder and of a hub id, which say nothing of a backend. What lies there is in transformers' format, and this is
the name under which whoever reads that format registers: a convention like the format itself, written into every
checkpoint. Where no plugin registers it, the catalogue says so, with what to install."""
PACKAGE_PREFIX = "package:"
HUB_ID = re.compile(r"^(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?$")


def resolve_model(
    name: str, catalog: Catalog, *, backend: str | None = None, checkpoints_dir: Path | None = None
) -> ModelSpec:
    """The specification behind a name, its local folder resolved, its backend replaced where one is asked for.

    Raises `UnknownNameError`, or `UserError` where a registered name and a checkpoint are the same.
    """
    takes_any = backend is not None and bool(getattr(catalog.backend(backend), "takes_any_name", False))
    spec = _find(name, catalog, checkpoints_dir, takes_any=takes_any)
    if backend is not None:
        spec = spec.model_copy(update={"backend": backend})
    return spec.model_copy(update={"location": resolve_location(spec.location)})


def _find(name: str, catalog: Catalog, checkpoints_dir: Path | None, *, takes_any: bool) -> ModelSpec:
    checkpoint = find_checkpoint(name, checkpoints_dir)
    if name in catalog.models:
        if checkpoint is not None:
            raise UserError(
                f"{name!r} is both a registered model and a checkpoint; evaluate the checkpoint as {name}@0, "
                "or rename its folder."
            )
        return catalog.models[name]
    if checkpoint is not None:
        return checkpoint
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelSpec(name=folder.resolve().name, backend=DEFAULT_BACKEND, location=str(folder.resolve()))
    refuse_pipeline_not_run(name, catalog)
    if name.startswith((".", "/", "~")):
        raise ModelUnusableError(f"{name}: no such folder.")
    if match := HUB_ID.match(name):
        return ModelSpec(name=match["id"], backend=DEFAULT_BACKEND, location=match["id"], revision=match["revision"])
    if takes_any and name.strip():
        return ModelSpec(name=name, backend=DEFAULT_BACKEND, location=name)
    known = [*catalog.models, *list_checkpoints(checkpoints_dir)]
    raise UnknownNameError(
        "model", name, known, hint="A folder, or org/name[@revision] on the hub, can be given as well."
    )


def refuse_pipeline_not_run(name: str, catalog: Catalog) -> None:
    """Raises `UserError`, with what to type, for `PIPELINE`, `PIPELINE@SEED` and `PIPELINE.STEP`, of no checkpoint."""
    parts = CheckpointName.parse(name)
    if parts is None:
        return
    seed = f" --seed {parts.seed}" if parts.seed else ""
    owner = max(
        (n for n in catalog.pipelines if parts.name == n or parts.name.startswith(f"{n}.")), key=len, default=""
    )
    if parts.name == owner:
        raise UserError(f"{name!r} is a pipeline that has not been run yet: mhe tune {owner}{seed}")
    if owner:
        step = parts.name.removeprefix(f"{owner}.")
        raise UserError(
            f"{name!r} would be a step of the pipeline {owner} that has not been run yet: "
            f"mhe tune {owner} --until {step}{seed}"
        )


def recorded_location(catalog: Catalog, spec: ModelSpec) -> str:
    """Where a resolved model lies, for a record: as it is registered where it is, for `package:…` is the same on
    every machine; else the folder or hub id in use.
    """
    registered = catalog.models.get(spec.name)
    if registered is not None and resolve_location(registered.location) == spec.location:
        return registered.location
    return spec.location


def resolve_location(location: str) -> str:
    """A `package:module/path` location as the folder inside the installed package; others as they are."""
    if not location.startswith(PACKAGE_PREFIX):
        return location
    import importlib.util

    module, _, inside = location.removeprefix(PACKAGE_PREFIX).partition("/")
    found = importlib.util.find_spec(module)
    roots = list(found.submodule_search_locations or []) if found else []
    for root in roots:
        if (Path(root) / inside).is_dir():
            return str(Path(root) / inside)
    raise ModelUnusableError(f"{location}: the package {module} holds no folder {inside!r}; install mhe again.")
