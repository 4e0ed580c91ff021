"""`medcat`: UMLS entities found by MedCAT with a model pack of the user's.

An adapter for MedCAT 2 (version 1 has the same calls, but needs transformers below 5). Model packs come from its
makers, those with UMLS under its licence. A pack with MetaCAT models needs transformers below 5 as well.

Source: Kraljevic et al., Artificial Intelligence in Medicine 117 (2021). The semantic types are those that the
program of MedBERTScore keeps (Ben Abacha et al., Findings of ACL 2023). It asks for the first type of a concept alone;
MedCAT gives them in no order, so any of them will do here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict

from mhe import MetricUnavailableError, Part, digest_of, file_digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Spans = list[tuple[int, int]]

_GROUPS = (
    (17, 18, 21, 22, 23, 24, 25, 26, 29, 30, 31),  # anatomy
    (103, 104, 109, 114, 116, 120, 121, 122, 123, 125, 126, 127, 129, 130, 131, 192, 195, 196, 197, 200),  # substances
    (19, 20, 37, 46, 47, 48, 49, 50, 184, 190, 191),  # disorders, but 33, which is any finding
    (58, 59, 60, 61, 62, 63, 65),  # procedures
)
PUBLISHED_TYPES = tuple(f"T{number:03}" for group in _GROUPS for number in group)
UMLS_TYPE = re.compile(r"T\d{3}")


class _Entity(TypedDict):
    start: int
    end: int
    type_ids: list[str]


class _Cat(Protocol):
    """What is used of MedCAT's `CAT`: the same in versions 1 and 2."""

    def get_entities(self, text: str) -> Mapping[str, Mapping[int, _Entity]]:
        """Under `entities`, by number; nothing at all for a text without words."""
        ...


class MedcatOptions(Part):
    """Which model pack, and which of its entities."""

    model_pack: Path | None = None
    """A model pack: its folder, or the zip file as it was downloaded (MedCAT unpacks it beside itself). Required."""
    semantic_types: tuple[str, ...] = PUBLISHED_TYPES
    """Entities of one of these types; all entities where empty."""


class MedcatTagger:
    """MedCAT's linked entities of chosen semantic types."""

    Options = MedcatOptions
    name = "medcat"
    version = "1"

    def __init__(self, options: MedcatOptions) -> None:
        self._pack = options.model_pack
        self._types = frozenset(options.semantic_types)
        self._cat: _Cat | None = None

    @property
    def resources(self) -> Mapping[str, str]:
        """The model pack's digest and MedCAT's version. Raises `MetricUnavailableError` where one is absent."""
        return {"model pack": _digest(self._place()), "medcat": _version()}

    def spans(self, texts: Sequence[str]) -> list[Spans]:
        """The entities of each text. Raises `MetricUnavailableError` without MedCAT or a pack that it can load."""
        cat = self._load()
        found: list[Spans] = []
        is_umls = not any(UMLS_TYPE.fullmatch(name) for name in self._types)
        strange: set[str] = set()
        for text in texts:
            spans: set[tuple[int, int]] = set()
            for entity in cat.get_entities(text).get("entities", {}).values() if text.strip() else ():
                types = set(entity["type_ids"])
                is_umls = is_umls or any(UMLS_TYPE.fullmatch(name) for name in types)
                strange |= types
                if not self._types or types & self._types:
                    spans.add((entity["start"], entity["end"]))
            found.append(sorted(spans))
        if strange and not is_umls:
            raise MetricUnavailableError(
                f"the model pack's types ({', '.join(sorted(strange)[:3])}) are not UMLS semantic types such as T047: "
                "name those to keep, or all with []: --set metrics.NAME.tagger_options.semantic_types=[]"
            )
        return found

    def _place(self) -> Path:
        if self._pack is None:
            raise MetricUnavailableError(
                "no MedCAT model pack is given: --set metrics.NAME.tagger_options.model_pack=FOLDER, or its zip file"
            )
        place = self._pack.expanduser()
        if not place.exists():
            raise MetricUnavailableError(f"the MedCAT model pack {place} does not exist")
        return place

    def _load(self) -> _Cat:
        if self._cat is None:
            place = self._place()
            _version()
            try:
                from medcat.cat import CAT

                self._cat = CAT.load_model_pack(str(place))
            except Exception as error:  # MedCAT raises what its parts raise
                raise MetricUnavailableError(
                    f"the MedCAT model pack {place} cannot be loaded ({type(error).__name__}: {error})"
                ) from error
        return self._cat


def _version() -> str:
    import importlib.metadata
    import importlib.util

    if importlib.util.find_spec("medcat") is None:
        raise MetricUnavailableError("the tagger medcat needs MedCAT: pip install 'mhe[medcat]'")
    try:
        return importlib.metadata.version("medcat")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _digest(place: Path) -> str:
    try:
        if place.is_file():
            return file_digest(place)
        # Unpacked and zipped are two digests of one pack: the files are told apart by name and content.
        files = sorted(path for path in place.rglob("*") if path.is_file())
        return digest_of({path.relative_to(place).as_posix(): file_digest(path) for path in files})
    except OSError as error:
        raise MetricUnavailableError(f"MedCAT's pack {error.filename} cannot be read ({error.strerror})") from None
