"""mhe evaluates, tunes and compresses medical vision-language models and publishes what it measured.

These are the public names. They are resolved when first used, so that `import mhe` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mhe.backend_abilities import RendersPrompts, ScoresTokens
    from mhe.catalog import Catalog, open_catalog
    from mhe.digests import cache_dir, digest_of, file_digest
    from mhe.documents.base import BackendOptions, Part
    from mhe.documents.board import BoardSpec
    from mhe.documents.checkpoint import Checkpoint
    from mhe.documents.model import Lineage, ModelSpec
    from mhe.documents.pipeline import PipelineSpec
    from mhe.documents.run import RunRecord
    from mhe.documents.task import Generation, TaskSpec
    from mhe.entity_taggers import EntityTagger, TaggerFactory
    from mhe.errors import (
        DataMissingError,
        DocumentError,
        MetricUnavailableError,
        MheError,
        MissingExtraError,
        ModelUnusableError,
        SampleDataError,
        SampleError,
        SampleModelError,
        SampleSystemError,
        ShareDoneError,
        UserError,
    )
    from mhe.fingerprints import fingerprint_folder
    from mhe.hookspecs import hookimpl
    from mhe.images import BytesSource, FileSource, open_image
    from mhe.jobs import open_job
    from mhe.model_names import resolve_location
    from mhe.prompting import replace_messages
    from mhe.protocols import (
        AnswerProfile,
        BackendContext,
        BackendFactory,
        Command,
        DatasetReader,
        DatasetReaderFactory,
        Engine,
        InputModel,
        Metric,
        MetricContext,
        MetricFactory,
        ModelBackend,
        Profile,
        ReadContext,
        Recipe,
        RecipeFactory,
        RecipeJob,
        RecipeResult,
        TrainingExample,
    )
    from mhe.samples import SampleSet, read_samples
    from mhe.text_pairs import score
    from mhe.validation import ValidationScorer
    from mhe.values import (
        Architecture,
        BackendDescription,
        Case,
        Failure,
        Fingerprint,
        HeadsPlace,
        Image,
        ImageSource,
        Message,
        MetricValue,
        NeuronsPlace,
        Preset,
        Provider,
        Request,
        Response,
        Sample,
        Score,
        TokenChance,
    )

_HOMES = {
    "mhe.backend_abilities": ("RendersPrompts", "ScoresTokens"),
    "mhe.catalog": ("Catalog", "open_catalog"),
    "mhe.digests": ("cache_dir", "digest_of", "file_digest"),
    "mhe.documents.base": ("BackendOptions", "Part"),
    "mhe.documents.board": ("BoardSpec",),
    "mhe.documents.checkpoint": ("Checkpoint",),
    "mhe.documents.model": ("Lineage", "ModelSpec"),
    "mhe.documents.pipeline": ("PipelineSpec",),
    "mhe.documents.run": ("RunRecord",),
    "mhe.documents.task": ("Generation", "TaskSpec"),
    "mhe.entity_taggers": ("EntityTagger", "TaggerFactory"),
    "mhe.errors": (
        "DataMissingError",
        "DocumentError",
        "MetricUnavailableError",
        "MheError",
        "MissingExtraError",
        "ModelUnusableError",
        "SampleDataError",
        "SampleError",
        "SampleModelError",
        "SampleSystemError",
        "ShareDoneError",
        "UserError",
    ),
    "mhe.fingerprints": ("fingerprint_folder",),
    "mhe.hookspecs": ("hookimpl",),
    "mhe.images": ("BytesSource", "FileSource", "open_image"),
    "mhe.jobs": ("open_job",),
    "mhe.model_names": ("resolve_location",),
    "mhe.prompting": ("replace_messages",),
    "mhe.protocols": (
        "AnswerProfile",
        "BackendContext",
        "BackendFactory",
        "Command",
        "DatasetReader",
        "DatasetReaderFactory",
        "Engine",
        "InputModel",
        "Metric",
        "MetricContext",
        "MetricFactory",
        "ModelBackend",
        "Profile",
        "ReadContext",
        "Recipe",
        "RecipeFactory",
        "RecipeJob",
        "RecipeResult",
        "TrainingExample",
    ),
    "mhe.samples": ("SampleSet", "read_samples"),
    "mhe.text_pairs": ("score",),
    "mhe.validation": ("ValidationScorer",),
    "mhe.values": (
        "Architecture",
        "BackendDescription",
        "Case",
        "Failure",
        "Fingerprint",
        "HeadsPlace",
        "Image",
        "ImageSource",
        "Message",
        "MetricValue",
        "NeuronsPlace",
        "Preset",
        "Provider",
        "Request",
        "Response",
        "Sample",
        "Score",
        "TokenChance",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__version__ = "0.1.0"
__all__ = [
    "AnswerProfile",
    "Architecture",
    "BackendContext",
    "BackendDescription",
    "BackendFactory",
    "BackendOptions",
    "BoardSpec",
    "BytesSource",
    "Case",
    "Catalog",
    "Checkpoint",
    "Command",
    "DataMissingError",
    "DatasetReader",
    "DatasetReaderFactory",
    "DocumentError",
    "Engine",
    "EntityTagger",
    "Failure",
    "FileSource",
    "Fingerprint",
    "Generation",
    "HeadsPlace",
    "Image",
    "ImageSource",
    "InputModel",
    "Lineage",
    "Message",
    "Metric",
    "MetricContext",
    "MetricFactory",
    "MetricUnavailableError",
    "MetricValue",
    "MheError",
    "MissingExtraError",
    "ModelBackend",
    "ModelSpec",
    "ModelUnusableError",
    "NeuronsPlace",
    "Part",
    "PipelineSpec",
    "Preset",
    "Profile",
    "Provider",
    "ReadContext",
    "Recipe",
    "RecipeFactory",
    "RecipeJob",
    "RecipeResult",
    "RendersPrompts",
    "Request",
    "Response",
    "RunRecord",
    "Sample",
    "SampleDataError",
    "SampleError",
    "SampleModelError",
    "SampleSet",
    "SampleSystemError",
    "Score",
    "ScoresTokens",
    "ShareDoneError",
    "TaggerFactory",
    "TaskSpec",
    "TokenChance",
    "TrainingExample",
    "UserError",
    "ValidationScorer",
    "__version__",
    "cache_dir",
    "digest_of",
    "file_digest",
    "fingerprint_folder",
    "hookimpl",
    "open_catalog",
    "open_image",
    "open_job",
    "read_samples",
    "replace_messages",
    "resolve_location",
    "score",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mhe' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
