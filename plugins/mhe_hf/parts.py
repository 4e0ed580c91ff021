"""What a model is put together from: a base, for some models a second half, and adapters. Imports nothing heavy.

A location of two halves reads `ENCODER + DECODER`: each a folder or hub id. A folder with an adapter_config.json and
no config.json is an adapter, whose base is named in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mhe import Fingerprint, ModelUnusableError, digest_of, fingerprint_folder
from mhe_hf.adapter_sets import PEFT_KIND, PREFIX_KIND, SET_FILE, AdapterSet, read_set
from mhe_hf.locations import Location, find_location, fingerprint_of
from mhe_hf.random_models import configuration_folder
from mhe_hf.weight_files import check_safetensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mhe import ModelSpec
    from mhe_hf.options import HfOptions

HALVES = " + "
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder that PEFT wrote or that holds a learned prefix, and the sub-module that it belongs to."""

    folder: Path
    module: str
    """Dotted name; empty for the whole model."""
    base: str
    """What the adapter was trained on, as it says; empty where it says nothing."""
    revision: str | None
    kind: str = PEFT_KIND
    """`peft`, or `prefix` for keys and values of `mhe_hf.prefixes`."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything whose weights a model has."""

    base: Location
    decoder: Location | None = None
    """The second half of a model that is put together from two."""
    adapters: tuple[Adapter, ...] = ()
    names: tuple[str, ...] = ()
    """What the base is called: the location that was asked for, and where it was found."""
    adapter_set: AdapterSet | None = None
    """The folder that names base and adapters, where that was asked for."""

    @property
    def is_untrained(self) -> bool:
        """Whether the halves have never met: their cross-attention is as it was drawn from a seed."""
        return self.decoder is not None and not self.adapters


def find_parts(spec: ModelSpec, options: HfOptions, *, offline: bool) -> Parts:
    """Where each part lies.

    Raises `ModelUnusableError` for a part that is not there, or an adapter without its base.
    """
    if options.random_weights:
        return _shape_alone(spec)
    adapters = [read_adapter(Path(one.folder), one.module) for one in options.all_adapters()]
    place = Path(spec.location).expanduser()
    found_set = read_set(place)
    if found_set is not None:
        # Its base is known by content, so that the name in each adapter need not be looked at.
        own_adapters = [_member(found_set, *member) for member in found_set.members]
        adapters = [*own_adapters, *adapters]
        spec = spec.model_copy(update={"location": found_set.base, "revision": found_set.revision})
    elif is_adapter(place):
        own = read_adapter(place, "")
        if not own.base:
            raise ModelUnusableError(
                f"model {spec.name}: {place} is an adapter that does not name its base model. "
                f"Give the base: --model BASE --set backend.adapter={place}"
            )
        adapters.insert(0, own)
        spec = spec.model_copy(update={"location": own.base, "revision": own.revision})
    halves = [half.strip() for half in spec.location.split(HALVES)]
    if len(halves) > 2:
        raise ModelUnusableError(
            f"model {spec.name}: {spec.location!r} has {len(halves)} parts; write ENCODER + DECODER."
        )
    try:
        base, *rest = [_find_half(spec, half, len(halves), offline=offline) for half in halves]
    except ModelUnusableError as error:
        if found_set is None and not is_adapter(place):
            raise
        raise ModelUnusableError(
            f"the adapter {place} was trained on {spec.location!r}: {error}\n"
            f"Where it lies elsewhere, give it: --model BASE --set backend.adapter={place}"
        ) from None
    names = (spec.location, str(base.folder or base.repo))
    return Parts(base, rest[0] if rest else None, tuple(adapters), names, found_set)


def _shape_alone(spec: ModelSpec) -> Parts:
    """A configuration without weights, with the places of the adapters that a planned step would leave on it."""
    folder = configuration_folder(spec)
    found = read_set(folder)
    members = found.members if found else ()
    adapters = tuple(Adapter(place, module, "", None, kind) for place, module, kind in members)
    return Parts(Location(folder), adapters=adapters, names=(spec.location, str(folder)), adapter_set=found)


def _member(found: AdapterSet, folder: Path, module: str, kind: str) -> Adapter:
    adapter = read_adapter(folder, module)
    if adapter.kind != kind:
        raise ModelUnusableError(
            f"{found.folder / SET_FILE} says that {folder.name} is of kind {kind!r}, and its {ADAPTER_FILE} is of kind "
            f"{adapter.kind!r}: copy the folder again."
        )
    return replace(adapter, base="")


def base_of_adapters(spec: ModelSpec, options: HfOptions, *, offline: bool) -> str | None:
    """Where the base of a model with adapters lies; None for a model without. Raises `ModelUnusableError`."""
    parts = find_parts(spec, options, offline=offline)
    return parts.names[0] if parts.adapters else None


def _find_half(spec: ModelSpec, location: str, number: int, *, offline: bool) -> Location:
    # One revision cannot be that of two models.
    revision = spec.revision if number == 1 else None
    return find_location(spec.model_copy(update={"location": location, "revision": revision}), offline=offline)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter alone."""
    return (folder / ADAPTER_FILE).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path, module: str) -> Adapter:
    """What an adapter says of itself. Raises `ModelUnusableError` where the folder is no whole adapter."""
    folder = folder.expanduser()
    path = folder / ADAPTER_FILE
    if not path.is_file():
        raise ModelUnusableError(f"{folder} is no adapter: it has no {ADAPTER_FILE}. Give the folder that PEFT wrote.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelUnusableError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ModelUnusableError(f"{path} should hold a JSON object, and holds a {type(settings).__name__}.")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        found = sorted(p.name for p in folder.glob("adapter_model.*"))
        why = f"holds its weights as pickle ({', '.join(found)}), which can run any code when opened" if found else ""
        raise ModelUnusableError(f"{folder} {why or 'holds no weights'}: {ADAPTER_WEIGHTS} is wanted.")
    check_safetensors(weights)
    base, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    kind = PREFIX_KIND if settings.get("kind") == PREFIX_KIND else PEFT_KIND
    return Adapter(folder, module, str(base or ""), str(revision) if revision else None, kind)


def fingerprint_parts(parts: Parts, seed: int) -> Fingerprint:
    """Over every part: the base, the second half with the seed of what neither has, and the adapters in their order.

    Raises `ModelUnusableError` where a folder holds no weights.
    """
    if parts.adapter_set is not None:
        return _fingerprint_set(parts, parts.adapter_set, seed)
    if parts.decoder is None and not parts.adapters:
        return fingerprint_of(parts.base)
    found = {"base": fingerprint_of(parts.base)}
    content: dict[str, object] = {}
    if parts.decoder is not None:
        found["decoder"] = fingerprint_of(parts.decoder)
        content["seed"] = seed
    for number, adapter in enumerate(parts.adapters):
        found[f"adapter{number}"] = fingerprint_folder(adapter.folder)
        content[f"module{number}"] = adapter.module
    content |= {name: fingerprint.digest for name, fingerprint in found.items()}
    sizes = [fingerprint.bytes_on_disk for fingerprint in found.values()]
    return Fingerprint(
        digest=digest_of(content),
        verified=all(fingerprint.verified for fingerprint in found.values()),
        files=_all_files(list(found.items())),
        bytes_on_disk=None if None in sizes else sum(size or 0 for size in sizes),
    )


def _fingerprint_set(parts: Parts, found: AdapterSet, seed: int) -> Fingerprint:
    """The folder's own content, which names its base by content; with further adapters, over both.

    Raises `ModelUnusableError` where the base is another one than the adapters were trained on.
    """
    own = fingerprint_folder(found.folder)
    size = own.bytes_on_disk
    if found.base_fingerprint is not None:
        base = fingerprint_parts(replace(parts, adapters=(), adapter_set=None), seed)
        if base.digest != found.base_fingerprint:
            raise ModelUnusableError(
                f"the adapters in {found.folder} were trained on other weights than those in {found.base}: "
                f"fingerprint {found.base_fingerprint[:12]} is wanted, {base.digest[:12]} was found."
            )
        size = None if size is None or base.bytes_on_disk is None else size + base.bytes_on_disk
    further = parts.adapters[len(found.members) :]
    if not further:
        return replace(own, bytes_on_disk=size)
    return fingerprint_parts(Parts(Location(found.folder), adapters=further), seed)


def _all_files(found: Sequence[tuple[str, Fingerprint]]) -> dict[str, str]:
    return {f"{part}/{name}": digest for part, fingerprint in found for name, digest in fingerprint.files.items()}
